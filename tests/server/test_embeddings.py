"""Embeddings act where the blend lists them and their trigger stands, as in diffusers' pipelines, and nowhere else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from peer_schedulers import peer_scheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loramux_server import messages
from loramux_server.engine.chunks import fill
from loramux_server.engine.engine import _blends
from loramux_server.engine.triggers import split
from loramux_server.errors import Incompatible, InvalidRequest
from loramux_server.parameters import text_of
from loramux_server.requests import BlendEntry, GenerationRequest, LongPrompt, PartWeights, Sampler, TextMode
from loramux_store.record import InterpretOptions, UploadSpec

# PEFT warns of every adapter after the first.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


def drawn(*shape: int, seed: int) -> torch.Tensor:
    """Some ten times as large as the tiny bases' own, so that a picture shows them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


TRIGGERS = {"one": "<cat>", "many": "my style", "bad": "badhands", "word": "apple"}
VECTORS = {
    "one": drawn(32, seed=1),
    "many": drawn(4, 32, seed=2),
    "bad": drawn(2, 32, seed=3),
    "word": drawn(2, 32, seed=4),
}
SECOND = {name: drawn(*vectors.shape[:-1], 40, seed=9) for name, vectors in VECTORS.items()}


def embedding_file(folder: Path, name: str, *, pair: bool) -> Path:
    first, second = (each[name].reshape(-1, each[name].shape[-1]) for each in (VECTORS, SECOND))
    tensors = {"clip_l": first, "clip_g": second} if pair else {"emb_params": first}
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


BUNDLED = ("one", "many")


def bundle_file(folder: Path, lora: Path, *, pair: bool, names: Sequence[str] = BUNDLED) -> Path:
    """A LoRA's file with some embeddings in it too."""
    with safe_open(lora, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(lora)
    for name in names:
        stem, width = f"bundle_emb.{TRIGGERS[name]}", VECTORS[name].shape[-1]
        tensors[f"{stem}.{'clip_l' if pair else 'emb_params'}"] = VECTORS[name].reshape(-1, width)
        if pair:
            tensors[f"{stem}.clip_g"] = SECOND[name].reshape(-1, SECOND[name].shape[-1])
    save_file(tensors, folder / "bundle.safetensors", metadata)
    return folder / "bundle.safetensors"


def publish(server: Any, folder: Path, *, pair: bool = False) -> None:
    for name, trigger in TRIGGERS.items():
        spec = UploadSpec(name, options=InterpretOptions(trigger=trigger))
        server.app.store.publish(embedding_file(folder, name, pair=pair), spec)


class Peer:
    """diffusers' pipeline with LoRA and embeddings loaded by its own loaders: tokens added, tables grown.

    All embeddings are there all the time, so a request must list those whose triggers it writes.
    """

    def __init__(self, base: Path, lora: Any) -> None:
        self.pipe: Any = DiffusionPipeline.from_pretrained(base, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.config = self.pipe.scheduler.config
        self._load(VECTORS, self.pipe.text_encoder, self.pipe.tokenizer)
        if hasattr(self.pipe, "tokenizer_2"):
            self._load(SECOND, self.pipe.text_encoder_2, self.pipe.tokenizer_2)
        self.pipe.load_lora_weights(lora.file, adapter_name=lora.name)

    def _load(self, vectors: Mapping[str, torch.Tensor], encoder: Any, tokenizer: Any) -> None:
        files = [{TRIGGERS[name]: each} for name, each in vectors.items()]
        tokens = [TRIGGERS[name] for name in vectors]
        self.pipe.load_textual_inversion(files, token=tokens, text_encoder=encoder, tokenizer=tokenizer)

    def draw(self, request: GenerationRequest) -> np.ndarray:
        weights = {
            "everything" if entry.adapter == "bundle" else entry.adapter: entry.weight
            for entry in request.blend
            if entry.adapter not in TRIGGERS
        }
        self.pipe.enable_lora() if weights else self.pipe.disable_lora()
        if weights:
            self.pipe.set_adapters(list(weights), list(weights.values()))
        self.pipe.scheduler = peer_scheduler(request, self.config)
        options = {"clip_skip": request.text_mode.clip_skip} if request.text_mode.clip_skip else {}
        side = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        image = self.pipe(
            request.prompt,
            negative_prompt=request.negative_prompt or None,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed or 0),
            width=side,
            height=side,
            **options,
        ).images[0]
        return np.asarray(image)


def distance(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference of any pixel, in 255ths."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


Pair = tuple[Any, Peer]


@pytest.fixture(scope="module")
def pairs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, three_adapters: Any, server_class: Any
) -> Iterator[Callable[[str], Pair]]:
    """Our server and diffusers' pipeline on a base, with the same LoRA and embeddings; each made once."""
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            base, folder = request.getfixturevalue(name), tmp_path_factory.mktemp(name)
            lora = three_adapters(base, folder, 0.5)[0]
            server = server_class(str(base), folder / "store")
            server.publish([lora])
            pair = name == "tiny_sdxl"
            publish(server, folder, pair=pair)
            server.app.store.publish(bundle_file(folder, lora.file, pair=pair), UploadSpec("bundle"))
            made[name] = server, Peer(base, lora)
        return made[name]

    yield pair
    for server, _ in made.values():
        server.close()


ASKED = GenerationRequest("a dog", negative_prompt="a house", sampler=Sampler.DDIM, steps=2, guidance_scale=4, seed=7)


def blend(*names: str, **weights: float) -> tuple[BlendEntry, ...]:
    return tuple(BlendEntry(name, 1.0) for name in names) + tuple(BlendEntry(n, w) for n, w in weights.items())


CASES = {
    "one vector": replace(ASKED, prompt="a red <cat>, big", blend=blend("one")),
    "many vectors": replace(ASKED, prompt="a house in my style", blend=blend("many")),
    "in the negative prompt": replace(ASKED, negative_prompt="badhands, a dog", blend=blend("bad")),
    "a word of the vocabulary": replace(ASKED, prompt="an apple", blend=blend("word")),
    "all at once": replace(
        ASKED, prompt="<cat><cat> and apple in my style", negative_prompt="a badhands dog in my style",
        blend=blend("one", "many", "bad", "word", everything=0.7),
    ),
    "bundled with a LoRA": replace(
        ASKED, prompt="a <cat> in my style", negative_prompt="my style", blend=blend(bundle=0.7)
    ),
    "bundled, beside an embedding": replace(
        ASKED, prompt="a <cat> and an apple", negative_prompt="badhands", blend=blend("word", "bad", bundle=-0.5)
    ),
    "with a layer skipped": replace(
        ASKED, prompt="a <cat> in my style", blend=blend("one", "many"), text_mode=TextMode(clip_skip=1),
        guidance_scale=1.0,  # diffusers skips no layer for the negative prompt
    ),
}  # fmt: skip


@pytest.mark.parametrize("base", ["tiny_base", "tiny_sdxl"])
def test_pictures_equal_the_peers(base: str, pairs: Callable[[str], Pair]) -> None:
    server, peer = pairs(base)
    cases = dict(CASES)
    if base == "tiny_base":
        del cases["with a layer skipped"]  # diffusers 0.42 looks for a level that transformers 5 has no more
    plain = [replace(asked, blend=()) for asked in cases.values()]
    wanted = [peer.draw(request) for request in cases.values()]
    drawn = server.draw([*cases.values(), *plain])
    for name, want, got, off in zip(cases, wanted, drawn[: len(cases)], drawn[len(cases) :], strict=True):
        assert distance(want, off) >= 20, f"{name}: the embedding does not act"
        assert distance(got, want) <= 1, name


def state(server: Any) -> list[Any]:
    """Everything of the text encoders that an embedding might have changed."""
    encoders = server.app.engine.base.text_encoders
    tables = [encoder.model.get_input_embeddings() for encoder in encoders]
    return [
        [dict(encoder.tokenizer.get_vocab()) for encoder in encoders],
        [encoder.tokenizer("a <cat> in my style").input_ids for encoder in encoders],
        [
            (table.num_embeddings, table.weight.detach().numpy().tobytes(), len(table._forward_hooks))
            for table in tables
        ],
    ]


def test_who_does_not_list_it_sees_nothing_of_it(make_server: Any, tiny_base: Path, tmp_path: Path) -> None:
    """The same picture before the upload, after it, and in one forward with those who list it; nothing shared moves."""
    server = make_server(tiny_base, deterministic=True)
    asked = replace(ASKED, prompt="a <cat> and an apple in my style", negative_prompt="badhands")
    before, unchanged = server.draw([asked])[0], state(server)
    publish(server, tmp_path)
    listed = [replace(asked, blend=blend(*names)) for names in (("one",), ("many", "word"), ("one", "bad"))]
    company = server.draw([listed[0], asked, listed[1], asked, listed[2]])
    for index in (1, 3):
        assert np.array_equal(company[index], before)
    assert min(distance(company[index], before) for index in (0, 2, 4)) >= 20
    alone = [server.draw([request])[0] for request in listed]
    assert all(np.array_equal(a, company[i]) for a, i in zip(alone, (0, 2, 4), strict=True))
    assert state(server) == unchanged


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, server_class: Any) -> Iterator[Any]:
    """On the tiny base with all embeddings."""
    folder = tmp_path_factory.mktemp("embeddings")
    server = server_class(str(tiny_base), folder / "store")
    publish(server, folder)
    yield server
    server.close()


@pytest.fixture(scope="module")
def bundles(server: Any, tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, three_adapters: Any) -> Any:
    """The server with a LoRA, and with versions of it that bundle embeddings."""
    folder = tmp_path_factory.mktemp("bundles")
    lora = three_adapters(tiny_base, folder, 0.5)[0]
    server.publish([lora])
    for name, bundled in (("bundle", BUNDLED), ("again", ("many",)), ("other", ("bad",))):
        server.app.store.publish(bundle_file(folder, lora.file, pair=False, names=bundled), UploadSpec(name))
    return server


def encoded(server: Any, request: GenerationRequest) -> torch.Tensor:
    """Embeddings of the prompt alone [1, tokens, width], as the request's picture is given them."""
    job = server.admission.admit(replace(request, guidance_scale=1.0))
    lease = server.app.engine.load(job).result(20)
    with torch.inference_mode():
        text = server.app.engine.conditioner.given(job, _blends(job, lease)).text
    server.app.engine.adapters.release(lease)
    return text


def test_a_weight_multiplies_the_vectors(server: Any, tmp_path: Path) -> None:
    save_file({"emb_params": VECTORS["many"] * 0.5}, tmp_path / "half.safetensors")
    spec = UploadSpec("half", options=InterpretOptions(trigger="my style"))
    server.app.store.publish(tmp_path / "half.safetensors", spec)
    asked = replace(ASKED, prompt="a house in my style")
    whole, half, stored, by_part = (
        encoded(server, replace(asked, blend=(entry,)))
        for entry in (
            BlendEntry("many", 1.0), BlendEntry("many", 0.5), BlendEntry("half", 1.0),
            BlendEntry("many", 2.0, PartWeights(text_encoder=0.25)),
        )
    )  # fmt: skip
    assert torch.equal(half, stored) and torch.equal(half, by_part) and not torch.allclose(half, whole, atol=1e-2)
    off, none = (encoded(server, replace(asked, blend=each)) for each in (blend(many=0.0), ()))
    assert torch.equal(off, none)


def test_brackets_weigh_the_vectors(server: Any) -> None:
    asked = replace(ASKED, blend=blend("many"))
    plain, weighted = (encoded(server, replace(asked, prompt=p)) for p in ("a my style dog", "a (my style:1.5) dog"))
    nothing = encoded(server, replace(ASKED, prompt="", blend=()))
    want = nothing + (plain - nothing) * torch.tensor([1.0, 1.0, *[1.5] * 4, *[1.0] * 71])[None, :, None]
    assert torch.allclose(weighted, want, atol=1e-5) and not torch.allclose(weighted, plain, atol=1e-2)


def test_vectors_are_not_split_over_chunks(server: Any) -> None:
    """73 tokens at most and four vectors: the vectors begin the second chunk."""
    (encoder,) = server.app.engine.base.text_encoders
    start = " ".join(["dog"] * 80)
    while len(encoder.tokenizer(start, add_special_tokens=False).input_ids) > 73:
        start = start.rpartition(" ")[0]
    asked = replace(ASKED, blend=blend("many"))
    whole = encoded(server, replace(asked, prompt=f"{start} my style house"))
    assert whole.shape[1] == 2 * 77
    assert torch.equal(whole, encoded(server, replace(asked, prompt=f"{start} BREAK my style house")))


def test_what_is_bundled_acts_whole_whatever_the_weight(bundles: Any) -> None:
    """As a LoRA of that weight and an embedding of weight 1; where no trigger stands, as the LoRA alone."""
    for weight in (0.3, -1.0):
        asked = replace(ASKED, prompt="a house in my style")
        together = encoded(bundles, replace(asked, blend=blend(bundle=weight)))
        apart = encoded(bundles, replace(asked, blend=blend(many=1.0, everything=weight)))
        assert torch.equal(together, apart)
        alone = encoded(bundles, replace(asked, blend=blend(everything=weight)))
        assert not torch.allclose(alone, together, atol=1e-2)
        silent = replace(ASKED, prompt="a house")
        assert torch.equal(
            encoded(bundles, replace(silent, blend=blend(bundle=weight))),
            encoded(bundles, replace(silent, blend=blend(everything=weight))),
        )


def test_what_is_off_brings_nothing_that_is_bundled(bundles: Any) -> None:
    asked = replace(ASKED, prompt="a house in my style")
    none = encoded(bundles, asked)
    for off in (BlendEntry("bundle", 0.0), BlendEntry("bundle", 1.0, PartWeights(text_encoder=0.0))):
        assert torch.equal(encoded(bundles, replace(asked, blend=(off,))), none)


def test_the_cache_knows_what_is_bundled(bundles: Any) -> None:
    """The same LoRA with and without its embeddings, and one that has others, one after another."""
    asked = replace(ASKED, prompt="a <cat> in my style")
    texts = [encoded(bundles, replace(asked, blend=blend(name))) for name in ("everything", "bundle", "again", "other")]
    assert torch.equal(texts[0], texts[3])
    assert len({text.numpy().tobytes() for text in texts[:3]}) == 3
    again = [encoded(bundles, replace(asked, blend=blend(name))) for name in ("other", "again", "bundle", "everything")]
    assert all(torch.equal(one, other) for one, other in zip(texts, again[::-1], strict=True))


def test_the_cache_knows_whose_vectors_a_token_means(bundles: Any, tmp_path: Path, three_adapters: Any) -> None:
    """Two LoRAs that leave the text encoder alone and bundle other vectors for one token."""
    lora = load_file(three_adapters(Path(bundles.app.settings.base), tmp_path, 0.5)[0].file)
    unet = {name: tensor for name, tensor in lora.items() if "text_encoder" not in name and "lora_te" not in name}
    assert 0 < len(unet) < len(lora)
    for name, seed in (("first", 21), ("second", 22)):
        save_file(unet | {"bundle_emb.<cat>.emb_params": drawn(1, 32, seed=seed)}, tmp_path / f"{name}.safetensors")
        bundles.app.store.publish(tmp_path / f"{name}.safetensors", UploadSpec(name))
    asked = replace(ASKED, prompt="a <cat>")
    texts = [encoded(bundles, replace(asked, blend=blend(name))) for name in ("first", "second", "first")]
    assert torch.equal(texts[0], texts[2]) and not torch.allclose(texts[0], texts[1], atol=1e-2)


def test_what_was_applied_names_the_bundled_embeddings_that_acted(bundles: Any) -> None:
    off = PartWeights(text_encoder=0.0)
    entries = (BlendEntry("bundle", 0.5), BlendEntry("other", 1.0, off), BlendEntry("word", 1.0))
    job = bundles.admission.admit(replace(ASKED, prompt="an apple", blend=entries))
    told = [
        (each.trigger, list(each.bundled_triggers))
        for each in messages.applied(job, bundles.admission.base, "0").adapters
    ]
    assert told == [("", [TRIGGERS[name] for name in BUNDLED]), ("", []), (TRIGGERS["word"], [])]


def test_two_meanings_of_a_token_are_refused(bundles: Any) -> None:
    asked = replace(ASKED, prompt="a house")
    said = (
        "the embedding bundled with again@1 has the trigger 'my style' of blend.entries[0], "
        "the embedding bundled with bundle@1, expected every trigger once"
    )
    with pytest.raises(InvalidRequest) as caught:
        bundles.admission.admit(replace(asked, blend=blend("bundle", "again")))
    assert [(v.field, v.description) for v in caught.value.violations] == [("blend.entries[1].adapter", said)]
    with pytest.raises(InvalidRequest, match=r"bundle@1 has the trigger .my style. of blend.entries.0., many@1"):
        bundles.admission.admit(replace(asked, prompt="my style", blend=blend("many", "bundle")))
    bundles.admission.admit(replace(asked, blend=blend("bundle", "other")))
    text_off = BlendEntry("again", 1.0, PartWeights(text_encoder=0.0))
    bundles.admission.admit(replace(asked, blend=(*blend("bundle"), text_off)))


def test_who_does_not_list_a_bundle_sees_nothing_of_it(bundles: Any) -> None:
    asked = replace(ASKED, prompt="a <cat> in my style", negative_prompt="a <cat>")
    alone = bundles.draw([asked, replace(asked, blend=blend("everything"))])
    mixed = bundles.draw([asked, replace(asked, blend=blend("bundle")), replace(asked, blend=blend("everything"))])
    assert distance(alone[0], mixed[0]) <= 1 and distance(alone[1], mixed[2]) <= 1
    assert distance(mixed[1], mixed[2]) >= 20


def test_a_second_text_encoder_can_be_left_out(pairs: Callable[[str], Pair]) -> None:
    server, _ = pairs("tiny_sdxl")
    asked = replace(ASKED, prompt="a house in my style")
    entry = BlendEntry("many", 1.0, PartWeights(text_encoder_2=0.0))
    both, first, none = (encoded(server, replace(asked, blend=each)) for each in (blend("many"), (entry,), ()))
    assert torch.equal(first[0, 0, 32:], none[0, 0, 32:])
    assert torch.equal(first[0, :, 32:], none[0, : first.shape[1], 32:])
    assert torch.equal(first[..., :32], both[..., :32]) and not torch.equal(first[..., :32], none[..., :32])


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"blend": blend("one")}, "blend.entries[0].adapter", "trigger '<cat>' in prompt or negative_prompt"),
    ({"blend": blend("many"), "prompt": "my styles"}, "blend.entries[0].adapter", "trigger 'my style'"),
    (
        {"blend": blend("bad"), "negative_prompt": "badhands", "negative_blend": ()},
        "blend.entries[0].adapter", "in prompt",
    ),
    ({"prompt": "a <cat>", "negative_blend": blend("one")}, "negative_blend.entries[0].adapter", "in negative_prompt"),
    (
        {"prompt": "dog " * 90 + "<cat>", "blend": blend("one"), "text_mode": TextMode(long_prompt=LongPrompt.CUT)},
        "blend.entries[0].adapter", "expected its trigger",
    ),
    (
        {"prompt": "<cat>", "blend": (BlendEntry("one", schedule=((0.0, 1.0), (1.0, 0.0))),)},
        "blend.entries[0].schedule", "once for all steps",
    ),
    (
        {"prompt": "<cat>", "blend": (BlendEntry("one", parts=PartWeights(unet=0.5)),)},
        "blend.entries[0].part_weights.unet", "text encoders alone",
    ),
    (
        {"prompt": "<cat>", "blend": (BlendEntry("one", parts=PartWeights(blocks=(("mid", 0.5),))),)},
        "blend.entries[0].part_weights.blocks", "text encoders alone",
    ),
    ({"prompt": "my style " * 151, "blend": blend("many")}, "prompt", "takes 9 chunks"),
]  # fmt: skip


@pytest.mark.parametrize("said,field,expected", REFUSED)
def test_what_could_not_act_is_refused(server: Any, said: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(replace(ASKED, **said))
    (violation,) = caught.value.violations
    assert violation.field == field and expected in violation.description


def test_one_trigger_of_two_is_refused(server: Any, tmp_path: Path) -> None:
    save_file({"emb_params": VECTORS["one"][None]}, tmp_path / "other.safetensors")
    server.app.store.publish(tmp_path / "other.safetensors", UploadSpec("x", options=InterpretOptions(trigger="<CAT>")))
    with pytest.raises(InvalidRequest, match=r"the trigger '<CAT>' of blend.entries\[0\]"):
        server.admission.admit(replace(ASKED, prompt="a <cat>", blend=blend("one", "x")))


def test_other_widths_do_not_fit(server: Any, tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "wide.safetensors")
    server.app.store.publish(tmp_path / "wide.safetensors", UploadSpec("wide"))
    with pytest.raises(Incompatible, match="layout sd1"):
        server.admission.admit(replace(ASKED, prompt="wide", blend=blend("wide")))


def test_files_say_which_embeddings_they_were_made_with(server: Any) -> None:
    asked = replace(ASKED, prompt="a <cat>", blend=(BlendEntry("one", 0.5),), negative_prompt="badhands")
    job = server.admission.admit(replace(asked, negative_blend=blend("bad")))
    digests = [server.app.store.resolve(name).blob_digest[:12] for name in ("one", "bad")]
    said = text_of(job, 0, "tiny", "0" * 64, "1")
    assert said.startswith("a <cat>\nNegative prompt: badhands\nSteps")
    assert f'TI hashes: "<cat>: {digests[0]}, badhands: {digests[1]}", TI weights: "<cat>: 0.5", Version' in said
    assert "Lora hashes" not in said


def test_a_blend_of_its_own_reads_the_negative_prompt(server: Any) -> None:
    """Without one, blend reads both texts."""
    asked = replace(ASKED, prompt="a dog", negative_prompt="badhands")
    whole, own, none = server.draw(
        [
            replace(asked, blend=blend("bad")),
            replace(asked, negative_blend=blend("bad")),
            replace(asked, negative_blend=()),
        ]
    )
    assert distance(whole, own) <= 1 and distance(whole, none) >= 20


@pytest.mark.parametrize(
    "text,triggers,parts",
    [
        ("a <cat>,b", ["<cat>"], ["a ", 0, ",b"]),
        ("x<cat>y<cat>", ["<cat>"], ["x", 0, "y", 0]),
        ("My  Style\n my\nstyle", ["my style"], [0, "\n ", 0]),
        ("bad, badly, a_bad, bad2 bad", ["bad"], [0, ", badly, a_bad, bad2 ", 0]),
        ("a a_1 a_1_2", ["a", "a_1"], [0, " ", 1, " a_1_2"]),
        ("bad-hands-5 bad-hands", ["bad-hands", "bad-hands-5"], [1, " ", 0]),
        ("cafe\u0301", ["caf\u00e9"], [0]),
        ("(a|b)", ["(a|b)"], [0]),
        (
            "STRA\u1e9eE \u03a3\u03af\u03c2 \u212a strasse",
            ["stra\u00dfe", "\u03c3\u03af\u03c3", "k"],
            [0, " ", 1, " ", 2, " strasse"],
        ),
        ("a\u00a0\tb a", ["a b", "a bc"], [0, " a"]),
        (" a" * 3, ["a a", "a"], [" ", 0, " ", 1]),
        ("", ["a"], []),
        ("a", [], ["a"]),
    ],
)
def test_triggers_are_words_of_their_own(text: str, triggers: Sequence[str], parts: Sequence[str | int]) -> None:
    assert split(text, triggers) == list(parts)


@given(st.lists(st.sampled_from(["a", "ab", "<x>", " ", ", ", "b c", "Ab"]), max_size=20))
def test_splitting_loses_nothing(words: Sequence[str]) -> None:
    text, triggers = "".join(words), ["ab", "<x>", "b c"]
    parts = split(text, triggers)
    assert "".join(triggers[part] if isinstance(part, int) else part for part in parts).lower() == text.lower()
    assert not any(isinstance(part, str) and "<x>" in part for part in parts)


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(3, 10))
def test_chunks_hold_runs_whole_in_their_order(sizes: Sequence[int], room: int) -> None:
    runs = [[(number, index) for index in range(size)] for number, size in enumerate(sizes)]
    chunks = fill(runs, room)
    assert [item for chunk in chunks for item in chunk] == [item for run in runs for item in run]
    assert all(len(chunk) <= room for chunk in chunks) and (all(chunks) or chunks == [[]])
    for number, size in enumerate(sizes):
        held = sum(any(item[0] == number for item in chunk) for chunk in chunks)
        assert held == 1 or size > room
    for chunk, after in pairwise(chunks):
        number, index = after[0]
        assert len(chunk) == room or (index == 0 and room >= sizes[number] > room - len(chunk))
