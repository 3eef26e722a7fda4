"""SD 2, SDXL and latent consistency models: pictures equal those of diffusers' own pipelines, in any company."""

import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peer_schedulers import peer_scheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from loramux.v1 import generation_pb2
from loramux_server import messages
from loramux_server.engine.blends import PlacedBlend
from loramux_server.engine.conditioning import guidance_embedding
from loramux_server.engine.load_base import load_base
from loramux_server.engine.lora_layers import wrap
from loramux_server.errors import InvalidRequest
from loramux_server.parameters import text_of
from loramux_server.requests import (
    AskedSizes,
    BlendEntry,
    GenerationRequest,
    LongPrompt,
    PartWeights,
    Sampler,
    SizeConditioning,
    TextMode,
)
from loramux_store.layout import Layout, known_layout

# PEFT warns of every adapter after the first.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")

NAMES = ("everything", "attention", "convolution")
BLEND = tuple(BlendEntry(name, weight) for name, weight in zip(NAMES, (0.7, -0.4, 0.9), strict=True))
LONG = ", ".join(f"a {color} {thing}" for color in ("red", "blue", "green") for thing in ("apple", "dog", "house") * 4)


class Peer:
    """diffusers' pipeline of the base's own class, with adapters loaded by its own loader."""

    def __init__(self, base: Path, adapters: Sequence[Any]) -> None:
        self.pipe = DiffusionPipeline.from_pretrained(base, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.config = self.pipe.scheduler.config
        for adapter in adapters:
            self.pipe.load_lora_weights(adapter.file, adapter_name=adapter.name)

    def draw(self, request: GenerationRequest) -> np.ndarray:
        assert request.sampler is not None and request.seed is not None
        self.pipe.scheduler = peer_scheduler(request, self.config)
        if request.blend:
            self.pipe.enable_lora()
            self.pipe.set_adapters([e.adapter for e in request.blend], [self._weight(e) for e in request.blend])
        else:
            self.pipe.disable_lora()
        options: dict[str, Any] = {"clip_skip": request.text_mode.clip_skip} if request.text_mode.clip_skip else {}
        if "negative_prompt" in inspect.signature(self.pipe.__call__).parameters:
            options["negative_prompt"] = request.negative_prompt or None
        for prefix, sizes in (("", request.sizes), ("negative_", request.negative_sizes)):
            if sizes is not None:
                options |= {
                    f"{prefix}original_size": (sizes.original_height, sizes.original_width),
                    f"{prefix}crops_coords_top_left": (sizes.crop_top, sizes.crop_left),
                    f"{prefix}target_size": (sizes.target_height, sizes.target_width),
                }
        side = self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        return np.asarray(
            self.pipe(
                request.prompt,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(request.seed),
                width=request.width or side,
                height=request.height or side,
                **options,
            ).images[0]
        )

    def _weight(self, entry: BlendEntry) -> dict[str, float]:
        weight, parts = entry.weight or 0.0, entry.parts
        factors = {"unet": parts.unet, "text_encoder": parts.text_encoder, "text_encoder_2": parts.text_encoder_2}
        return {part: weight * factor for part, factor in factors.items() if part in self.pipe.components}


def distance(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference of any pixel, in 255ths."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


Pair = tuple[Any, Peer]


@pytest.fixture(scope="module")
def pairs(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, three_adapters: Any, server_class: Any
) -> Iterator[Any]:
    """Our server and diffusers' pipeline on a base, with the same adapters; each made once."""
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            base, folder = request.getfixturevalue(name), tmp_path_factory.mktemp(name)
            adapters = three_adapters(base, folder, 0.5)
            server = server_class(str(base), folder / "store", max_rows=12)
            server.publish(adapters)
            made[name] = server, Peer(base, adapters)
        return made[name]

    yield pair
    for server, _ in made.values():
        server.close()


ASKED = GenerationRequest("a red apple", negative_prompt="a dog", sampler=Sampler.DDIM, steps=5, seed=7)
SAMPLERS = {
    "tiny_sd2": (Sampler.DDIM, Sampler.PNDM, Sampler.DPMPP_2M, Sampler.EULER_ANCESTRAL),
    "tiny_sdxl": (Sampler.DDIM, Sampler.EULER, Sampler.DPMPP_2M, Sampler.EULER_ANCESTRAL, Sampler.HEUN, Sampler.UNIPC),
    "tiny_lcm": (Sampler.LCM,),
}


@pytest.mark.parametrize(
    "base,sampler",
    [
        pytest.param(base, sampler, marks=pytest.mark.long if number > 1 else ())
        for base, each in SAMPLERS.items()
        for number, sampler in enumerate(each)
    ],
)
def test_pictures_equal_the_peers(base: str, sampler: Sampler, pairs: Any) -> None:
    """No adapter, each alone, and all blended; guided and not; each adapter seen."""
    server, peer = pairs(base)
    blends = [(), *((BlendEntry(name, 1.0),) for name in NAMES), BLEND]
    asked = [
        replace(ASKED, sampler=sampler, blend=blend, guidance_scale=guidance) for blend in blends for guidance in (4, 1)
    ]
    wanted = [peer.draw(request) for request in asked]
    plain = dict(zip((4, 1), wanted, strict=False))
    for request, want in zip(asked[2:], wanted[2:], strict=True):
        assert distance(want, plain[int(request.guidance_scale or 0)]) >= 10, request.blend
    for request, got, want in zip(asked, server.draw(asked), wanted, strict=True):
        assert distance(got, want) <= 1, request


TEXT_ENCODERS = {"tiny_sd2": ("text_encoder",), "tiny_sdxl": ("text_encoder", "text_encoder_2")}


@pytest.mark.parametrize("base", TEXT_ENCODERS)
def test_each_part_takes_adapters_and_has_its_own_weight(base: str, pairs: Any) -> None:
    server, peer = pairs(base)
    off = {part: 0.0 for part in ("unet", *TEXT_ENCODERS[base])}
    parts = [PartWeights(**{**off, part: factor}) for part in off for factor in (1.0, -1.7)]
    asked = [
        replace(
            ASKED, blend=(BlendEntry("everything", 1.0, each), BlendEntry("attention", 0.8, each)), guidance_scale=4
        )
        for each in parts
    ]
    plain, *drawn = server.draw([replace(ASKED, guidance_scale=4), *asked])
    assert len({picture.tobytes() for picture in drawn}) == len(parts)
    for request, got in zip(asked, drawn, strict=True):
        assert distance(got, plain) >= 5, f"{request.blend[0].parts} does nothing"
        assert distance(got, peer.draw(request)) <= 1, request.blend[0].parts


@pytest.mark.parametrize(
    "change",
    [
        {"negative_prompt": ""},  # zeros on SDXL, as diffusers has it where none is given
        {"negative_prompt": "", "guidance_scale": 1.0},
        {"width": 72, "height": 56},
        {"width": 32, "height": 64, "guidance_scale": 1.0},
    ],
    ids=str,
)
def test_empty_prompts_and_other_sizes_equal_the_peers_on_sdxl(change: dict[str, Any], pairs: Any) -> None:
    server, peer = pairs("tiny_sdxl")
    request = replace(ASKED, **{"guidance_scale": 4, "blend": BLEND, **change})
    (got,) = server.draw([request])
    assert distance(got, peer.draw(request)) <= 1


TOLD = AskedSizes(20, 96, 7, 0, 64, 40)
OTHER = AskedSizes(300, 200, 0, 60, 48, 33)


@pytest.mark.parametrize(
    "sizes,negative,guidance",
    [(TOLD, None, 4), (OTHER, None, 1), (TOLD, OTHER, 4), (AskedSizes(32, 32, 0, 0, 32, 32), OTHER, 4)],
)
def test_what_sdxl_is_told_of_sizes_equals_the_peers(
    sizes: AskedSizes, negative: AskedSizes | None, guidance: float, pairs: Any
) -> None:
    server, peer = pairs("tiny_sdxl")
    plain = replace(ASKED, blend=BLEND, guidance_scale=guidance, width=48)
    asked = replace(plain, sizes=sizes, negative_sizes=negative)
    want = peer.draw(asked)
    assert distance(want, peer.draw(plain)) >= 5, "the sizes do nothing"
    company = replace(plain, seed=8, sizes=OTHER)
    got, _, by_default = server.draw([asked, company, plain])
    assert distance(got, want) <= 1 and distance(by_default, peer.draw(plain)) <= 1


def test_sizes_that_are_left_open_are_the_pictures(pairs: Any) -> None:
    server, _ = pairs("tiny_sdxl")
    job = server.admission.admit(replace(ASKED, width=48, sizes=AskedSizes(crop_top=3, original_width=9)))
    assert job.sizes == SizeConditioning(9, 32, 0, 3, 48, 32) and job.negative_sizes == job.sizes
    job = server.admission.admit(replace(ASKED, width=48, negative_sizes=AskedSizes(target_height=5)))
    assert job.sizes == SizeConditioning(48, 32, 0, 0, 48, 32)
    assert job.negative_sizes == SizeConditioning(48, 32, 0, 0, 48, 5)
    unguided = server.admission.admit(replace(ASKED, guidance_scale=1.0, negative_sizes=OTHER))
    assert unguided.sizes is not None and unguided.negative_sizes is None


def test_sizes_out_of_range_or_on_another_base_are_refused(pairs: Any) -> None:
    server, _ = pairs("tiny_sdxl")
    wrong = replace(
        ASKED, sizes=AskedSizes(original_width=0, crop_left=-1), negative_sizes=AskedSizes(target_height=65536)
    )
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(wrong)
    assert {violation.field: violation.description for violation in caught.value.violations} == {
        "size_conditioning.original_width": "is 0, expected 1 to 65535",
        "size_conditioning.crop_left": "is -1, expected 0 to 65535",
        "negative_size_conditioning.target_height": "is 65536, expected 1 to 65535",
    }
    server, _ = pairs("tiny_sd2")
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(replace(ASKED, sizes=AskedSizes(), negative_sizes=TOLD))
    assert [violation.field for violation in caught.value.violations] == [
        "size_conditioning",
        "negative_size_conditioning",
    ]
    assert server.admission.admit(ASKED).sizes is None


def test_sizes_come_back_and_are_written_into_the_file(pairs: Any) -> None:
    server, _ = pairs("tiny_sdxl")
    message = generation_pb2.GenerateRequest(prompt="a dog", steps=1, seed=1, guidance_scale=4)
    message.size_conditioning.original_width = 20
    message.negative_size_conditioning.crop_top = 6
    job = server.admission.admit(messages.generation_request(message))
    applied = messages.applied(job, server.admission.base, "1")
    told, negative = applied.size_conditioning, applied.negative_size_conditioning
    assert (told.original_width, told.original_height, told.crop_top, negative.crop_top) == (20, 32, 0, 6)
    text = text_of(job, 0, "base", "d" * 64, "1")
    assert 'Size conditioning: "20x32 0,0 32x32; negative 32x32 0,6 32x32"' in text
    plain = server.admission.admit(GenerationRequest("a dog"))
    assert "Size conditioning" not in text_of(plain, 0, "base", "d" * 64, "1")
    assert messages.applied(plain, server.admission.base, "1").size_conditioning.target_width == 32
    other, _ = pairs("tiny_sd2")
    applied = messages.applied(other.admission.admit(GenerationRequest("a dog")), other.admission.base, "1")
    assert not applied.HasField("size_conditioning") and not applied.HasField("negative_size_conditioning")


def test_an_empty_negative_prompt_is_zeros_on_sdxl_and_text_elsewhere(pairs: Any) -> None:
    for base, zero in (("tiny_sdxl", True), ("tiny_sd2", False)):
        server, _ = pairs(base)
        job = server.admission.admit(replace(ASKED, negative_prompt="", guidance_scale=4))
        given = server.app.engine.conditioner.given(job, [PlacedBlend(())] * 2)
        assert bool(given.text[0].any()) is not zero and given.text[1].any()
        assert (given.pooled is not None) is zero


@pytest.mark.parametrize("skipped", [0, 1, 2])
@pytest.mark.parametrize("base", ["tiny_sd2", "tiny_sdxl"])
def test_skipped_layers_equal_the_peers(base: str, skipped: int, pairs: Any) -> None:
    """On SDXL they count from the layer before the last. diffusers skips none for the negative prompt: no guidance."""
    server, peer = pairs(base)
    if base == "tiny_sd2":  # diffusers reaches for the level that transformers 5 builds CLIP without
        peer.pipe.text_encoder.__dict__["text_model"] = peer.pipe.text_encoder
    request = replace(ASKED, blend=BLEND, guidance_scale=1, text_mode=TextMode(clip_skip=skipped))
    if base == "tiny_sdxl" and skipped == 2:  # its first text encoder has three layers
        with pytest.raises(InvalidRequest, match="clip_skip: is 2, expected 0 to 1"):
            server.admission.admit(request)
        return
    (got,) = server.draw([request])
    assert distance(got, peer.draw(request)) <= 1


def test_skipping_more_layers_than_there_are_is_one_violation(pairs: Any) -> None:
    server, _ = pairs("tiny_sdxl")
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(replace(ASKED, text_mode=TextMode(clip_skip=9), prompt=LONG * 9))
    assert [violation.field for violation in caught.value.violations] == ["clip_skip", "prompt"]


def test_the_second_encoders_weight_needs_a_second_encoder(pairs: Any) -> None:
    server, _ = pairs("tiny_sd2")
    with pytest.raises(InvalidRequest) as caught:
        server.admission.admit(replace(ASKED, blend=(BlendEntry("attention", 1.0, PartWeights(text_encoder_2=0.5)),)))
    (violation,) = caught.value.violations
    assert violation.field == "blend.entries[0].part_weights.text_encoder_2"
    assert violation.description == "is given, this base has one text encoder"


def encode(server: Any, texts: Sequence[str], mode: TextMode = TextMode()) -> Any:  # noqa: B008
    with torch.inference_mode():
        return server.app.engine.conditioner.encode([(text, PlacedBlend(())) for text in texts], mode)


def test_long_and_weighted_prompts_go_through_both_encoders(pairs: Any) -> None:
    server, _ = pairs("tiny_sdxl")
    one, two = (encoder.width for encoder in server.app.engine.base.text_encoders)
    long, pooled = encode(server, [LONG, "a dog"])
    cut, pooled_cut = encode(server, [LONG], TextMode(long_prompt=LongPrompt.CUT))
    assert long.shape[1] >= 2 * 77 and long.shape[2] == one + two
    assert torch.equal(long[:1, :77], cut) and torch.equal(pooled[:1], pooled_cut), "pooled is not the first chunk's"
    dog, pooled_dog = encode(server, ["a dog"])
    nothing, _ = encode(server, [""])
    assert torch.equal(long[1:, :77], dog) and torch.equal(long[1:, 77:154], nothing)
    assert torch.equal(pooled[1:], pooled_dog)
    plain, pooled_plain = encode(server, ["a red apple"])
    weighted, pooled_weighted = encode(server, ["a (red:1.5) apple"])
    for part in (slice(0, one), slice(one, None)):
        moved = weighted[:, 2, part] - nothing[:, 2, part]
        assert torch.allclose(moved, 1.5 * (plain[:, 2, part] - nothing[:, 2, part]), atol=1e-5)
        assert moved.abs().max() > 0.1
    assert torch.equal(pooled_weighted, pooled_plain)


def test_every_sdxl_picture_is_the_same_alone_and_in_company(pairs: Any) -> None:
    """Prompts of one to three chunks, blends, parts, sizes of guidance, all at once."""
    server, _ = pairs("tiny_sdxl")
    dice = random.Random(5)

    def one(seed: int) -> GenerationRequest:
        names = dice.sample(NAMES, dice.choice([0, 1, 2, 3]))
        parts = PartWeights(text_encoder=dice.choice([0.0, 1.0]), text_encoder_2=dice.choice([0.0, 1.0]))
        return GenerationRequest(
            dice.choice(["a red apple", LONG, "a dog BREAK a (house:1.4)"]),
            negative_prompt=dice.choice(["", "a cat", LONG]),
            blend=tuple(BlendEntry(name, dice.choice([-0.6, 0.3, 1.0]), parts) for name in names),
            sampler=dice.choice([Sampler.DDIM, Sampler.EULER, Sampler.DPMPP_2M, Sampler.LCM]),
            steps=dice.randint(2, 5),
            guidance_scale=dice.choice([1.0, 2.0, 5.0]),
            seed=seed,
        )

    asked = [one(seed) for seed in range(40)]
    server.draw([replace(ASKED, blend=BLEND, steps=1)])  # brings the adapters in
    server.forwards.clear()
    lengths: list[int] = []
    forward = server.app.engine._forward
    server.app.engine._forward = lambda rows: (
        lengths.append(len({row.given.text.shape[1] for row in rows})),
        forward(rows),
    )[1]
    company = server.draw(asked)
    server.app.engine._forward = forward
    ranks = [set(zip(*(table.nrank.tolist() for table in tables.values()), strict=True)) for tables in server.forwards]
    assert np.mean([len(each) >= 3 for each in ranks]) >= 0.8, "the forwards did not mix blends"
    assert np.mean([each >= 2 for each in lengths]) >= 0.5, "the forwards did not mix lengths"
    alone = [server.draw([request])[0] for request in asked]
    assert len({picture.tobytes() for picture in alone}) == len(asked)
    assert max(distance(a, c) for a, c in zip(alone, company, strict=True)) <= 1


@pytest.mark.parametrize("base", ["tiny_sd2", "tiny_sdxl", "tiny_lcm"])
def test_wrapping_changes_no_bit(base: str, request: pytest.FixtureRequest) -> None:
    plain = load_base(request.getfixturevalue(base), "tiny", torch.device("cpu"))
    config, ids = plain.unet.config, torch.randint(0, 8000, (2, 77))
    latents, text = torch.randn(3, 4, 16, 16), torch.randn(3, 77, config["cross_attention_dim"])
    options: dict[str, Any] = {}
    if base == "tiny_sdxl":
        options["added_cond_kwargs"] = {"text_embeds": torch.randn(3, 24), "time_ids": torch.full((3, 6), 32.0)}
    if base == "tiny_lcm":
        options["timestep_cond"] = torch.randn(3, config["time_cond_proj_dim"])

    def run() -> list[torch.Tensor]:
        with torch.inference_mode():
            outputs = [plain.unet(latents, torch.tensor([1.0, 500.0, 999.0]), text, **options).sample]
            for encoder in plain.text_encoders:
                outputs += [t for t in encoder.model(ids, output_hidden_states=True).to_tuple() if torch.is_tensor(t)]
        return outputs

    before, groups = run(), wrap(plain.models)
    for group in groups.values():
        group.open(8, torch.device("cpu"))
    assert set(groups) >= {encoder.name for encoder in plain.text_encoders}
    assert all(torch.equal(one, other) for one, other in zip(before, run(), strict=True))


# layouts


def clip(width: int, inner: int, layers: int, heads: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection,
    )


SD1: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
CLIP_L = (CLIPTextModel, clip(768, 3072, 12, 12, 768))
REAL: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "sd1": ("sd1", SD1, [CLIP_L]),
    "latent consistency": ("sd1", {**SD1, "time_cond_proj_dim": 256}, [CLIP_L]),
    "sd2": (
        "sd2",
        {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
        },
        [(CLIPTextModel, clip(1024, 4096, 23, 16, 512))],
    ),
    "sdxl": (
        "sdxl",
        {
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        [CLIP_L, (CLIPTextModelWithProjection, clip(1280, 5120, 32, 20, 1280))],
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_the_layout_of_a_real_base_is_the_one_the_store_knows(name: str) -> None:
    known, unet, encoders = REAL[name]
    with torch.device("meta"):
        models: dict[str, torch.nn.Module] = {"unet": UNet2DConditionModel(**unet)}
        for component, (kind, config) in zip(("text_encoder", "text_encoder_2"), encoders, strict=False):
            models[component] = kind(config)
    layers = {path: layer.spec for group in wrap(models).values() for path, layer in group.layers.items()}
    assert Layout(name, layers).digest == known_layout(known).digest


# latent consistency models


def test_the_guidance_scale_is_an_input_and_takes_no_row(pairs: Any) -> None:
    server, peer = pairs("tiny_lcm")
    for scale in (0.0, 1.0, 8.5):
        want = peer.pipe.get_guidance_scale_embedding(torch.tensor(scale - 1).repeat(1), 16)
        assert torch.equal(guidance_embedding(scale, 16), want)
    server.forwards.clear()
    request = replace(ASKED, blend=BLEND, sampler=Sampler.LCM)
    one, other = server.draw([replace(request, guidance_scale=scale) for scale in (1.5, 9.0)])
    assert {table.rows for forward in server.forwards for table in forward.values()} <= {1, 2}
    assert distance(one, other) >= 5, "the guidance scale does nothing"
    (again,) = server.draw([replace(request, guidance_scale=9.0, negative_prompt="something else")])
    assert distance(again, other) <= 1


# over the wire


def test_what_is_asked_of_both_text_encoders_comes_back(pairs: Any) -> None:
    server, _ = pairs("tiny_sdxl")
    parts = generation_pb2.PartWeights(text_encoder=0.25, text_encoder_2=-0.5)
    entry = generation_pb2.BlendEntry(adapter="attention", part_weights=parts)
    asked = messages.generation_request(
        generation_pb2.GenerateRequest(prompt="a dog", blend=generation_pb2.Blend(entries=[entry]))
    )
    assert asked.blend[0].parts == PartWeights(text_encoder=0.25, text_encoder_2=-0.5)
    facts = server.admission.base
    (applied,) = messages.applied(server.admission.admit(asked), facts, "1").adapters
    assert (applied.part_weights.unet, applied.part_weights.text_encoder_2) == (1.0, -0.5)
    info = messages.server_info(facts, server.app._server_facts())
    assert (info.family, info.distilled, info.defaults.guidance_scale) == ("sdxl", "", 5.0)
    assert info.takes_size_conditioning
