"""Manifests: by Kubernetes' own schemas, and by what this server needs of them."""

import re
from pathlib import Path
from typing import Any

import dockerfile
import kubernetes_validate
import pytest
import yaml

from loramux_server.settings import PREFIX, Settings

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
GPU = FOLDER.with_name("kubernetes-gpu")
VERSION = "1.33"
OTHERS = {"ServiceMonitor", "ScaledObject"}  # of operators, whose schemas are theirs


def documents() -> list[dict[str, Any]]:
    files = [file for file in sorted(FOLDER.glob("*.yaml")) if file.name != "kustomization.yaml"]
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def one(kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents() if document["kind"] == kind)
    return found


def pod() -> dict[str, Any]:
    return one("StatefulSet")["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return found


def settings() -> dict[str, str]:
    return {each["name"]: each["value"] for each in container()["env"]}


@pytest.mark.parametrize(
    "document", [each for each in documents() if each["kind"] not in OTHERS], ids=lambda d: d["kind"]
)
def test_kubernetes_knows_every_field(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_a_wrong_field_would_be_seen() -> None:
    wrong = one("StatefulSet")
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_every_file_is_applied_or_named_as_an_addition() -> None:
    text = (FOLDER / "kustomization.yaml").read_text()
    listed = {*yaml.safe_load(text)["resources"], *re.findall(r"# - (\S+)", text)}
    assert listed == {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}


def test_settings_exist_and_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: value for name, value in settings().items() if name.startswith(PREFIX)}
    made = Settings.model_validate({name.removeprefix(PREFIX).lower(): value for name, value in own.items()})
    assert made.tls_cert is not None and made.tokens is not None
    assert pod()["enableServiceLinks"] is False, "LORAMUX_PORT of a service would be taken for a setting"


def test_pictures_that_run_at_a_stop_may_end() -> None:
    linger, drain = (float(settings()[f"LORAMUX_{name}_SECONDS"]) for name in ("LINGER", "DRAIN"))
    readiness = container()["readinessProbe"]
    unready = readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"]
    assert linger > unready, "calls must come in until balancers have noticed"
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before > 0 and pod()["terminationGracePeriodSeconds"] > before + linger + drain


def test_probes_ask_what_they_are_for() -> None:
    paths = {name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    startup = container()["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    ports = {port["name"] for port in container()["ports"]}
    assert {container()[f"{name}Probe"]["httpGet"]["port"] for name in paths} <= ports


def test_the_server_has_no_more_rights_than_it_needs() -> None:
    security = container()["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod()["securityContext"]["runAsNonRoot"] and not pod()["automountServiceAccountToken"]
    rights = pod()["securityContext"]
    users = {f"{rights[user]}:{rights[group]}" for user in ("runAsUser",) for group in ("runAsGroup", "fsGroup")}
    assert users == {dockerfile.last(target, "USER") for target in dockerfile.TARGETS}


@pytest.mark.parametrize("target", dockerfile.TARGETS)
def test_the_image_is_one_that_is_built_and_what_it_writes_to_is_mounted(target: str) -> None:
    (renamed,) = yaml.safe_load((GPU / "kustomization.yaml").read_text())["images"]
    names = {"cpu": container()["image"], "cuda": f"{renamed['name']}:{renamed['newTag']}"}
    assert names[target] == dockerfile.tag(target) and container()["image"].startswith(f"{renamed['name']}:")
    mounts = {mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")}
    assert mounts == {*dockerfile.volumes(target), "/tmp"}


def test_what_is_mounted_is_there_and_files_of_settings_are_mounted() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in one("StatefulSet")["spec"]["volumeClaimTemplates"]}
    assert set(mounts) == claims | {volume["name"] for volume in pod()["volumes"]}
    for name, value in settings().items():
        if value.startswith("/"):
            assert any(value.startswith(path + "/") for path in mounts.values()), name


def test_labels_and_ports_find_each_other() -> None:
    labels = one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    service = one("Service")
    assert service["spec"]["clusterIP"] == "None" and one("StatefulSet")["spec"]["serviceName"] == "loramux"
    ports = {port["name"] for port in container()["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    selectors = [
        one("StatefulSet")["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    monitor = one("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "loramux", "the alerts know the job by this name"
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_what_scales_is_there_and_a_server_is_full_long_after() -> None:
    scaled = one("ScaledObject")["spec"]
    assert scaled["scaleTargetRef"] == {"kind": "StatefulSet", "name": one("StatefulSet")["metadata"]["name"]}
    (trigger,) = scaled["triggers"]
    assert int(trigger["metadata"]["threshold"]) * 4 <= Settings().max_queue
    assert scaled["minReplicaCount"] >= 1 and scaled["maxReplicaCount"] > scaled["minReplicaCount"]


def test_what_changes_for_a_gpu_stands_beside_what_it_changes() -> None:
    """kustomize refuses a folder whose base contains it."""
    (base,) = yaml.safe_load((GPU / "kustomization.yaml").read_text())["resources"]
    assert (GPU / base).resolve() == FOLDER and FOLDER not in GPU.parents


def test_the_patches_for_a_gpu_change_what_is_there() -> None:
    (patch,) = yaml.safe_load((GPU / "kustomization.yaml").read_text())["patches"]
    target = one(patch["target"]["kind"])
    assert target["metadata"]["name"] == patch["target"]["name"]
    for operation in yaml.safe_load(patch["patch"]):
        *way, last = (part.replace("~1", "/") for part in operation["path"].split("/")[1:])
        place: Any = target
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if last == "-":
            place.append(operation["value"])
        else:
            place[last] = operation["value"]
    kubernetes_validate.validate(target, VERSION, strict=True)
    assert settings().keys() < {each["name"] for each in target["spec"]["template"]["spec"]["containers"][0]["env"]}
