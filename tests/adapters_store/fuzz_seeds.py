"""Small inputs of every kind, from which a fuzzer starts: `python fuzz_seeds.py` writes them to `corpus/`.

Takes nothing; gives inputs for fuzz_targets by file name. `found-` are those that once broke something.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import adapter_files as af
import torch
from torch import Tensor

CORPUS = Path(__file__).parent / "corpus"
LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.down_blocks.0.resnets.0.conv1"
ENCODER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
NORM = "unet.mid_block.attentions.0.transformer_blocks.0.norm2"
SD1 = "?layout toy_sd1"
_NAMES = {dtype: name for name, dtype in af.DTYPES.items()}


def seeds() -> dict[str, bytes]:
    """Input by file name."""
    made = dict(_containers())
    made |= {f"header-{name}": b"h" + json.dumps(body).encode() for name, body in _headers()}
    made |= {f"file-{name}": b"t" + text.encode() for name, text in _files()}
    made |= {f"config-{name}": b"p" + json.dumps(body).encode() for name, body in _configs()}
    made |= {f"metadata-{name}": b"m" + json.dumps(body).encode() for name, body in _metadata()}
    return made | dict(_found())


def _containers() -> Iterator[tuple[str, bytes]]:
    one = {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]}
    yield "container-embedding", b"c" + af.raw_container({"emb_params": {**one, "shape": [1, 24]}}, b"\x3c" * 96)
    yield "container-lora", b"c" + af.raw_container({f"{LINEAR}.lora_A.weight": one}, b"\x3c" * 64)
    yield "container-pickle", b"c" + pickle.dumps({"a": [1, 2]}, 2)
    yield "container-zip", b"cPK\x03\x04" + bytes(30) + b"archive/data.pkl"
    yield "container-pointer", b"cversion https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    yield "container-page", b"c<!DOCTYPE html><html></html>"
    yield "container-image", b"c\x89PNG\r\n\x1a\n" + bytes(16)
    yield "container-gguf", b"cGGUF" + bytes(16)


def _headers() -> Iterator[tuple[str, object]]:
    def entry(begin: int = 0, shape: tuple[int, ...] = (1,), dtype: str = "F32") -> dict[str, object]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + 4]}

    yield "metadata", {"__metadata__": {"alpha": "2", "ss_v2": "true"}, "a": entry()}
    yield "two", {"a": entry(), "b": entry(4)}
    yield "hole", {"a": entry(), "b": entry(8)}
    yield "overlap", {"a": entry(), "b": entry(2)}
    yield "dtypes", {"a": entry(dtype="F8_E8M0", shape=(4,)), "b": entry(4, (2,), "BF16")}
    yield "numbers", {"a": {"dtype": "F32", "shape": [-1, 1.5, 1e400, True, None, "1"], "data_offsets": [0, 4]}}
    yield "large", {"a": {"dtype": "U8", "shape": [0, 2**63, 2**63], "data_offsets": [0, 0]}}
    yield "names", {"\ud800": entry(), "../a": entry(4), "a\u0301": entry(8), "\u00e1": entry(12)}


def _files() -> Iterator[tuple[str, str]]:
    paths = [LINEAR, CONV, ENCODER]
    made = af.factors(af.TOY_SD1, paths, rank=2)
    named = af.factors(af.TOY_SD1, paths, rank=2, alpha=1.0, dtype=torch.float16)
    attention = af.factors(af.TOY_SD1, [LINEAR], rank=2)
    yield "kohya", _said(af.kohya_tensors(named))
    yield "kohya-core", _said(af.kohya_tensors(af.factors(af.TOY_SD1, [CONV], rank=2, tucker=True)), SD1)
    yield "kohya-sgm", _said(af.kohya_tensors(af.factors(af.TOY_SDXL, [LINEAR], rank=2), sgm=True))
    yield "diffusers", _said(af.diffusers_tensors(made), "@alpha 4")
    yield "processor", _said(af.processor_tensors(attention, prefix=True))
    yield "peft", _said(af.peft_tensors(made), '?peft {"r":2,"lora_alpha":4}')
    wrapped = af.peft_tensors(attention, wrapper="base_model.model.", component=False, infix="default.")
    yield "peft-bare", _said(wrapped, "?alpha 3")
    stored = json.dumps({"unet.r": 2, "unet.lora_alpha": 1, "unet.use_rslora": True})
    yield "peft-stored", _said(af.peft_tensors(attention), f"@lora_adapter_metadata {stored}")
    yield from _other_kinds()
    yield from _embeddings()
    yield "not-finite", _said(af.peft_tensors(attention), "!ff")
    yield "hinted", _said(af.kohya_tensors(attention), "@ss_base_model_version sdxl_base_v1-0", "@ss_v2 False")
    leaves = {f"{_stem(LINEAR)}.{leaf}": torch.ones(2, 2) for leaf in ("oft_blocks", "a1.weight", "on_input")}
    yield "refused-kinds", _said(leaves)
    yield "full-checkpoint", _said({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)})


def _other_kinds() -> Iterator[tuple[str, str]]:
    """Of LyCORIS, by the shapes of one linear layer and one convolution."""
    out, source = af.TOY_SD1.modules[LINEAR].shape
    n, k, height, width = af.TOY_SD1.modules[CONV].shape
    linear, conv = _stem(LINEAR), _stem(CONV)

    def files(stem: str, shapes: Mapping[str, tuple[int, ...]], *before: str) -> str:
        return _said({f"{stem}.{leaf}": torch.ones(shape) for leaf, shape in shapes.items()}, *before)

    sides = {"hada_w1_a": (out, 2), "hada_w1_b": (2, source), "hada_w2_a": (out, 2), "hada_w2_b": (2, source)}
    cores = {"hada_t1": (2, 2, height, width), "hada_t2": (2, 2, height, width)}
    outer = {"hada_w1_a": (2, n), "hada_w1_b": (2, k), "hada_w2_a": (2, n), "hada_w2_b": (2, k)}
    halves = {"lokr_w2_a": (out // 2, 1), "lokr_w2_b": (1, source // 2), "alpha": ()}
    yield "loha", files(linear, {**sides, "alpha": ()})
    yield "loha-core", files(conv, {**cores, **outer}, SD1)
    yield "lokr", files(linear, {"lokr_w1": (2, 2), "lokr_w2": (out // 2, source // 2)}, "@ss_network_dim 4")
    yield "lokr-pairs", files(linear, {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), **halves})
    yield (
        "lokr-core",
        files(
            conv,
            {"lokr_w1": (2, 2), "lokr_t2": (2, 2, height, width), "lokr_w2_a": (2, n // 2), "lokr_w2_b": (2, k // 2)},
            SD1,
        ),
    )
    yield "full", files(conv, {"diff": (n, k, height, width), "diff_b": (n,)}, SD1)
    yield (
        "norm",
        files(_stem(NORM), {"w_norm": af.TOY_SD1.targets[NORM].shape, "b_norm": af.TOY_SD1.targets[NORM].shape}, SD1),
    )
    dora = {"lora_down.weight": (2, source), "lora_up.weight": (out, 2), "dora_scale": (1, source)}
    yield "dora", files(linear, dora)
    magnitude = {"lora_A.weight": (2, source), "lora_B.weight": (out, 2), "lora_magnitude_vector": (out,)}
    yield "dora-peft", files(LINEAR, {**magnitude, "lora_B.bias": (out,)})


def _embeddings() -> Iterator[tuple[str, str]]:
    one, two = torch.ones(2, 24), torch.ones(2, 40)
    yield "embedding", _said({"emb_params": one}, "?trigger cat")
    yield "embedding-token", _said({"<cat>": torch.ones(24)})
    yield "embedding-two", _said({"clip_l": one, "clip_g": two})
    yield "embedding-bundle", _said({"bundle_emb.a.b.clip_l": one, "bundle_emb.a.b.clip_g": two})
    yield "embedding-string", _said({"string_to_param.*": one.half()})


def _configs() -> Iterator[tuple[str, object]]:
    yield "plain", {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True, "fan_in_fan_out": True}
    yield "patterns", {"rank_pattern": {"to_q": 2, "^mid_block.a": 3}, "alpha_pattern": {r".*attn[12]\.to_.": 1}}
    yield "groups", {"alpha_pattern": {"(mid_block|down_blocks).*to_(?:q|k)": 4}}
    yield "refused", {"peft_type": "IA3", "layer_replication": [[0, 1]], "init_lora_weights": "pissa_niter_4"}
    yield "numbers", {"r": 1e999, "lora_alpha": "8", "use_dora": 3}


def _metadata() -> Iterator[tuple[str, object]]:
    yield "parts", {"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.r": 8}
    yield "folders", {"10_cat": {"n": 3}, "5_dog": {"img": 1}}
    yield "tags", {"a": {"cat": 5, "dog": 2}}


def _found() -> Iterator[tuple[str, bytes]]:
    out, source = af.TOY_SD1.modules[LINEAR].shape
    whole = {f"{_stem(LINEAR)}.lokr_w1": torch.ones(2, 2), f"{_stem(LINEAR)}.alpha": torch.ones(())}
    whole[f"{_stem(LINEAR)}.lokr_w2"] = torch.ones(out // 2, source // 2)
    # a digit to str.isdigit, none to float
    yield "found-superscript", b"t" + _said(whole, "@ss_network_dim \u00b2").encode()
    # refusals that no message can hold: words with lone surrogates, and as long as the file
    yield "found-surrogate-kind", b'p{"peft_type":"LOR\xeaA"}'
    yield "found-surrogate-pattern", b'p{"alpha_pattern":{"\\ud800":"1"}}'
    yield "found-surrogate-twice", b'h{"\\ud800":1,"\\ud800":1}'
    yield "found-long-twice", b'h{"%s":1,"%s":1}' % ((b"long" * 1000,) * 2)
    yield "found-long-fields", b'h{"a":{"%s":1}}' % (b"long" * 1000)
    # marks that Unicode's normal form puts in order, which takes time as their number squared
    disorder = "a" + "\u0301\u0316" * 20
    yield "found-marks", b"h" + json.dumps({disorder: 1, disorder + "b": 1}, ensure_ascii=False).encode()
    # nested as deep as json reads it, deeper than repr does
    yield "found-deep", b'p{"r":' + b"[" * 900 + b"]" * 900 + b"}"


def _stem(path: str) -> str:
    component, _, tail = path.partition(".")
    return f"{'lora_unet' if component == 'unet' else 'lora_te'}_{tail.replace('.', '_')}"


def _said(tensors: Mapping[str, Tensor], *before: str) -> str:
    """In the lines of fuzz_targets."""
    named = (f"{_NAMES[t.dtype]} {','.join(map(str, t.shape))} {name}" for name, t in tensors.items())
    return "\n".join([*before, *named])


if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    for old in CORPUS.iterdir():
        old.unlink()
    for name, data in seeds().items():
        (CORPUS / name).write_bytes(data)
