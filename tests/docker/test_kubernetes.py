"""The manifests for Kubernetes: against its schemas, and against the images and the settings."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from tests.docker.exported import of_api, of_worker
from tests.docker.queries import unknown

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "docker" / "kubernetes"
RELEASES = ["1.30", "1.34", "1.37"]

SCALED_OBJECT = {
    # KEDA's specification of a ScaledObject, as far as it is used here; closed, so that a word
    # that KEDA does not know is noticed.
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "kind": {"type": "string"}},
        },
        "minReplicaCount": {"type": "integer", "minimum": 0},
        "maxReplicaCount": {"type": "integer", "minimum": 1},
        "pollingInterval": {"type": "integer", "minimum": 1},
        "cooldownPeriod": {"type": "integer", "minimum": 0},
        "advanced": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"horizontalPodAutoscalerConfig": {"type": "object"}},
        },
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {
                    "type": {"const": "prometheus"},
                    "metadata": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["serverAddress", "query", "threshold"],
                        "properties": {
                            "serverAddress": {"type": "string"},
                            "query": {"type": "string"},
                            # A string, as all of a trigger's metadata.
                            "threshold": {"type": "string", "pattern": r"^\d+$"},
                        },
                    },
                },
            },
        },
    },
}


def _documents(name: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((FOLDER / name).read_text()) if found]


KUSTOMIZATION = _documents("kustomization.yaml")[0]
MANIFESTS = [document for name in KUSTOMIZATION["resources"] for document in _documents(name)]
PODS = {
    document["metadata"]["name"]: document["spec"]["template"]
    for document in MANIFESTS
    if document["kind"] in ("Deployment", "StatefulSet")
}
SCALING = _documents("worker-scaling.yaml")[0]


def _name(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("document", MANIFESTS, ids=_name)
def test_a_manifest_is_valid(document: dict[str, Any], release: str):
    kubernetes_validate.validate(document, release, strict=True)


def test_a_word_that_kubernetes_does_not_know_is_noticed():
    wrong = MANIFESTS[0] | {"spec": MANIFESTS[0]["spec"] | {"clusterIp": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


def test_the_scaling_is_valid_and_asks_for_metrics_that_exist():
    jsonschema.validate(SCALING["spec"], SCALED_OBJECT)
    behavior = SCALING["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "of-keda"},
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "fokker-worker"},
            "maxReplicas": SCALING["spec"]["maxReplicaCount"],
            "behavior": behavior,
        },
    }
    kubernetes_validate.validate(scaler, RELEASES[-1], strict=True)
    assert SCALING["spec"]["scaleTargetRef"]["name"] in PODS
    query = SCALING["spec"]["triggers"][0]["metadata"]["query"]
    assert unknown(query, [*of_api(), *of_worker()]) == []


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined_and_its_settings_are_known(name: str):
    pod = PODS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    # Else a service named fokker would set FOKKER_PORT.
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    known = {f"FOKKER_{setting.upper()}" for setting in Settings.model_fields}
    given = {entry["name"] for entry in container["env"]}
    assert {entry for entry in given if entry.startswith("FOKKER_")} <= known
    assert {image["name"] for image in KUSTOMIZATION["images"]} >= {container["image"]}


@pytest.mark.parametrize("part", ["redis", "api", "worker"])
def test_a_pod_fits_its_image(part: str):
    text = (ROOT / "docker" / f"Dockerfile.{part}").read_text()
    pod = PODS["redis" if part == "redis" else f"fokker-{part}"]["spec"]
    (container,) = pod["containers"]
    if part != "redis":  # its user has a name there, and a number here
        user, group = re.findall(r"^USER (\d+):(\d+)", text, re.MULTILINE)[0]
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (
            int(user),
            int(group),
        )
        exposed = re.findall(r"^EXPOSE (\d+)", text, re.MULTILINE)
        assert [str(port["containerPort"]) for port in container["ports"]] == exposed
    assert all(mount["mountPath"] in text for mount in container["volumeMounts"])


def test_workers_have_the_time_that_compose_gives_them():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]
    grace = int(compose["stop_grace_period"].removesuffix("s"))
    assert PODS["fokker-worker"]["spec"]["terminationGracePeriodSeconds"] >= grace


def test_the_page_has_every_manifest():
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for path in FOLDER.glob("*.yaml"):
        assert path.name in page
