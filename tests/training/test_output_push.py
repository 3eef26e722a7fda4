"""Trained adapters get on a shelf: of a server that draws with them, or of a store's folder."""

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image
from served import served
from trained_factors import PROGRESS, facts, trained
from transformers import CLIPTextModel

from loramux_client import Client
from loramux_store import Layout, ModuleSpec, Store, known_layout
from loramux_train.output.adapter_file import Form, save_adapter
from loramux_train.output.base_layout import layout_of
from loramux_train.output.errors import PushFailed
from loramux_train.output.push import Destination, Item, check_push, push

BASE = Path(__file__).parents[2] / "server/loramux_server/builtin/base"


@pytest.fixture(scope="module")
def layout() -> Layout:
    unet: Any = UNet2DConditionModel.from_pretrained(BASE / "unet")
    return layout_of({"unet": unet, "text_encoder": CLIPTextModel.from_pretrained(BASE / "text_encoder")}, "builtin")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with served(tmp_path_factory.mktemp("server") / "store") as address:
        yield address


def save(layout: Layout, target: Path, form: Form = "kohya", ends: str = "attn2.to_k", name: str = "ink") -> Item:
    paths = [path for path in layout.modules if path.endswith(ends)]
    saved = save_adapter(trained(layout, paths, size=0.5), layout, facts(), PROGRESS, form, "fp16", target)
    *config, file = saved.files
    return Item(name, file, *config)


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_a_server_draws_with_what_was_pushed(server: str, layout: Layout, tmp_path: Path, form: Form) -> None:
    to, told = Destination(f"ink-{form}", server=server, who="trainer"), list[tuple[int, int]]()
    saved = save(layout, tmp_path / "ink", form, name=to.name)
    assert check_push(to, [saved]) == ""
    pushed = push(saved, to, layout, lambda done, size: told.append((done, size)))
    assert (pushed.ref, pushed.created, pushed.warnings) == (f"ink-{form}@1", True, ())
    again = push(saved, to, layout)
    assert (again.ref, again.created, again.digest) == (pushed.ref, False, pushed.digest)
    assert told and told[-1][0] == told[-1][1]
    with Client(server) as client:
        assert client.get_adapter(to.name).trigger_words == ("zib style",)
        asking = {"seed": 3, "steps": 2}
        plain = client.generate("a fox", **asking).images[0].data
        drawn = client.generate("a fox", adapters={to.name: 1.0}, **asking).images[0].data
    one, other = (np.asarray(Image.open(io.BytesIO(data)), dtype=int) for data in (plain, drawn))
    assert np.abs(one - other).max() > 5


def test_a_refusal_says_why_and_where_the_file_is(server: str, tmp_path: Path) -> None:
    other = known_layout("sd1")
    saved = save(other, tmp_path / "a.safetensors")
    stranger = Layout("other", {"unet.conv_in": ModuleSpec("conv2d", (8, 4, 3, 3))})
    with pytest.raises(PushFailed, match=r"one of .*builtin") as refused:
        push(saved, Destination("ink", server=server), stranger)
    assert str(saved.file) in str(refused.value) and saved.file.is_file()
    with Client(server) as client:
        assert "ink" in {adapter.name for adapter in client.list_adapters()}  # the built-in one, and no more of it
        assert len(list(client.list_versions("ink"))) == 1


def test_a_server_that_is_down_is_told_before_and_after(layout: Layout, tmp_path: Path) -> None:
    with socket.socket() as free:  # bound, not listening: nobody else gets it meanwhile
        free.bind(("127.0.0.1", 0))
        to = Destination("ink", server=f"127.0.0.1:{free.getsockname()[1]}")
        saved = save(layout, tmp_path / "a.safetensors")
        assert f"the server at {to.server} does not answer now" in check_push(to, [saved])
        with pytest.raises(PushFailed) as failed:
            push(saved, to, layout, retries=0)
    for part in (f"the server at {to.server}", str(saved.file), "loramux adapters push", "--name ink"):
        assert part in str(failed.value)
    assert saved.file.is_file()


def test_into_a_stores_folder(layout: Layout, tmp_path: Path) -> None:
    """One that did not know the base."""
    to = Destination("ink", store=tmp_path / "store")
    file = save(layout, tmp_path / "a.safetensors")
    assert check_push(to, [file]) == ""
    first = push(file, to, layout)
    second = push(save(layout, tmp_path / "a.safetensors", ends="attn2.to_v"), to, layout)
    assert (first.ref, second.ref) == ("ink@1", "ink@2")
    with Store.open(tmp_path / "store") as store:
        version = store.resolve("ink")
        assert version.number == 2 and version.layout_digest == layout.digest
        assert {module.module.rsplit(".")[-1] for module in version.report.matched} == {"to_v"}


def test_a_base_that_is_called_like_a_known_one(tmp_path: Path) -> None:
    shape = ModuleSpec("linear", (8, 8))
    layout = Layout("sd1", {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": shape})
    saved = save(layout, tmp_path / "a.safetensors")
    assert push(saved, Destination("ink", store=tmp_path / "store"), layout).ref == "ink@1"


def test_what_cannot_be_pushed_is_told_before_training(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(PushFailed, match="'Ink!'"):
        check_push(Destination("Ink!", store=tmp_path), [Item("Ink!", tmp_path)])
    with pytest.raises(PushFailed, match=r"the new word '<日>': .*'ink-日'"):
        check_push(Destination("ink", store=tmp_path), [Item("ink", tmp_path), Item("ink-日", tmp_path, word="<日>")])
    with pytest.raises(PushFailed, match="the store"):
        push(save(layout, tmp_path / "a"), Destination("ink", store=Path("/dev/null/store")), layout)
