"""The set-up for trying out: its script, its files, its settings."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dockerfile
import pytest
import yaml
from cryptography import x509

from loramux_server.settings import PREFIX, Settings
from loramux_server.tls import read_identity

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "compose"
MADE = {"certificates", "tokens.toml"}  # by the commands that compose.yaml begins with


def services() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here, so the script was NOT run")
def test_the_script_makes_certificates_that_the_server_takes(tmp_path: Path) -> None:
    script = FOLDER / "certificates.sh"
    assert os.access(script, os.X_OK)
    subprocess.run([script, tmp_path / "made", "gallery.example"], check=True, capture_output=True)
    made = Settings(tls_cert=tmp_path / "made/tls.crt", tls_key=tmp_path / "made/tls.key")
    identity = read_identity(made)
    assert identity is not None
    certificate = x509.load_pem_x509_certificate((tmp_path / "made/tls.crt").read_bytes())
    authority = x509.load_pem_x509_certificate((tmp_path / "made/ca.crt").read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "loramux", "gallery.example"]
    assert (tmp_path / "made/ca.key").stat().st_mode & 0o077 == 0
    assert {file.name for file in (tmp_path / "made").iterdir()} == {"ca.crt", "ca.key", "tls.crt", "tls.key"}


def test_settings_exist_and_name_what_is_mounted() -> None:
    server = services()["loramux"]
    assert all(name.startswith(PREFIX) for name in server["environment"])
    given = {name.removeprefix(PREFIX).lower(): value for name, value in server["environment"].items()}
    made = Settings.model_validate(given)
    mounts = [mount.split(":")[1] for mount in server["volumes"]]
    for file in (made.tls_cert, made.tls_key, made.tokens):
        assert any(str(file).startswith(path) for path in mounts)
    assert int(server["stop_grace_period"].removesuffix("s")) > made.linger_seconds + made.drain_seconds
    assert server["read_only"] and server["cap_drop"] == ["ALL"]


def test_the_server_is_an_image_that_is_built_and_what_it_writes_to_is_mounted() -> None:
    server, change = services()["loramux"], yaml.safe_load((FOLDER / "gpu.yaml").read_text())["services"]["loramux"]
    for target, found in (("cpu", server), ("cuda", {**server, **change})):
        assert (found["image"], found["build"]["target"]) == (dockerfile.tag(target), target)
        mounts = {mount.split(":")[1] for mount in server["volumes"] if not mount.endswith(":ro")}
        assert {*mounts, *server["tmpfs"]} == {*dockerfile.volumes(target), "/tmp"}
    assert (FOLDER / server["build"]["context"] / "Dockerfile").samefile(dockerfile.ROOT / "Dockerfile")
    (asked,) = change["deploy"]["resources"]["reservations"]["devices"]
    assert asked == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert Settings.model_validate({"device": change["environment"]["LORAMUX_DEVICE"]}).device == "cuda"


def test_files_that_are_mounted_are_there_and_ports_stay_on_this_machine() -> None:
    for service in services().values():
        for source in (mount.split(":")[0] for mount in service["volumes"]):
            if source.startswith("."):
                name = (FOLDER / source).resolve()
                assert name.exists() or name.name in MADE, source
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    ignored = (FOLDER / ".gitignore").read_text().split()
    assert {name.strip("/") for name in ignored} == MADE


def test_each_finds_the_other() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target == f"loramux:{Settings().metrics_port}" and target.partition(":")[0] in services()
    (source,) = yaml.safe_load((FOLDER / "grafana-datasources.yaml").read_text())["datasources"]
    assert source["url"].removeprefix("http://").partition(":")[0] in services()
    (provider,) = yaml.safe_load((FOLDER / "grafana-dashboards.yaml").read_text())["providers"]
    mounted = dict(mount.split(":")[:2] for mount in services()["grafana"]["volumes"])
    assert mounted["../grafana"] == provider["options"]["path"]
