"""All checks, one after another."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from service.client import ServiceUnavailable
from service.selfcheck import contract, inversion, likelihood, sampling
from service.selfcheck.deployment import Deployment
from service.selfcheck.findings import Check, Finding

CHECKS: dict[str, Check] = {
    "health": contract.health,
    "samplers": sampling.samplers,
    "seeds": sampling.seeds,
    "formats": sampling.formats,
    "encode": inversion.encoding,
    "decode": inversion.decoding,
    "likelihood": likelihood.likelihoods,
    "levels": likelihood.levels,
    "events": contract.events,
    "submission": contract.submission,
    "ending": contract.ending,
    "links": contract.links,
    "refusals": contract.refusals,
}


@dataclass(frozen=True)
class Report:
    """What a check found, and the seconds that it took."""

    check: str
    findings: list[Finding]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        return all(finding.passed for finding in self.findings)

    @property
    def document(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self) | {"passed": self.passed}


def run(name: str, deployment: Deployment) -> Report:
    """Run one check. Raises ServiceUnavailable when nobody answers (any more)."""
    begun = time.monotonic()
    findings: list[Finding] = []
    try:
        for finding in CHECKS[name](deployment):
            findings.append(finding)  # one by one: what was found before an error stays found
    except Exception as error:
        # An answer that cannot even be read is a finding, too; no answer is none.
        if isinstance(error, ServiceUnavailable) and error.status is None:
            raise
        why = f"{type(error).__name__}: {error}"
        findings.append(Finding(what="cut short", found=why, allowed=None, passed=False))
    return Report(name, findings, time.monotonic() - begun)
