"""docs/metrics.md has every metric that is exported, as it is exported, and no other."""

import re
from pathlib import Path

import pytest

from tests.docker.exported import Exported, of_api, of_worker

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "metrics.md").read_text()

PER_JOB = {"job_id", "id", "job", "owner", "request_id"}


def _row(metric: Exported) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |"


def _rows(text: str) -> list[str]:
    return re.findall(r"^\| `fokker_.*$", text, re.MULTILINE)


@pytest.mark.parametrize("of", [of_api, of_worker])
def test_every_metric_is_documented_as_it_is_exported(of):
    of_the_api, of_a_worker = PAGE.split("## Of a worker")
    documented = _rows(of_the_api if of is of_api else of_a_worker)
    assert sorted(documented) == sorted(map(_row, of()))


def test_no_metric_has_a_label_that_grows_with_use():
    for metric in [*of_api(), *of_worker()]:
        assert metric.name.startswith("fokker_")
        assert not PER_JOB & set(metric.labels), metric.name
