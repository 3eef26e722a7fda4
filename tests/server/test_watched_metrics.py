"""Dashboards and alerts look at metrics that exist, by labels and values that exist; and they move with events."""

import re
from pathlib import Path

import pytest
import watching
from workload import Day, label_values, moved, samples

from loramux_server.app import BUILTIN_FOLDER
from loramux_server.metrics import Metrics

NOT_HERE = {"loramux_gpu_memory_bytes"}  # has no series on a CPU


def described() -> dict[str, dict[str, str]]:
    return {each.name: dict(each.labels) for each in Metrics().described}


async def test_all_that_is_watched_moves_and_labels_have_the_values_that_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(tmp_path)
    await day.happens(monkeypatch)
    watched = watching.named()
    assert len(watched) > 30
    assert watched - NOT_HERE - moved(day) == set()
    told, strange = described(), []
    for metric, label, value in label_values(day):
        if label in ("stage", "phase", "tier", "outcome", "kind", "priority", "cache", "what", "service", "action"):
            words = re.split(r"[ ,();]+", told[metric][label])
            strange += [] if value in words else [(metric, label, value)]
    assert strange == []
    _check_adapters(day)
    _check_memory(day)


def _check_adapters(day: Day) -> None:
    """ink, ink, noto, ink were drawn, and the device has room for one of them."""
    drawn = day.seen[0]
    resident = {key[1:] for name, key in drawn if name == "loramux_adapter_resident"}
    found = {(dict(key)["adapter"], dict(key)["tier"]) for key in resident}
    assert found == {("ink", "device"), ("ink", "host"), ("noto", "host")}
    asked = {dict(key)["adapter"]: n for (name, key), n in drawn.items() if name == "loramux_adapter_requests"}
    assert asked == {"ink": 3, "noto": 1, "_other": 0}


def _check_memory(day: Day) -> None:
    taken = {dict(key)["kind"]: size for (name, key), size in day.seen[0].items() if name == "loramux_memory_bytes"}
    assert set(taken) == set(described()["loramux_memory_bytes"]["kind"].split(", ")) and min(taken.values()) > 0
    weights = sum(file.stat().st_size for file in (BUILTIN_FOLDER / "base").rglob("*.safetensors"))
    assert weights <= taken["base"] < 2.5 * weights  # kept in half precision, run in single
    assert taken["pools"] <= 4_100_000 < taken["process"] and taken["base"] < taken["process"]


def test_labels_that_are_asked_for_exist_with_the_values_asked_for() -> None:
    told = described()
    for expression in watching.expressions():
        for name, matchers in watching.selected(expression):
            assert name in told, f"{name} in {expression}"
            for label, operator, value in matchers:
                if label in ("job", "instance"):
                    continue
                assert label in told[name], f"{label} of {name} in {expression}"
                if operator in ("=", "!=") and value != "_other":
                    assert value in re.split(r"[ ,();]+", told[name][label]), f"{label}={value} in {expression}"


def test_labels_that_are_grouped_by_exist() -> None:
    told = described()
    for expression in watching.expressions():
        names = {name for name, _ in watching.selected(expression)}
        known = {label for name in names for label in told[name]} | {"job", "instance", "le", "tier"}
        for labels in re.findall(r"\bby \(([^)]*)\)", expression):
            assert set(re.split(r",\s*", labels)) <= known, expression


def test_what_alerts_wait_for_an_increase_of_begins_at_zero() -> None:
    """A counter whose first sample is a one has never increased, as Prometheus sees it."""
    begun = {(dict(key)["sample"], key): value for (_, key), value in samples(Metrics()).items()}
    for rule in watching.rules():
        if "alert" in rule and "increase(" in rule["expr"]:
            for name, matchers in watching.selected(rule["expr"]):
                wanted = {(label, value) for label, _, value in matchers}
                found = [value for (sample, key), value in begun.items() if sample == name and wanted <= set(key)]
                assert found and set(found) == {0.0}, f"{name} of {rule['alert']}"
