"""`fokker selfcheck`: what a service answers, compared with what it should, in closed form.

The service is one like any other, reached by its client, and serves a model whose answers are
known (`mixture`). Nothing here imports the mathematics that it checks.
"""

from service.selfcheck.deployment import Deployment, reach
from service.selfcheck.findings import Finding
from service.selfcheck.runner import CHECKS, Report, run

__all__ = ["CHECKS", "Deployment", "Finding", "Report", "reach", "run"]
