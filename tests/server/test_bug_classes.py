"""What users of other servers report, tried here; and the page that says where each is tried."""

import gc
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from named_tests import missing, runs
from safetensors.torch import save_file
from wire import WireServer, distance, request

from loramux.v1 import adapter_service_pb2
from loramux_server.engine.blends import EVERYWHERE, Added
from loramux_server.engine.lora_layers import LayerGroup
from loramux_server.requests import BlendEntry, GenerationRequest, Sampler

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "bug-classes.md"
CLASSES = (
    "previous adapter still applied",
    "caches not keyed by adapter",
    "another user's adapter under churn",
    "scale ignored, wrong or applied twice",
    "silent no-op, unread format",
    "memory growth",
    "slow load or switch",
    "compiled and captured engines",
    "deadlock and blocking",
    "concurrency",
    "wrong kernel output",
)
PLAIN = GenerationRequest("a dog", seed=1, steps=4, sampler=Sampler.DDIM)
RESIDENT, IN_A_BLEND = 50, 5
MAX_ROWS = 32  # the server's own on a CPU
SMALL_POOL = 20  # rows of `server_with_a_small_pool`


def blended(*names: str) -> GenerationRequest:
    return replace(PLAIN, blend=tuple(BlendEntry(name, 0.8) for name in names))


def bits(server: Any) -> list[torch.Tensor]:
    """Every weight of the base."""
    return [
        weight.clone() for model in server.app.engine.base.models.values() for weight in model.state_dict().values()
    ]


def test_a_b_a_draws_a_and_the_base_stays_the_base(server: Any) -> None:
    before = bits(server)
    orders = ("", "everything", "attention", "everything", "", "everything attention", "everything", "")
    drawn = [(order, server.draw([blended(*order.split())])[0]) for order in orders]
    first = dict(reversed(drawn))
    assert all(np.array_equal(picture, first[order]) for order, picture in drawn)
    assert len({picture.tobytes() for picture in first.values()}) == len(set(orders)), "an adapter does nothing"
    assert all(map(torch.equal, bits(server), before))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Plenty for tiny bases, and quicker beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def many(server: Any, folder: Path) -> list[Any]:
    """Adapters of ranks 1 to 3 on a few layers."""
    layers = {path: layer.spec.shape for path, layer in server.app.engine.groups["unet.attention"].layers.items()}
    made: list[Any] = []
    for number in range(RESIDENT):
        generator, rank, tensors = torch.Generator().manual_seed(number), 1 + number % 3, dict[str, torch.Tensor]()
        for path, (n, k) in (
            (path, shape) for path, shape in layers.items() if path.endswith(("attn2.to_q", "attn2.to_v"))
        ):
            tensors[f"{path}.lora_A.weight"] = torch.randn(rank, k, generator=generator)
            tensors[f"{path}.lora_B.weight"] = torch.randn(n, rank, generator=generator) / 4
        made.append(SimpleNamespace(name=f"a{number}", file=folder / f"a{number}.safetensors"))
        save_file(tensors, made[-1].file)
    return made


def test_fifty_adapters_are_resident_and_any_five_are_blended_without_a_load(
    make_server: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(tiny_base)
    server.publish(many(server, tmp_path))
    for first in range(0, RESIDENT, IN_A_BLEND):
        server.draw([replace(blended(*(f"a{n}" for n in range(first, first + IN_A_BLEND))), steps=1)])
    assert server.app.metrics.registry.get_sample_value("loramux_adapters_resident", {"tier": "device"}) == RESIDENT
    monkeypatch.setattr(LayerGroup, "write", lambda *_: pytest.fail("an adapter was loaded"))
    asked = [blended(*(f"a{(start + 7 * n) % RESIDENT}" for n in range(IN_A_BLEND))) for start in range(8)]
    together = server.draw(asked)
    assert server.app.metrics.registry.get_sample_value("loramux_distinct_blends_per_forward_max") == len(asked)
    alone = [server.draw([one])[0] for one in asked]
    assert max(map(distance, alone, together)) <= 1
    assert len({picture.tobytes() for picture in alone}) == len(asked)


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """Collecting garbage need not look at what was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def grow_what_grows(server: Any) -> None:
    """Tables of every size of a batch, and the largest buffer of rows side by side of every pool: which of them come,
    and when, is a matter of who meets whom in a forward."""
    for group in server.app.engine.groups.values():
        for width, rows in product((1, 17), range(1, MAX_ROWS + 1)):
            with group.adding([{EVERYWHERE: Added(rows=((0, 1.0),) * width)}] * rows):
                assert group.tables[EVERYWHERE].width == (16 if width == 1 else 32)
        for pool in (layer.pool for layer in group.layers.values() if layer.pool is not None):
            a, _ = pool.gathered(((0, 2),) * (len(pool.a) // 2))
            assert a.shape[0] * a.shape[1] == len(pool.a) == SMALL_POOL


def tensors() -> Counter[str]:
    """Bytes by kind, of all there are."""
    gc.collect()
    found = Counter[str]()
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and not each.is_meta:
            found[f"{each.dtype} {tuple(each.shape)}"] += each.nbytes
    return found


def test_tensors_do_not_pile_up_while_adapters_are_swapped(
    little_garbage: None, server_with_a_small_pool: Any, wait_for: Any
) -> None:
    """A few requests of every kind, then three times as many: blends, evictions, cancels. The long form, on resident
    memory, is `loramux bench soak`."""
    server = server_with_a_small_pool

    def rounds(count: int) -> None:
        for _ in range(count):
            for name in ("everything", "attention", "convolution"):
                gone = server.submit(replace(blended(name), steps=200))
                server.draw([blended(name), PLAIN])
                server.runner.cancel(gone.job.id)
        server.draw([blended("everything")])
        server.forwards.clear()

    def held() -> Counter[str]:
        """Without what the tiers keep of adapters that nobody uses, which depends on what was loaded when."""
        server.app.engine.adapters.evict_unused()
        return tensors()

    rounds(1)
    grow_what_grows(server)
    first = held()
    rounds(3)
    try:
        wait_for(lambda: 0 < held().total() <= first.total())  # threads may hold the last picture for a moment
    except AssertionError:
        pytest.fail(f"more than before: {held() - first}; less: {first - held()}")
    assert server.app.metrics.registry.get_sample_value(
        "loramux_adapter_cache_evictions_total", {"tier": "device", "reason": "room"}
    )


@pytest.fixture
def wired(tmp_path: Path, tiny_base: Path, three_adapters: Any) -> Iterator[WireServer]:
    server = WireServer(tiny_base, tmp_path / "store")
    server.publish(three_adapters(tiny_base, tmp_path, 0.5))
    yield server
    server.close()


def test_calls_to_the_shelf_that_hang_hold_up_no_picture(wired: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """More listings than the shelf has threads, none of which returns."""
    hanging, opened, listing = threading.Event(), threading.Event(), wired.app.store.list_adapters

    def slow(*given: Any, **named: Any) -> Any:
        hanging.set()
        assert opened.wait(20)
        return listing(*given, **named)

    monkeypatch.setattr(wired.app.store, "list_adapters", slow)
    calls = [wired.shelf.ListAdapters.future(adapter_service_pb2.ListAdaptersRequest()) for _ in range(8)]
    assert hanging.wait(20)
    assert wired.draw(request(1, 2)).size and wired.draw(request(2, 2)).size
    assert not any(call.done() for call in calls)
    opened.set()
    assert [len(call.result().adapters) for call in calls] == [3] * 8


def test_loading_patches_nothing_for_other_threads(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders that patch torch while they build models hand other threads layers without memory."""
    loading, seen = threading.Event(), threading.Event()
    write = LayerGroup.write

    def held(self: LayerGroup, *given: Any) -> None:
        loading.set()
        assert seen.wait(20)
        write(self, *given)

    def world() -> tuple[Any, ...]:
        patched = (torch.nn.Module.register_parameter, torch.nn.Module.__init__, torch.nn.init.kaiming_uniform_)
        made = (torch.empty, torch.zeros, torch.tensor, torch.get_default_dtype(), torch.get_default_device())
        return *patched, *made, torch.nn.Linear(2, 2).weight.device

    before = world()
    monkeypatch.setattr(LayerGroup, "write", held)
    with ThreadPoolExecutor(1) as threads:
        drawing = threads.submit(server.draw, [blended("attention")])
        assert loading.wait(20)
        assert world() == before
        seen.set()
        assert drawing.result()


# the page


def test_every_class_of_bugs_is_on_the_page_with_tests_that_run() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.M)
    assert tuple(name for name, *_ in rows) == CLASSES
    for name, seen, why, tests in rows:
        assert len(why) > 40 and re.search(r"[\w./-]+#\d+", seen), name
        assert re.findall(r"`tests/[\w/]+\.py::test_\w+`", tests), f"{name} names no test"
    assert missing(PAGE.read_text(), ROOT) == []


def test_marks_that_keep_a_test_out_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text("@pytest.mark.long\ndef test_a(): ...\n@pytest.mark.timeout(3)\nasync def test_b(): ...\n")
    assert [runs(file, name) for name in ("test_a", "test_b", "test_c")] == [False, True, False]
    file.write_text("pytestmark = pytest.mark.gpu\ndef test_b(): ...\n")
    assert not runs(file, "test_b")
