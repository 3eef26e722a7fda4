"""Rules, their own tests, and dashboards. What they name is compared with the server in tests/server."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import watching
import yaml
from prometheus_client import generate_latest

from loramux_server.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not here, so rules were NOT tested: apt-get install prometheus"
)


def _promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, cwd=watching.RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_rules_are_rules() -> None:
    _promtool("check", "rules", watching.RULES)


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    _promtool("test", "rules", "loramux.rules.test.yaml")


@needs_promtool
def test_prometheus_reads_its_configuration(tmp_path: Path) -> None:
    for file in (watching.RULES, watching.DEPLOY / "compose" / "prometheus.yaml"):
        shutil.copy(file, tmp_path)
    _promtool("check", "config", tmp_path / "prometheus.yaml")


@needs_promtool
@pytest.mark.parametrize("dashboard", watching.dashboards(), ids=lambda path: path.name)
def test_every_expression_of_a_dashboard_parses(dashboard: Path, tmp_path: Path) -> None:
    """As rules, which promtool parses; what Grafana fills in is filled in."""
    made = [
        {"record": f"panel:{panel['id']}:{target['refId']}", "expr": _filled(target["expr"])}
        for panel in watching.panels(dashboard)
        for target in panel["targets"]
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": made}]}))
    _promtool("check", "rules", file)


def _filled(expression: str) -> str:
    filled = expression.replace("$__rate_interval", "1m").replace("$job", "loramux").replace("$instance", ".+")
    assert "$" not in filled, expression
    return filled


@needs_promtool
def test_names_and_types_are_as_prometheus_wants_them() -> None:
    metrics = Metrics(adapter_series=1)
    metrics.adapters.count(["ink"])
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_alert_is_tested_both_ways() -> None:
    tested = yaml.safe_load((watching.RULES.parent / "loramux.rules.test.yaml").read_text())["tests"]
    cases = [(case["alertname"], bool(case["exp_alerts"])) for test in tested for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in watching.rules() if "alert" in rule}
    assert {name for name, fires in cases if fires} == alerts
    assert {name for name, fires in cases if not fires} >= alerts - {"LoramuxFaultsSlow"} and len(alerts) == 17


def test_every_alert_says_how_bad_it_is_and_has_a_section_on_what_to_do() -> None:
    sections = re.findall(r"^#### (\w+)$", (ROOT / "docs/operations.md").read_text(), re.M)
    alerts = [rule for rule in watching.rules() if "alert" in rule]
    assert sorted(sections) == sorted(rule["alert"] for rule in alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_recorded_names_that_are_used_are_recorded() -> None:
    recorded = {rule["record"] for rule in watching.rules() if "record" in rule}
    used = {name for each in watching.expressions() for name in re.findall(r"\bloramux:[\w:]+", each)}
    assert used == recorded


@pytest.mark.parametrize("dashboard", watching.dashboards(), ids=lambda path: path.name)
def test_a_dashboard_is_one_that_grafana_shows(dashboard: Path) -> None:
    shown = json.loads(dashboard.read_text())
    ids = [panel["id"] for panel in shown["panels"]]
    assert len(set(ids)) == len(ids) > 20
    names = {variable["name"] for variable in shown["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(shown["panels"]))) - {"__rate_interval"}
    assert used <= names
    places = set[tuple[int, int]]()
    for panel in shown["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not covered & places, f"{panel['title']} lies over another panel"
        places |= covered


def test_files_of_deploy_in_documents_exist() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *watching.DEPLOY.rglob("*.yaml")]
    named = {name for file in documents for name in re.findall(r"(?<!tests/)\bdeploy/[\w./-]*\w", file.read_text())}
    assert named
    made = {"deploy/compose/certificates", "deploy/compose/tokens.toml"}  # by commands that name them
    assert [name for name in sorted(named - made) if not (ROOT / name).exists()] == []
