"""What is asked of Prometheus under deploy/: expressions of rules and dashboards, and the metrics they name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "loramux.rules.yaml"
_SELECTED = re.compile(r"\b((?:loramux|grpc_server)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)$")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboards() -> list[Path]:
    return sorted((DEPLOY / "grafana").glob("*.json"))


def panels(dashboard: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Of rules, dashboards and whatever scales the server."""
    yield from (rule["expr"] for rule in rules())
    for dashboard in dashboards():
        yield from (target["expr"] for panel in panels(dashboard) for target in panel["targets"])
    for document in yaml.safe_load_all((DEPLOY / "kubernetes" / "scaling.yaml").read_text()):
        yield from (trigger["metadata"]["query"] for trigger in document["spec"]["triggers"])


def selected(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Metrics of an expression, without what histograms append, each with its matchers: label, operator, value."""
    bare = re.sub(r"\bloramux:[\w:]+", "", re.sub(r"\b(by|without|on|ignoring) \([^)]*\)", "", expression))
    for name, matchers in _SELECTED.findall(bare):
        yield _OF_HISTOGRAMS.sub("", name), _MATCHER.findall(matchers)


def named() -> set[str]:
    return {name for expression in expressions() for name, _ in selected(expression)}
