"""`python -m service` is the command `fokker`."""

from service.cli import main

main()
