"""The front end: the REST API, the job contract (`service.jobs`) and the command line.

Nothing in here imports torch; the worker does the mathematics.
"""
