"""The bill of materials of the environment that the tests run in, made as `make sbom` makes it."""

import json
import subprocess
import sys
from importlib.metadata import distributions, version
from typing import Any

import dockerfile
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("sbom") / "sbom.json"
    make = ["make", "sbom", "INSTALLED=", f"PY={sys.executable}", f"SBOM={file}"]
    subprocess.run(make, cwd=dockerfile.ROOT, check=True, capture_output=True)
    return file.read_text()


@pytest.fixture(scope="module")
def components(text: str) -> dict[str, dict[str, Any]]:
    bill = json.loads(text)
    return {each["name"].lower(): each for each in (bill["metadata"]["component"], *bill["components"])}


def test_it_is_what_its_schema_says(text: str) -> None:
    """The tool has asked before it wrote, which takes most of its time, so it is not asked again; only what for."""
    assert json.loads(text)["specVersion"] == "1.6"
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str('{"bomFormat": "CycloneDX", "specVersion": "1.6"}') is None
    assert validator.validate_str('{"bomFormat": "CycloneDX", "specVersion": "1.6", "parts": []}') is not None
    assert "validate" not in (dockerfile.ROOT / "deploy" / "image" / "sbom.sh").read_text()


def test_it_names_all_that_is_installed_by_its_version(components: dict[str, dict[str, Any]]) -> None:
    installed = {each.name.lower(): each.version for each in distributions()}
    assert {name: each["version"] for name, each in components.items()} == installed
    assert installed.keys() > {"loramux", "torch", "diffusers", "transformers", "grpcio", "triton"}
    assert components["grpcio"]["purl"] == f"pkg:pypi/grpcio@{version('grpcio')}"


def test_licences_are_named_where_they_are_known(components: dict[str, dict[str, Any]]) -> None:
    """By SPDX, or by the classifier or text that the package itself gives."""

    def names(component: dict[str, Any]) -> set[str]:
        licences = [each.get("license", each) for each in component.get("licenses", [])]
        return {each.get("id") or each.get("name") or each["expression"] for each in licences}

    assert "Apache-2.0" in names(components["loramux"])
    assert "Apache-2.0" in names(components["grpcio"])
    assert all(names(components[name]) for name in ("torch", "diffusers", "transformers", "numpy", "protobuf"))


def test_it_says_what_needs_what(text: str) -> None:
    needs = {each["ref"]: set(each.get("dependsOn", [])) for each in json.loads(text)["dependencies"]}
    assert f"grpcio=={version('grpcio')}" in needs["root-component"]
    assert f"huggingface_hub=={version('huggingface_hub')}" in needs[f"diffusers=={version('diffusers')}"]


def test_the_same_environment_gives_the_same_bytes(text: str) -> None:
    bill = json.loads(text)
    assert "timestamp" not in bill["metadata"] and "serialNumber" not in bill
