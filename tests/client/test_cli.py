"""The command line: what it sends, prints and exits with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # pyright: ignore[reportMissingTypeStubs]

from loramux.v1 import adapter_pb2, generation_pb2
from loramux_client import cli
from loramux_client.commands import installed
from loramux_client.commands.generate import numbered
from loramux_client.errors import InvalidArgument
from loramux_client.pictures import Use
from loramux_client.settings import DEFAULT_SERVER, read_settings
from loramux_client.shelf import name_of
from loramux_client.terminal import plain


async def run(server: Any, *arguments: str) -> int:
    return await asyncio.to_thread(cli.main, [*arguments, "--server", server.target])


# Arguments.


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("ink", Use("ink")),
        ("ink=0.8", Use("ink", 0.8)),
        ("ink@3=-1", Use("ink@3", -1.0)),
        ("ink@stable", Use("ink@stable")),
    ],
)
def test_a_use_reads_name_version_weight(text: str, use: Use) -> None:
    assert Use.parse(text) == use


@pytest.mark.parametrize("text", ["", "=1", "ink=", "ink=much", "ink=0.8=1"])
def test_a_use_refuses_the_rest(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no adapter|is not a number"):
        Use.parse(text)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ink.safetensors", "ink"),
        ("/a/My Ink (v2)!.safetensors", "my-ink-v2"),
        ("_x_.safetensors", "x"),
        ("a" * 63 + "-bc.safetensors", "a" * 63),
    ],
)
def test_a_files_name_becomes_a_valid_one(file: str, name: str) -> None:
    assert name_of(file) == name


def test_a_file_without_a_usable_name_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        name_of("墨.safetensors")


def test_the_server_is_named_by_the_environment() -> None:
    assert read_settings({}).server == read_settings({"LORAMUX_SERVER": ""}).server
    assert read_settings({}).server == DEFAULT_SERVER
    assert read_settings({"LORAMUX_SERVER": "h:1"}).server == "h:1"
    assert read_settings({"LORAMUX_WHO": "ann"}).who == "ann" and read_settings({"LORAMUX_WHO": ""}).who is None


def test_several_pictures_are_numbered() -> None:
    assert numbered(Path("d/a.png"), 0, 1) == Path("d/a.png")
    assert numbered(Path("d/a.png"), 2, 3) == Path("d/a-2.png")


def test_control_characters_never_reach_the_terminal() -> None:
    assert plain("a\x1b[31m\nb") == "a [31m b"


# Commands.


@pytest.mark.parametrize(
    "name,format",
    [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.safetensors", "LATENTS"), ("a.png", "PNG")],
)
async def test_the_files_name_says_its_format(server: Any, tmp_path: Path, name: str, format: str) -> None:
    options = [
        "--quality",
        "70",
        "--no-parameters",
        "--plain",
        "--clip-skip",
        "1",
        "--sigmas",
        "karras",
        "--priority",
        "batch",
    ]
    assert await run(server, "generate", "a cat", *options, "-o", str(tmp_path / name)) == 0
    (request,) = server.requests
    assert request.image_format == getattr(generation_pb2, f"IMAGE_FORMAT_{format}")
    assert request.quality == 70 and request.omit_parameters and request.clip_skip == 1
    assert request.prompt_syntax == generation_pb2.PROMPT_SYNTAX_PLAIN
    assert request.sigma_schedule == generation_pb2.SIGMA_SCHEDULE_KARRAS
    assert request.priority == generation_pb2.PRIORITY_BATCH


async def test_generate_writes_pictures_and_says_what_was_applied(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "a.png"
    options = ["--adapter", "ink@2=0.5", "--adapter", "noto", "--seed", "7", "--num-images", "2"]
    sampling = ["--steps", "3", "--guidance", "2", "--sampler", "euler-a", "--negative", "dog"]
    status = await run(server, "generate", "a cat", *options, *sampling, "-o", str(output))
    assert status == 0
    request = server.requests[0]
    assert (request.prompt, request.negative_prompt, request.seed) == ("a cat", "dog", 7)
    assert [(e.adapter, e.weight) for e in request.blend.entries] == [("ink@2", 0.5), ("noto", 0)]
    assert not request.blend.entries[1].HasField("weight")
    assert not request.HasField("width")
    assert sorted(p.name for p in output.parent.iterdir()) == ["a-0.png", "a-1.png"]
    assert (output.parent / "a-1.png").read_bytes() == b"\x89PNG picture\x01"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("applied ink@2=0.5 (dddddddddddd) + noto@2=0")
    assert "seed 7" in last


async def test_generate_draws_over_an_image(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    image.write_bytes(b"picture")
    mask.write_bytes(b"stencil")
    options = ["--image", str(image), "--mask", str(mask), "--strength", "0.5", "--mask-blur", "4"]
    assert await run(server, "generate", "a cat", *options, "-o", str(tmp_path / "a.png")) == 0
    (request,) = server.requests
    assert (request.image, request.mask, request.strength, request.mask_blur) == (b"picture", b"stencil", 0.5, 4)
    over, mask_digest = (sha256(data).hexdigest()[:12] for data in (b"picture", b"stencil"))
    said = f"64x64, over {over} at strength 0.5, mask {mask_digest} blurred by 4, base"
    assert said in capsys.readouterr().out


async def test_generate_tells_sizes(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--original-size", "512x384", "--crop", "0,8", "--negative-target-size", "64x48"]
    assert await run(server, "generate", "a cat", *options, "-o", str(tmp_path / "a.png")) == 0
    told, negative = server.requests[0].size_conditioning, server.requests[0].negative_size_conditioning
    assert (told.original_width, told.original_height, told.crop_left, told.crop_top) == (512, 384, 0, 8)
    assert told.HasField("crop_left") and not told.HasField("target_width")
    assert (negative.target_width, negative.target_height) == (64, 48) and not negative.HasField("crop_left")
    assert ", told 512x384 cut at 0,8 to 0x0, base" in capsys.readouterr().out
    assert await run(server, "generate", "a cat", "--crop", "8", "-o", str(tmp_path / "a.png")) != 0
    assert "'8' is not of the form 1024x768 or 0,0" in capsys.readouterr().err


async def test_push_reports_what_was_taken(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, config = tmp_path / "Ink.safetensors", tmp_path / "adapter_config.json"
    file.write_bytes(b"bytes")
    config.write_text('{"r": 8}')
    notes = ["--label", "by=me", "--label", "a=b=c", "--trigger-word", "inky", "--description", "d"]
    reading = ["--adapter-config", str(config), "--alpha", "4", "--default-weight", "0.5"]
    assert await run(server, "adapters", "push", str(file), *notes, *reading) == 0
    spec = server.requests[0]
    assert (spec.name, spec.peft_config, spec.alpha) == ("ink", '{"r": 8}', 4)
    assert dict(spec.labels) == {"by": "me", "a": "b=c"}
    assert (spec.default_weight, list(spec.trigger_words), spec.description) == (0.5, ["inky"], "d")
    shown = capsys.readouterr()
    assert "pushed ink@1" in shown.out
    assert "acts on 1 modules, rank 8" in shown.out
    assert "loha as rows, decomposed by output: 1" in shown.out
    assert "ignored k: r" in shown.out
    assert "warning: look" in shown.err


async def test_push_says_what_lies_beside_the_file(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "Ink.safetensors"
    file.write_bytes(b"bytes")
    (tmp_path / "Ink.civitai.info").write_text('{"trainedWords": ["inky", "brush"], "baseModel": "SD 1.5"}')
    (tmp_path / "Ink.json").write_text("{")
    assert await run(server, "adapters", "push", str(file), "--base-model", "mine") == 0
    spec = server.requests[-1]
    assert (list(spec.trigger_words), spec.base_model) == (["inky", "brush"], "mine")
    shown = capsys.readouterr()
    assert "trigger words of Ink.civitai.info: inky, brush" in shown.out and "base model" not in shown.out
    assert "warning: Ink.json: no JSON" in shown.err
    assert await run(server, "adapters", "push", str(file), "--trigger-word", "own") == 0
    assert list(server.requests[-1].trigger_words) == ["own"]


async def test_pull_writes_the_file(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.file = b"some bytes"
    server.file_digest = sha256(server.file).hexdigest()
    out = tmp_path / "mine.safetensors"
    assert await run(server, "adapters", "pull", "ink@2", "-o", str(out)) == 0
    assert out.read_bytes() == server.file
    assert f"pulled ink@2 (dddddddddddd) to {out}" in capsys.readouterr().out


async def test_pull_names_the_file_after_the_adapter(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.file_digest = sha256(server.file).hexdigest()
    monkeypatch.chdir(tmp_path)
    assert await run(server, "adapters", "pull", "ink@2") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ink.safetensors"]


async def test_push_of_an_embedding_tells_its_trigger(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "emb.safetensors"
    file.write_bytes(b"bytes")
    assert await run(server, "adapters", "push", str(file), "--trigger", "<cat>") == 0
    assert server.requests[0].trigger == "<cat>" and not server.requests[0].trigger_words
    said = "embedding of 4 vectors, width 24 in text_encoder, 40 in text_encoder_2; acts where '<cat>' stands"
    assert said in capsys.readouterr().out


async def test_embeddings_are_shown_as_such(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.names[:] = ["emb", "ink"]
    assert await run(server, "adapters", "list") == 0
    titles, first, second = capsys.readouterr().out.splitlines()
    assert "kind" in titles and "embedding  4 vectors" in first and "<cat>, w" in first
    assert "lora" in second and "embedding" not in second
    assert await run(server, "adapters", "show", "emb") == 0
    shown = capsys.readouterr().out
    assert "trigger words   <cat>, w" in shown and "4 vectors  embedding  <cat>" in shown
    assert await run(server, "adapters", "show", "emb", "--json") == 0
    version = json.loads(capsys.readouterr().out)["versions"][0]
    assert version["kind"] == "embedding" and version["embedding"]["widths"] == {
        "text_encoder": 24,
        "text_encoder_2": 40,
    }


async def test_generate_says_where_an_embedding_acted(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blend = ["--adapter", "emb=0.5", "--adapter", "ink=1"]
    assert await run(server, "generate", "a <cat>", *blend, "-o", str(tmp_path / "a.png")) == 0
    said = capsys.readouterr().out
    assert f"emb@2=0.5 ({'d' * 12}) at '<cat>'" in said and f"ink@2=1 ({'d' * 12})," in said


@pytest.mark.parametrize("file,name", [("ink.safetensors", "ink"), ("日本.safetensors", "check")])
async def test_a_dry_run_publishes_nothing(server: Any, tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_bytes(b"bytes")
    assert await run(server, "adapters", "push", str(tmp_path / file), "--dry-run") == 0
    assert server.requests[0].validate_only and server.requests[0].name == name


async def test_list_shows_every_page(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "adapters", "list") == 0
    table = capsys.readouterr().out
    assert all(name in table for name in server.names)
    assert await run(server, "adapters", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed] == server.names
    assert listed[0]["latest_version"]["digest"] == "d" * 64
    assert listed[0]["create_time"] == "2001-09-09T01:46:40+00:00"


async def test_show_lists_versions(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "adapters", "show", "ink") == 0
    assert "trigger words   w" in capsys.readouterr().out
    assert await run(server, "adapters", "show", "ink", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [version["number"] for version in shown["versions"]] == [5, 4, 3, 2, 1]


async def test_list_passes_on_what_is_asked(server: Any) -> None:
    chosen = ["--filter", "kind=lora x", "--order", "create_time desc", "--deleted"]
    assert await run(server, "adapters", "list", *chosen) == 0
    request = server.requests[0]
    assert (request.filter, request.order_by, request.show_deleted) == ("kind=lora x", "create_time desc", True)


async def test_show_of_an_alias_shows_its_version(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "adapters", "show", "ink@prod") == 0
    said = capsys.readouterr().out
    assert "aliases         prod=1" in said and "licence         CC0" in said and "4.9 KiB" in said
    assert "trigger words   w (the file's ss_dataset_dirs)" in said
    assert len(server.requests) == 1


async def test_update_changes_what_is_said_and_keeps_the_rest(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["--label", "a=b=c", "--alias", "next=2", "--trigger-word", "one two", "--description", "", "--licence", "x"]
    assert await run(server, "adapters", "update", "ink", *said) == 0
    assert capsys.readouterr().out == "updated ink\n"
    request = server.requests[-1]
    paths = ["aliases", "description", "labels", "licence", "trigger_words"]
    assert sorted(request.update_mask.paths) == paths and request.adapter.etag == "e-1"
    assert dict(request.adapter.labels) == {"k": "v", "a": "b=c"}
    assert dict(request.adapter.aliases) == {"prod": 1, "next": 2}
    assert list(request.adapter.trigger_words) == ["one two"] and request.adapter.licence == "x"


async def test_update_takes_away(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["--remove-label", "k", "--remove-alias", "prod", "--clear-trigger-words", "--clear-default-weight"]
    assert await run(server, "adapters", "update", "ink", *said) == 0
    request = server.requests[-1]
    assert sorted(request.update_mask.paths) == ["aliases", "default_weight", "labels", "trigger_words"]
    assert (dict(request.adapter.labels), dict(request.adapter.aliases)) == ({}, {})
    assert not request.adapter.HasField("default_weight") and not request.adapter.trigger_words
    assert await run(server, "adapters", "update", "ink") == 0
    assert "nothing to change of ink" in capsys.readouterr().out
    assert server.requests[-1].DESCRIPTOR.name == "GetAdapterRequest"


async def test_undelete_puts_back(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "adapters", "undelete", "ink") == 0
    assert server.requests[0].name == "ink"
    assert capsys.readouterr().out == "put back ink\n"


async def test_pins_are_set_taken_back_and_shown(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "adapters", "preload", "ink@prod", "--tier", "host") == 0
    assert await run(server, "adapters", "pin", "ink") == 0
    assert await run(server, "adapters", "unpin", "ink") == 0
    assert capsys.readouterr().out == ("ink@2 is in the tier host\npinned ink to the tier device\nunpinned ink\n")
    assert [request.adapter for request in server.requests] == ["ink@prod", "ink", "ink"]
    assert server.requests[1].tier == adapter_pb2.TIER_DEVICE
    assert await run(server, "adapters", "show", "ink") == 0
    said = capsys.readouterr().out
    assert "pins            device, @prod=host\n" in said and "now in          host\n" in said
    assert await run(server, "adapters", "list") == 0
    assert "device, @prod=host" in capsys.readouterr().out


async def test_log_shows_the_newest(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "adapters", "log", "--most", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[1].split() == ["-", "ann", "upload", "a5@1", "d"]
    assert await run(server, "adapters", "log", "ink", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["who"] == "ann"
    assert server.requests[-1].adapter == "ink"


async def test_rm_deletes(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "adapters", "rm", "ink") == 0
    assert server.requests[0].name == "ink"
    assert capsys.readouterr().out == "removed ink\n"


async def test_info_shows_the_server(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "info") == 0
    shown = capsys.readouterr().out
    assert "limits.max_side" in shown and "text_widths.text_encoder_2 40" in " ".join(shown.split())
    assert await run(server, "info", "--json") == 0
    assert json.loads(capsys.readouterr().out)["base"] == "tiny"


async def test_healthcheck_tells_by_its_status(server: Any) -> None:
    assert await run(server, "healthcheck") == 0
    assert await run(server, "healthcheck", "--service", "down") == 1
    assert await asyncio.to_thread(cli.main, ["healthcheck", "--server", "127.0.0.1:1"]) == 1


# Failures.


async def test_a_refusal_is_one_line_and_one_for_each_violation(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="steps", description="too many")
    bad = error_details_pb2.BadRequest(field_violations=[violation])
    server.fail(grpc.StatusCode.INVALID_ARGUMENT, "steps is 999", bad)
    assert await run(server, "generate", "x", "--steps", "999") == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["loramux: steps is 999", "  steps: too many"]
    assert shown.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["generate"],
        ["generate", "x", "--adapter", "ink=much"],
        ["generate", "x", "--sampler", "plms"],
        ["generate", "x", "-o", "a.gif"],
        ["generate", "x", "--steps", "many"],
        ["adapters", "push", "f", "--label", "nothing"],
        ["adapters", "update", "x", "--alias", "prod=latest"],
        ["adapters", "log", "--most", "0"],
        ["adapters", "pin", "x", "--tier", "disk"],
        ["adapters", "bogus"],
    ],
)
def test_misuse_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("loramux: ")


async def test_a_missing_file_is_one_line(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(server, "adapters", "push", "/nowhere/x.safetensors") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "/nowhere/x.safetensors" in line


async def test_ctrl_c_cancels_the_call_and_exits_with_130(server: Any, tmp_path: Path) -> None:
    server.steps_before_hanging = 1
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # a shell's background jobs are born with the signal ignored
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    code += "from loramux_client.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "generate", "x"]
    process = subprocess.Popen(
        [*command, "--server", server.target],
        cwd=tmp_path,
        env=where,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await asyncio.wait_for(server.started.wait(), 60)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(server.cancelled.wait(), 60)
        _, shown = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert shown == "loramux: interrupted\n"


# Commands of other packages.

PLUGIN = '''
import sys
sys.modules["loaded-by-a-test"] = sys
def serve(*, port: int = 1) -> int:
    """Serve, really."""
    return port
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Entry points: one that works, one that needs what is not installed."""
    (tmp_path / "loramux_plugin.py").write_text(PLUGIN)
    (tmp_path / "loramux_lacking.py").write_text("import no_such_package_at_all\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    points = [
        EntryPoint(name="serve", value="loramux_plugin:serve", group=installed.GROUP),
        EntryPoint(name="train", value="loramux_lacking:train", group=installed.GROUP),
    ]
    monkeypatch.setattr(installed, "entry_points", lambda group: points)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    yield
    for name in ("loramux_plugin", "loramux_lacking", "loaded-by-a-test"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("plugins")
def test_installed_commands_are_listed_without_being_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--help"]) == 0
    assert cli.main(["bogus"]) == 2
    shown = capsys.readouterr().out
    assert "Serve pictures over gRPC." in shown
    assert "train" in shown
    assert "loramux_plugin" not in sys.modules


@pytest.mark.usefixtures("plugins")
def test_an_installed_command_reads_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--port", "7"]) == 7
    assert cli.main(["serve", "--port", "seven"]) == 2
    assert cli.main(["serve", "--help"]) == 0
    assert "Serve, really." in capsys.readouterr().out


@pytest.mark.usefixtures("plugins")
def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no_such_package_at_all" in line
    assert "pip install 'loramux[lacking]'" in line


@pytest.mark.parametrize("tool", ["check", "export", "merge", "fsck", "gc"])
def test_the_stores_tools_say_what_they_need(
    tool: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "loramux_server.shelf_commands", None)
    assert cli.main(["adapters", tool, "--help"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"`loramux adapters {tool}` needs" in line
    assert "pip install 'loramux[server]'" in line


# The plain install.


def test_the_client_imports_nothing_heavy_and_help_is_quick() -> None:
    code = (
        "import sys, loramux_client.cli as cli; status = cli.main(['--help']);"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'loramux_server',"
        " 'loramux_store', 'loramux_kernels', 'loramux_train', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: loramux" in done.stdout
    # 0.35 s on an idle core; the bound is for a busy one.
    assert time.monotonic() - begun < 5
