"""Every reason of an error stands in docs/errors.md with its code, and a test produces it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from living import Living
from safetensors.torch import save

import loramux_server
from loramux_client import Use
from loramux_client.errors import FailedPrecondition, InvalidArgument, LoraMuxClientError, NotFound, ResourceExhausted

ROOT = Path(loramux_server.__file__).parents[2]
SOURCES = Path(loramux_server.__file__).parent
TABLE = (ROOT / "docs" / "errors.md").read_text("utf-8").partition("## Reasons of files")[0]
ROWS = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \| .* \| `(tests/\S+?)` \|$", TABLE, re.M)
RAISED = {"Incompatible": 0, "OverLimit": 0, "Unknown": 0, "_draw": 0}
"""What takes a reason, and as which argument."""


def test_the_table_has_every_reason_of_the_code() -> None:
    told = {reason: code for reason, code, _ in ROWS}
    raised = set(_raised())
    assert len(raised) >= 8 and set(_described()) | raised == told.keys()
    assert all(told[reason] == code for reason, code in _described().items())


@pytest.mark.parametrize(("reason", "code", "test"), ROWS)
def test_a_test_produces_it(reason: str, code: str, test: str) -> None:
    assert code in grpc.StatusCode.__members__
    assert re.search(rf"""["']{reason}["']""", (ROOT / test).read_text("utf-8"))


def _described() -> dict[str, str]:
    """Reasons that are chosen by the kind of the error, with their codes."""
    tree = ast.parse((SOURCES / "statuses.py").read_text("utf-8"))
    (describe,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_describe"]
    returns = [n.value.elts for n in ast.walk(describe) if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple)]
    return {str(r.value): code.attr for code, r, *_ in returns if isinstance(r, ast.Constant)}


def _raised() -> Iterator[str]:
    """Reasons that errors bring along."""
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in RAISED and node.args and isinstance(node.args[RAISED[name]], ast.Constant):
                    yield node.args[RAISED[name]].value


async def test_what_admission_refuses(tmp_path: Path) -> None:
    """Together on one small server: a rank of 16 in a row, one picture at a time."""
    living = Living(tmp_path, max_queue=1, deterministic=True, deterministic_rank=16)
    await living.start()
    client = living.client

    async def refusal(kind: type[LoraMuxClientError], **asked: Any) -> LoraMuxClientError:
        with pytest.raises(kind) as caught:
            await client.generate("a red apple", steps=2, **asked)
        return caught.value

    width = {"lora_down": (4, 320), "lora_up": (320, 4)}
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    await client.upload(
        save({f"{key}.{part}.weight": torch.ones(shape) for part, shape in width.items()}), "other", layout="sd1"
    )
    error = await refusal(NotFound, adapters={"nobody": 1.0})
    assert error.reason == "ADAPTER_NOT_FOUND" and error.metadata == {"adapter": "nobody"}
    assert (await refusal(FailedPrecondition, adapters={"other": 1.0})).reason == "LAYOUT_MISMATCH"
    assert (await refusal(FailedPrecondition, adapters={"ink": 1.0, "glossy": 1.0})).reason == "BLEND_TOO_LARGE"
    assert (await client.generate("a red apple", steps=2, adapters={"ink": 1.0})).images, "each alone fits"
    for key in (
        "x" * 20_000,
        "x" * 9_000,
        "\N{CJK UNIFIED IDEOGRAPH-732B}" * 5_000,
    ):  # gRPC loses trailers of 8 KiB and more
        error = await refusal(InvalidArgument, adapters=[Use("ink", 1.0, blocks={key: 1.0})])
        assert error.reason == "INVALID_FIELD" and key[:50] in error.violations[0].field
    running = client.stream("a red apple", steps=100)
    await anext(running)
    error = await refusal(ResourceExhausted)
    assert error.reason == "QUEUE_FULL" and (error.retry_after or 0) >= 1
    await running.aclose()
    await living.shut()
