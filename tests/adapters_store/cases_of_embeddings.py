"""The table of cases: textual inversions (formats.md 4.6, 1.11, 1.12, 2.10)."""

import io
import pickle

import adapter_files as af
import torch
from cases import KEY, ONES, Accepted, Case, Elsewhere, Refusal, Rows, Tensors, draw, good, lora
from PIL import Image

__all__ = ["EMBEDDINGS"]

V, W, OTHER = draw(3, 24), draw(3, 40, seed=1), draw(2, 24, seed=2)


def _taken(tensors: Tensors, trigger: str, layout: str = "toy_sd1", asked: str | None = None, **more: object) -> Case:
    vectors = {"text_encoder": V} | ({"text_encoder_2": W} if layout == "toy_sdxl" else {})
    becomes = Accepted({}, layout=layout, vectors=vectors, trigger=trigger, **more)  # type: ignore[arg-type]
    return Case(tensors, becomes, trigger=asked)


def _refused(tensors: Tensors, reason: str, key: str, says: str = "", **said: str) -> Case:
    return Case(tensors, Refusal(reason, key, says), **said)  # type: ignore[arg-type]


def _real(layout: str, tensors: Tensors) -> Case:
    names = {"clip_g": "text_encoder_2"}
    vectors = {names.get(name, "text_encoder"): tensor for name, tensor in tensors.items()}
    return Case(tensors, Accepted({}, layout=layout, vectors=vectors, trigger="adapter"))


def _image(form: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, form)
    return out.getvalue()


_TWO = {"<a>": V, "<b>": OTHER}
_A1111 = {"string_to_param.*": OTHER, "string_to_param.dog": V}
_BUNDLES = {
    "bundle_emb.a cat.clip_l": V,
    "bundle_emb.a cat.clip_g": W,
    "bundle_emb.dog.v2.clip_l": OTHER,
    "bundle_emb.dog.v2.clip_g": draw(2, 40),
}


def _bundled_refused(reason: str, key: str, tensor: torch.Tensor, says: str = "") -> Case:
    return _refused(good() | {key: tensor}, reason, key, says)


EMBEDDINGS: Rows = {
    "T2 clip_l and clip_g": lambda: _real("sdxl", {"clip_l": draw(2, 768), "clip_g": draw(2, 1280)}),
    "T4 a width of SD1 on SD2": lambda: _refused(
        {"emb_params": V}, "family_mismatch", "emb_params", "for toy_sd1, not for toy_sd2", layout="toy_sd2"
    ),
    "T4 the width of SD1": lambda: _real("sd1", {"emb_params": draw(2, 768)}),
    "T4 the width of SD2": lambda: _real("sd2", {"emb_params": draw(2, 1024)}),
    "T6 triggers by longest match": Elsewhere("tests/server/test_embeddings.py::test_triggers_are_words_of_their_own"),
    "T8 a PNG without data": lambda: Case(_image("PNG"), Refusal("not_an_embedding", None, "png")),
    "T8 a WebP": lambda: Case(_image("WEBP"), Refusal("not_an_embedding", None, "webp")),
    "T8 a JPEG": lambda: Case(_image("JPEG"), Refusal("not_an_embedding", None, "jpeg")),
    "T10 clip_g of 768 beside t5": lambda: _refused(
        {"clip_g": draw(4, 768), "t5": draw(4, 4096)}, "ti_bad_width", "clip_g", "'t5' [4, 4096]"
    ),
    "T12 a pickled inversion": lambda: Case(
        pickle.dumps({"string_to_param": {"*": [0.0] * 768}, "name": "x"}), Refusal("pickle_not_allowed", None)
    ),
    "T14 halves disagree": lambda: _refused(
        {"clip_l": draw(2, 24), "clip_g": draw(3, 40)}, "ti_len_mismatch", "clip_g", "'clip_g' holds 3"
    ),
    # rules of sections 1.11, 1.12, 2.10 and 3.4 that no report is about
    "kohya": lambda: _taken({"emb_params": V}, "adapter"),
    "A1111, converted": lambda: _taken({"string_to_param.*": V}, "adapter"),
    "diffusers": lambda: _taken({"<cat>": V}, "<cat>"),
    "one vector of one dimension": lambda: Case(
        {"<cat>": V[0]}, Accepted({}, vectors={"text_encoder": V[:1]}, trigger="<cat>")
    ),
    "pivotal, by its older names": lambda: _taken({"text_encoders_0": V, "text_encoders_1": W}, "adapter", "toy_sdxl"),
    "clip_l alone": lambda: _taken({"clip_l": V}, "adapter"),
    "a bundle whose name has dots": lambda: _taken(
        {"bundle_emb.ema. jr.clip_l": V, "bundle_emb.ema. jr.clip_g": W}, "ema. jr", "toy_sdxl"
    ),
    "several tokens": lambda: _refused(_TWO, "ti_several_tokens", "<b>", "'<a>', '<b>'"),
    "several tokens, one asked for": lambda: _taken(_TWO, "<a>", asked="<a>", ignored=("<b>",), warnings=("ignored",)),
    "several tokens, another asked for": lambda: _refused(
        _TWO, "ti_several_tokens", "<b>", "with the token as the trigger", trigger="<c>"
    ),
    "several tokens of A1111": lambda: _refused(_A1111, "ti_several_tokens", "string_to_param.dog"),
    "several tokens of A1111, one asked for": lambda: _taken(
        _A1111, "dog", asked="dog", ignored=("string_to_param.*",), warnings=("ignored", "trigger_common_word")
    ),
    "several bundled": lambda: _refused(_BUNDLES, "ti_several_tokens", "bundle_emb.dog.v2.clip_g"),
    "several bundled, one asked for": lambda: _taken(
        _BUNDLES,
        "a cat",
        "toy_sdxl",
        asked="a cat",
        ignored=("bundle_emb.dog.v2.clip_g", "bundle_emb.dog.v2.clip_l"),
        warnings=("ignored",),
    ),
    "clip_g alone": lambda: _refused({"clip_g": draw(2, 1280)}, "ti_bad_width", "clip_g", "[2, 1280]"),
    "a width of nothing": lambda: _refused({"emb_params": draw(2, 512)}, "ti_bad_width", "emb_params", "1024 (sd2)"),
    "in brackets, a width of nothing": lambda: _refused({"<a>": draw(7)}, "ti_bad_width", "<a>"),
    "76 vectors": lambda: _refused({"emb_params": draw(76, 24)}, "ti_too_many_vectors", "emb_params", "holds 76"),
    "75 vectors": lambda: Case(
        {"emb_params": draw(75, 24)}, Accepted({}, vectors={"text_encoder": draw(75, 24)}, trigger="adapter")
    ),
    "none": lambda: _refused({"emb_params": draw(0, 24)}, "shape_mismatch", "emb_params", "[0, 24]"),
    "three axes": lambda: _refused({"emb_params": draw(1, 2, 24)}, "shape_mismatch", "emb_params"),
    "integers": lambda: _refused(
        {"emb_params": torch.ones(1, 24, dtype=torch.int32)}, "unsupported_dtype", "emb_params", "I32"
    ),
    "NaN": lambda: _refused({"emb_params": ONES(1, 24) * torch.nan}, "non_finite", "emb_params"),
    "inf in one of a pair": lambda: _refused(
        {"clip_l": ONES(1, 24), "clip_g": ONES(1, 40) * torch.inf}, "non_finite", "clip_g"
    ),
    "twice for one encoder": lambda: _refused(
        {"clip_l": draw(1, 24), "emb_params": draw(1, 24)}, "duplicate_module", "emb_params"
    ),
    "a tensor by itself, named by a word": lambda: _taken({"my.cat": V}, "my.cat"),
    "a tensor by itself of a LoRA of another kind": lambda: _refused(
        {"lora_unet_x.lokr_w3": V}, "family_unknown", "lora_unet_x.lokr_w3", "no known adapter format"
    ),
    "a tensor by itself of a module in PEFT's names": lambda: _refused(
        {"base_model.model.a.to_k.strange": V}, "family_unknown", "base_model.model.a.to_k.strange"
    ),
    "a tensor by itself of more rows than an embedding has, of a model": lambda: _refused(
        {"down_blocks.0.to_k.bias2": draw(320, 24)}, "family_unknown", "down_blocks.0.to_k.bias2"
    ),
    "a tensor by itself, prompt_embeds": lambda: _refused({"prompt_embeds": V}, "family_unknown", "prompt_embeds"),
    "a tensor by itself, weight": lambda: _refused({"weight": V}, "family_unknown", "weight"),
    "a stray key": lambda: _refused({"clip_l": draw(1, 24), "other": draw(1)}, "unknown_keys", "other"),
    "an unknown bundle": lambda: _refused({"bundle_emb.a.what": draw(1, 24)}, "unknown_keys", "bundle_emb.a.what"),
    # bundled with a LoRA: section 1.11
    "bundled, two text encoders, dots in a token": lambda: lora(
        KEY,
        layout=af.TOY_SDXL,
        change=lambda t: t | _BUNDLES,
        bundled={
            "a cat": {"text_encoder": V, "text_encoder_2": W},
            "dog.v2": {"text_encoder": OTHER, "text_encoder_2": draw(2, 40)},
        },
    ),
    "bundled by a web interface": lambda: lora(
        KEY, change=lambda t: t | {"bundle_emb.ema.string_to_param.*": V}, bundled={"ema": {"text_encoder": V}}
    ),
    "named by its token beside a LoRA": lambda: lora(
        KEY, change=lambda t: t | {"<cat>": V[0]}, bundled={"<cat>": {"text_encoder": V[:1]}}
    ),
    "bundled, all zero": lambda: lora(
        KEY,
        change=lambda t: t | {"bundle_emb.a.emb_params": ONES(1, 24) * 0},
        bundled={"a": {"text_encoder": ONES(1, 24) * 0}},
        warnings=("trigger_common_word", "zero_vectors"),
    ),
    "a LoRA among bundles": lambda: _bundled_refused("unknown_keys", "bundle_emb.a.what", draw(1, 24)),
    "bundled for another model": lambda: _bundled_refused(
        "ti_bad_width", "bundle_emb.a.clip_l", draw(1, 32), "toy_sd1"
    ),
    "bundled for a second encoder": lambda: _bundled_refused("ti_bad_width", "bundle_emb.a.clip_g", draw(1, 24)),
    "bundled for T5 too": lambda: _refused(
        good() | {"bundle_emb.a.clip_l": V, "bundle_emb.a.t5": OTHER}, "ti_bad_width", "bundle_emb.a.clip_l", "a.t5"
    ),
    "bundled, too long": lambda: _bundled_refused("ti_too_many_vectors", "bundle_emb.a.clip_l", draw(76, 24)),
    "bundled, three axes": lambda: _bundled_refused("shape_mismatch", "bundle_emb.a.clip_l", draw(1, 1, 24)),
    "bundled, integers": lambda: _bundled_refused(
        "unsupported_dtype", "bundle_emb.a.clip_l", torch.ones(1, 24, dtype=torch.int32)
    ),
    "bundled, not finite": lambda: _bundled_refused("non_finite", "bundle_emb.a.clip_l", ONES(1, 24) * torch.inf),
    "bundled without a token": lambda: _bundled_refused("ti_bad_token", "bundle_emb.*.clip_l", V, "stand in a prompt"),
    "bundled, halves disagree": lambda: _refused(
        good(layout=af.TOY_SDXL) | {"bundle_emb.a.clip_l": V, "bundle_emb.a.clip_g": draw(2, 40)},
        "ti_len_mismatch",
        "bundle_emb.a.clip_g",
        layout="toy_sdxl",
    ),
    "bundled, one token in two cases": lambda: _refused(
        good() | {"bundle_emb.Cat.clip_l": V, "bundle_emb.cat.clip_l": OTHER},
        "duplicate_module",
        "bundle_emb.cat.clip_l",
    ),
    "bundled, twice for an encoder": lambda: _refused(
        good() | {"bundle_emb.a.clip_l": V, "bundle_emb.a.emb_params": OTHER},
        "duplicate_module",
        "bundle_emb.a.emb_params",
    ),
    "bundled, more than a vocabulary": lambda: _refused(
        good() | {f"bundle_emb.{number:02}.clip_l": draw(1, 24) for number in range(65)},
        "ti_too_many_tokens",
        "bundle_emb.64.clip_l",
    ),
}
