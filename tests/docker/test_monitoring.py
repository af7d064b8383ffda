"""What Prometheus and Grafana are given: rules, scrape targets and the dashboard."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.exported import of_api, of_worker
from tests.docker.queries import selectors, unknown

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "docker" / "prometheus"
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "fokker.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
EXPORTED = [*of_api(), *of_worker()]


def _load(path: str) -> Any:
    return yaml.safe_load((ROOT / "docker" / path).read_text())


RULES = _load("prometheus/alerts.yml")["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DOCUMENTED = re.findall(
    r"```promql\n(.*?)```", (ROOT / "docs" / "metrics.md").read_text(), re.DOTALL
)


def test_a_query_of_nothing_is_noticed():
    assert unknown("rate(fokker_images_total[5m])", EXPORTED) == []
    assert unknown("rate(fokker_images[5m])", EXPORTED) == ["fokker_images"]
    assert unknown('sum(fokker_workers{status="x"})', EXPORTED) == ["fokker_workers{status}"]
    assert unknown("a_bucket / b", EXPORTED) == ["a_bucket", "b"]
    with pytest.raises(ValueError, match="unclosed"):
        selectors("sum(fokker_workers")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_asks_for_metrics_that_exist_and_is_explained(rule: dict[str, Any]):
    assert unknown(rule["expr"], EXPORTED) == []
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert f"**{rule['alert']}**" in guide, "docs/operations.md says what to do"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_every_panel_asks_for_metrics_that_exist(panel: dict[str, Any]):
    assert panel["targets"]
    for target in panel["targets"]:
        assert unknown(target["expr"], EXPORTED) == []
        assert target["datasource"]["uid"] == panel["datasource"]["uid"]


def test_the_dashboard_shows_every_metric():
    asked = {
        selector.series
        for panel in PANELS
        for target in panel["targets"]
        for selector in selectors(target["expr"])
    }
    unseen = {metric.name for metric in EXPORTED if not asked & set(metric.series)}
    assert unseen == {"fokker_build_info"}


@pytest.mark.parametrize("query", [line for block in DOCUMENTED for line in block.split("\n\n")])
def test_the_queries_of_the_page_ask_for_metrics_that_exist(query: str):
    for one in re.split(r"\n(?=\w)", query.strip()):
        assert unknown(one, EXPORTED) == []


def test_the_dashboard_is_one_that_grafana_shows_where_it_is_told_to():
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    source = _load("grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    folder = _load("grafana/provisioning/dashboards/fokker.yml")["providers"][0]["options"]["path"]
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./docker/grafana/dashboards:{folder}:ro" in mounts
    assert source["url"] == "http://prometheus:9090"


def test_prometheus_asks_the_containers_where_they_serve_metrics():
    config = _load("prometheus/prometheus.yml")
    assert config["rule_files"] == ["alerts.yml"]
    asked = {
        job["job_name"]: (found["names"], found["port"])
        for job in config["scrape_configs"]
        for found in job["dns_sd_configs"]
    }
    services = COMPOSE["services"]
    api, worker = services["api"], services["worker"]
    assert asked["fokker-api"] == (["api"], int(api["environment"]["FOKKER_PORT"]))
    aliases = worker["networks"]["backend"]["aliases"]
    port = int(worker["environment"]["FOKKER_WORKER_METRICS_PORT"])
    assert asked["fokker-worker"] == (aliases, port)
    assert services["worker-gpu"]["networks"]["backend"]["aliases"] == aliases


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "arguments",
    [["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]],
    ids=lambda arguments: arguments[0],
)
def test_promtool_finds_nothing_wrong(arguments: list[str]):
    ran = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = [
        case for test in _load("prometheus/alerts.test.yml")["tests"]
        for case in test["alert_rule_test"]
    ]  # fmt: skip
    for rule in RULES:
        of_rule = [case for case in cases if case["alertname"] == rule["alert"]]
        assert any(case.get("exp_alerts") for case in of_rule), rule["alert"]
        assert any(not case.get("exp_alerts") for case in of_rule), rule["alert"]
