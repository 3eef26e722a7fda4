"""What is more than rank rows: LoHa, LoKr, full differences, biases, normalisations and DoRA, in pictures.

The reference is dense: W0 + sum_i w_i (W'_i - W0) in float64, by the formula of each family, in diffusers' own models.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import adapter_kinds as kinds
import numpy as np
import pytest
import torch
from dense_reference import Change
from diffusers import UNet2DConditionModel
from every_kind import Shelf, fill
from safetensors.torch import load_file
from torch import Tensor

import loramux_kernels.side
from loramux_server.engine.engine import distinct_blends
from loramux_server.errors import Incompatible
from loramux_server.requests import BlendEntry, GenerationRequest, PartWeights, Sampler

STEPS = 2
ASKED = GenerationRequest(
    "a red apple", negative_prompt="a dog", sampler=Sampler.DDIM, steps=STEPS, guidance_scale=3.0, seed=7
)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, server_class: Any) -> Iterator[Shelf]:
    folder = tmp_path_factory.mktemp("sides")
    server = server_class(str(tiny_base), folder / "store", max_rows=12)
    shelf = Shelf(server, tiny_base, folder)
    fill(shelf)
    put_peft_dora(shelf)
    put_plain(shelf)
    yield shelf
    server.close()


def put_peft_dora(shelf: Shelf) -> None:
    """PEFT's own DoRA on linear layers and convolutions; what it changes is what its own merge makes of the weights."""
    from peft import LoraConfig, get_peft_model

    unet = UNet2DConditionModel.from_pretrained(shelf.base / "unet")
    before = {name: tensor.double() for name, tensor in unet.state_dict().items()}
    torch.manual_seed(5)
    config = LoraConfig(
        r=3, lora_alpha=6, use_dora=True, target_modules=["to_q", "to_v", "conv2"], init_lora_weights=False
    )
    wrapped = get_peft_model(unet, config)
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.rand_like(parameter) + 0.5
    folder = shelf.folder / "peft"
    wrapped.save_pretrained(str(folder))
    changes: dict[str, Change] = {}
    merged: Any = wrapped.merge_and_unload()
    for name, after in merged.state_dict().items():
        if not torch.equal(after.double(), before[name]):
            changes[f"unet.{name}"] = partial(torch.sub, after.double())
    tensors = load_file(folder / "adapter_model.safetensors")
    shelf.put_tensors("dora-peft", tensors, changes, (folder / "adapter_config.json").read_text())


def put_plain(shelf: Shelf) -> None:
    """A LoKr of whole sides, a DoRA and a LoRA, one adapter each, on the same layers: what people blend."""
    paths = [
        path for path, shape in shelf.shapes.items() if path.endswith(("to_q", "to_v", "conv2")) and shape[0] % 8 == 0
    ]
    for name, make in {
        "lokr": kinds.lokr((4, 4), None, None, 7.0),
        "dora": kinds.decomposed(kinds.lora(2, 1.0), "output"),
        "lora": kinds.lora(3, 1.5),
    }.items():
        shelf.put(name, dict.fromkeys(paths, make))


K, OUT, IN, N, P = "kinds", "dora-output", "dora-input", "norms", "dora-peft"
CASES: dict[str, dict[str, Any]] = {
    "kinds": {"blend": (BlendEntry(K, 0.4),)},
    "kinds backwards": {"blend": (BlendEntry(K, -0.3),)},
    "output axis": {"blend": (BlendEntry(OUT, 1.0),)},
    "output axis, in part": {"blend": (BlendEntry(OUT, 0.4),)},
    "input axis": {"blend": (BlendEntry(IN, 0.7),)},
    "PEFT's": {"blend": (BlendEntry(P, 0.8),)},
    "norms": {"blend": (BlendEntry(N, 1.0),)},
    "two of one axis": {"blend": (BlendEntry(OUT, 0.5), BlendEntry(P, -0.4))},
    "both axes": {"blend": (BlendEntry(OUT, 0.5), BlendEntry(IN, 0.6))},
    "everything": {"blend": tuple(BlendEntry(n, w) for n, w in ((K, 0.2), (OUT, 0.3), (IN, -0.2), (N, 0.5), (P, 0.3)))},
    "LoKr, DoRA and LoRA": {"blend": (BlendEntry("lokr", 0.05), BlendEntry("dora", 0.5), BlendEntry("lora", 0.1))},
    "text encoder only": {
        "blend": (BlendEntry(K, 0.5, PartWeights(unet=0.0)), BlendEntry(N, 1.0, PartWeights(unet=0.0)))
    },
    "by block": {
        "blend": (
            BlendEntry(K, 0.3, PartWeights(blocks=(("down.0", 0.0), ("mid", 2.0)))),
            BlendEntry(OUT, 0.5, PartWeights(text_encoder=0.0, blocks=(("up.1", 0.2),))),
        )
    },
    "range": {
        "blend": (
            BlendEntry(K, 0.4, schedule=((0.5, 0.0), (0.5, 1.0))),
            BlendEntry(IN, 0.5, schedule=((0.0, 1.0), (1.0, 0.0))),
        )
    },
    "only negative": {"negative_blend": (BlendEntry(K, 0.4), BlendEntry(OUT, 0.3))},
}


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_pictures_equal_the_dense_reference_all_in_one_stream(shelf: Shelf) -> None:
    dense = shelf.dense()
    asked = [replace(ASKED, **case) for case in CASES.values()]
    drawn = shelf.server.draw(asked)
    (plain,) = shelf.server.draw([ASKED])
    assert len({picture.tobytes() for picture in drawn}) == len(CASES), "two blends draw the same picture"
    for name, request, got in zip(CASES, asked, drawn, strict=True):
        assert distance(got, plain) >= 5, f"{name} does nothing"
        assert distance(got, dense.draw(request)) <= 1, name


def test_every_way_of_being_applied_is_among_them(shelf: Shelf) -> None:
    operations = {
        name: {(m.operation, m.axis, m.kind) for m in published.report.matched}
        for name, published in shelf.reports.items()
    }
    ways = {way for way, _, _ in operations[K]}
    assert ways == {"rows", "rows+bias", "kronecker", "hadamard", "dense", "dense+bias"}
    for operation in ("rows", "kronecker", "dense", "hadamard"):
        assert {kind for way, _, kind in operations[K] if way.startswith(operation)} == {"linear", "conv2d"}, operation
    assert {axis for _, axis, _ in operations[IN]} == {"input", "output"}, "axes are not mixed in one adapter"
    assert {way for way, axis, _ in operations[OUT] if axis == "output"} >= {"rows+bias", "kronecker", "hadamard"}


def test_the_blend_of_three_is_on_the_same_layers(shelf: Shelf) -> None:
    """And each of them acts in it."""
    reports = {name: shelf.reports[name].report.matched for name in ("lokr", "dora", "lora")}
    assert [{(m.operation, m.axis) for m in matched} for matched in reports.values()] == [
        {("kronecker", "")}, {("rows", "output")}, {("rows", "")}
    ]  # fmt: skip
    assert len({tuple(sorted(m.module for m in matched)) for matched in reports.values()}) == 1
    assert {m.kind for m in reports["lokr"]} == {"linear", "conv2d"}
    blend = CASES["LoKr, DoRA and LoRA"]["blend"]
    fewer = [replace(ASKED, blend=tuple(e for e in blend if e != left)) for left in blend]
    (whole, *others) = shelf.server.draw([replace(ASKED, blend=blend), *fewer])
    assert all(distance(whole, other) >= 5 for other in others)


def test_a_picture_without_them_launches_none_and_keeps_its_bits(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    add = loramux_kernels.side._add
    monkeypatch.setattr(loramux_kernels.side, "_add", lambda *given: calls.append(1) or add(*given))
    shelf.server.app.engine.adapters.evict_unused()
    (before,) = shelf.server.draw([ASKED])
    shelf.server.draw([replace(ASKED, **CASES["everything"])])
    assert calls, "nothing was launched for an adapter that has some"
    calls.clear()
    (after,) = shelf.server.draw([ASKED])
    assert not calls and np.array_equal(before, after)


def test_what_is_put_out_leaves_no_memory_behind(shelf: Shelf) -> None:
    engine = shelf.server.app.engine
    engine.adapters.evict_unused()
    layers = [layer for group in engine.groups.values() for layer in (*group.layers.values(), *group.norms.values())]
    room = engine.groups["unet.rest"].rooms["bytes of side operations"]
    assert not any(layer.sides for layer in layers) and room.free == room.capacity
    shelf.server.draw([replace(ASKED, steps=1, **CASES["everything"])])
    taken = room.capacity - room.free
    held = sum(_bytes(operation) for layer in layers for operation in layer.sides.values())
    magnitudes = sum(_scale_bytes(engine, resident.rows) for resident in engine.adapters.device.residents.values())
    assert magnitudes > 0
    held += magnitudes
    assert 0 < held <= taken, "more bytes are held than counted"
    assert taken <= 1.05 * held
    engine.adapters.evict_unused()
    assert not any(layer.sides for layer in layers) and room.free == room.capacity
    assert all(
        group.rooms[name].free == group.rooms[name].capacity for group in engine.groups.values() for name in group.rooms
    )


def _scale_bytes(engine: Any, rows: Any) -> int:
    """fp32 for every channel of every layer of the groups where an adapter has a scale row."""
    return sum(
        4 * sum(layer.weight.shape[dim] for layer in group.layers.values())
        for name, group in engine.groups.items()
        for dim, room in enumerate((" output scales", " input scales"))
        for _ in rows.get(name + room, ())
    )


def _bytes(operation: Any) -> int:
    if isinstance(operation, Tensor):
        return operation.nbytes
    slots = getattr(operation, "__slots__", ())
    return sum(_bytes(getattr(operation, slot)) for slot in slots)


def test_more_side_operations_than_their_memory_are_refused_or_take_turns(
    tiny_base: Path, make_server: Any, tmp_path: Path
) -> None:
    """Refused alone where they can never fit; two that fit one at a time put each other out."""
    server = make_server(tiny_base, side_bytes=40_000)
    shelf = Shelf(server, tiny_base, tmp_path)
    path = next(path for path, shape in shelf.shapes.items() if path.endswith("ff.net.0.proj") and shape == (256, 32))
    shelf.put("one", {path: kinds.full})
    shelf.put("two", {path: kinds.full})
    one, two = (replace(ASKED, blend=(BlendEntry(name, 1.0),), steps=1) for name in ("one", "two"))
    first, second = server.draw([one]), server.draw([two])
    assert not np.array_equal(first, second) and np.array_equal(server.draw([one]), first)
    with pytest.raises(Incompatible, match="67584 bytes of side operations, at most 40000 fits"):
        server.admission.admit(replace(one, blend=(*one.blend, *two.blend)))


def test_bits_do_not_depend_on_the_company(tiny_base: Path, server_class: Any, tmp_path: Path) -> None:
    """With --deterministic, rows with side operations and scales beside rows without."""
    server = server_class(str(tiny_base), tmp_path / "store", deterministic=True, deterministic_rank=64)
    try:
        fill(Shelf(server, tiny_base, tmp_path))
        cases = [{}, *(CASES[name] for name in ("kinds", "output axis", "both axes", "norms", "by block"))]
        asked = [replace(ASKED, **case, guidance_scale=1.0 + at % 2, seed=at) for at, case in enumerate(cases)]
        company = server.draw(asked)
        for request, together in zip(asked, company, strict=True):
            (alone,) = server.draw([request])
            assert np.array_equal(alone, together), request.blend
    finally:
        server.close()


def test_blends_of_side_operations_alone_are_counted() -> None:
    used = ("unet.rest", "", ((1, 0.5),))
    assert distinct_blends({}, 3, [(), (), ()]) == 1
    assert distinct_blends({}, 4, [(), (used,), (), (("unet.rest", "", ((1, 0.6),)),)]) == 3
