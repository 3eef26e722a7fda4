"""Synthetic adapter files, and what they mean.

Takes layouts and seeds; gives the tensors of kohya, diffusers and PEFT files, raw safetensors
containers for hostile cases, and the dense float64 delta of every module straight from the
formulas of the papers and of the trainers that write them. Uses nothing of loramux_store.formats: it is the oracle.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from loramux_store import Layout, ModuleSpec
from loramux_store.architecture import (
    TextEncoderConfig,
    UNetConfig,
    text_encoder_modules,
    unet_modules,
)

__all__ = [
    "DTYPES",
    "TOYS",
    "TOY_SD1",
    "TOY_SD2",
    "TOY_SDXL",
    "Factors",
    "compiled_delta",
    "compiled_parts",
    "dense",
    "diffusers_tensors",
    "factors",
    "kohya_tensors",
    "peft_tensors",
    "processor_tensors",
    "raw_container",
    "sealed",
    "sgm_name",
    "toy_layout",
    "write",
    "write_in_order",
]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def toy_layout(name: str, unet: UNetConfig, **encoders: TextEncoderConfig) -> Layout:
    """A layout of the real structure with small widths."""
    shapes = {f"unet.{path}": shape for path, shape in unet_modules(unet)}
    for component, config in encoders.items():
        shapes |= {f"{component}.{path}": shape for path, shape in text_encoder_modules(config)}
    kinds = {2: "linear", 4: "conv2d"}
    return Layout(name, {p: ModuleSpec(kinds[len(s)], s) for p, s in shapes.items()})  # type: ignore[arg-type]


TOY_SD1 = toy_layout(
    "toy_sd1",
    UNetConfig((8, 16, 32, 32), (1, 1, 1, 0), 1, 24, False),
    text_encoder=TextEncoderConfig(24, 96, 3),
)
TOY_SD2 = toy_layout(
    "toy_sd2",
    UNetConfig((8, 16, 32, 32), (1, 1, 1, 0), 1, 32, True),
    text_encoder=TextEncoderConfig(32, 128, 4),
)
TOY_SDXL = toy_layout(
    "toy_sdxl",
    UNetConfig((8, 16, 32), (0, 2, 3), 3, 64, True, added=88),
    text_encoder=TextEncoderConfig(24, 96, 3),
    text_encoder_2=TextEncoderConfig(40, 160, 5, projection=40),
)
TOYS = (TOY_SD1, TOY_SD2, TOY_SDXL)


@dataclass(frozen=True)
class Factors:
    """One module's tensors as stored in a file; alpha None: the file says none."""

    spec: ModuleSpec
    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Rows of the down factor."""
        return self.down.shape[0]


def factors(
    layout: Layout,
    paths: Iterable[str] | None = None,
    *,
    seed: int = 0,
    rank: int | None = None,
    alpha: float | None = None,
    dtype: torch.dtype = torch.float32,
    tucker: bool = False,
    size: float = 1.0,
) -> dict[str, Factors]:
    """Random factors for the paths (all by default); ranks vary unless one is given."""
    made: dict[str, Factors] = {}
    random = torch.Generator().manual_seed(seed)
    for at, path in enumerate(sorted(layout.modules if paths is None else paths)):
        spec = layout.modules[path]
        r = rank or 1 + (at * 7 + seed) % 5
        out, source, *kernel = spec.shape

        def draw(*shape: int) -> Tensor:
            return (size * torch.randn(shape, generator=random)).to(dtype)

        if spec.kind == "linear":
            made[path] = Factors(spec, draw(r, source), draw(out, r), None, alpha)
        elif tucker:
            down, mid = draw(r, source, 1, 1), draw(r, r, *kernel)
            made[path] = Factors(spec, down, draw(out, r, 1, 1), mid, alpha)
        else:
            made[path] = Factors(spec, draw(r, source, *kernel), draw(out, r, 1, 1), None, alpha)
    return made


def dense(module: Factors, scale: float | None = None) -> Tensor:
    """Delta W in float64, in the weight's shape; scale None: alpha / rank, 1 without alpha."""
    if scale is None:
        scale = 1.0 if module.alpha is None else module.alpha / module.rank
    down, up = module.down.double(), module.up.double().flatten(1)
    if module.mid is not None:
        down = torch.einsum("mnhw,ni->mihw", module.mid.double(), down.flatten(1))
    return scale * (up @ down.flatten(1)).reshape(module.spec.shape)


def compiled_delta(path: Path, layout: Layout) -> dict[str, Tensor]:
    """Delta W in float64 of every module of a compiled file that has one."""
    table, tensors = compiled_parts(path)
    return {
        module: _delta(parts, table[module]["scale"], layout.modules[module])
        for module, parts in tensors.items()
        if parts.keys() & {"a", "w1", "p1", "delta"}
    }


def compiled_parts(path: Path) -> tuple[dict[str, dict], dict[str, dict[str, Tensor]]]:
    """What a compiled file says of its modules, and their parts in float64."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "6"
    data = path.read_bytes()
    whole = safetensors.torch.load_file(path)
    assert bytes(whole.pop("xxh3_128").tolist()) == data[-16:] == xxhash.xxh3_128(data[:-16]).digest()
    table = json.loads(metadata["modules"])
    parts: dict[str, dict[str, Tensor]] = {module: {} for module in table}
    for name, tensor in whole.items():
        assert tensor.dtype == torch.float32
        module, _, part = name.rpartition(".")
        if module in parts:
            parts[module][part] = tensor.double()
    for module, found in parts.items():
        assert table[module]["rank"] == (len(found["a"]) if "a" in found else 0)
    return table, parts


def compiled_vectors(path: Path) -> dict[str, dict[str, Tensor]]:
    """Vectors of a compiled file's embeddings in fp32, by trigger and text encoder."""
    with safetensors.safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["embeddings"])
        found = {
            trigger: {encoder: file.get_tensor(f"vectors.{number}.{encoder}") for encoder in widths}
            for number, (trigger, _, widths) in enumerate(said)
        }
        names = [name for name in file.keys() if name.startswith("vectors.")]  # noqa: SIM118
    shapes = {(each.dtype, *each.shape) for vectors in found.values() for each in vectors.values()}
    wanted = {(torch.float32, count, width) for _, count, widths in said for width in widths.values()}
    assert len(names) == sum(map(len, found.values())) and shapes == wanted
    return found


def _delta(parts: Mapping[str, Tensor], scale: float, spec: ModuleSpec) -> Tensor:
    if "delta" in parts:
        return scale * parts["delta"]
    if "w1" in parts:
        return scale * torch.kron(parts["w1"], parts["w2"].flatten(1)).reshape(spec.shape)
    if "p1" in parts:
        return scale * ((parts["p1"] @ parts["q1"]) * (parts["p2"] @ parts["q2"])).reshape(spec.shape)
    flat = scale * (parts["b"].T @ parts["a"])
    if spec.kind == "linear":
        return flat.reshape(spec.shape)
    out, source, height, width = spec.shape
    return flat.reshape(out, height, width, source).permute(0, 3, 1, 2)


# -- file formats ---------------------------------------------------------------------------------

_ENCODERS = {"text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def kohya_tensors(made: Mapping[str, Factors], *, sgm: bool = False, two_encoders: bool = False) -> dict[str, Tensor]:
    """kohya: lora_unet_…, lora_te_…; with two encoders lora_te1_… and lora_te2_…."""
    tensors: dict[str, Tensor] = {}
    for path, module in made.items():
        component, _, tail = path.partition(".")
        if component == "unet":
            name = sgm_name(tail) if sgm else tail
            stem = f"lora_unet_{name.replace('.', '_')}"
        else:
            prefix = "lora_te1" if two_encoders and component == "text_encoder" else _ENCODERS[component]
            stem = f"{prefix}_{tail.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = module.down
        tensors[f"{stem}.lora_up.weight"] = module.up
        if module.mid is not None:
            tensors[f"{stem}.lora_mid.weight"] = module.mid
        if module.alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(module.alpha, dtype=module.down.dtype)
    return tensors


def processor_tensors(made: Mapping[str, Factors], *, prefix: bool) -> dict[str, Tensor]:
    """diffusers G0 (no prefix, UNet attention only) and G1."""
    tensors: dict[str, Tensor] = {}
    for path, module in made.items():
        component, _, tail = path.partition(".")
        attention, _, last = tail.removesuffix(".0").rpartition(".")
        middle = ".processor" if component == "unet" else ""
        name = last if component == "unet" else f"to_{last.removesuffix('_proj')}"
        stem = f"{attention}{middle}.{name}_lora"
        stem = f"{component}.{stem}" if prefix else stem
        tensors[f"{stem}.down.weight"] = module.down
        tensors[f"{stem}.up.weight"] = module.up
    return tensors


def diffusers_tensors(made: Mapping[str, Factors]) -> dict[str, Tensor]:
    """diffusers G2."""
    tensors: dict[str, Tensor] = {}
    for path, module in made.items():
        leaf = "lora" if path.startswith("unet.") else "lora_linear_layer"
        tensors[f"{path}.{leaf}.down.weight"] = module.down
        tensors[f"{path}.{leaf}.up.weight"] = module.up
    return tensors


def peft_tensors(
    made: Mapping[str, Factors], *, wrapper: str = "", component: bool = True, infix: str = ""
) -> dict[str, Tensor]:
    """PEFT, and diffusers G3: lora_A and lora_B."""
    tensors: dict[str, Tensor] = {}
    for path, module in made.items():
        stem = wrapper + (path if component else path.partition(".")[2])
        tensors[f"{stem}.lora_A.{infix}weight"] = module.down
        tensors[f"{stem}.lora_B.{infix}weight"] = module.up
    return tensors


_SGM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_SGM_OTHER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm_name(tail: str, attended_up: tuple[int, ...] = (0, 1)) -> str:
    """A UNet path in sgm names as kohya's scripts map them; attended_up as in SDXL."""
    if tail in _SGM_OTHER:
        return _SGM_OTHER[tail]
    side, *rest = tail.split(".")
    if side == "mid_block":
        what, j, *leaf = rest
        if what == "attentions":
            return ".".join(["middle_block.1", *leaf])
        return f"middle_block.{2 * int(j)}.{_SGM_RESNET['.'.join(leaf)]}"
    i, what, j, leaf = int(rest[0]), rest[1], int(rest[2]), ".".join(rest[3:])
    if side == "down_blocks":
        if what == "downsamplers":
            return f"input_blocks.{3 * (i + 1)}.0.op"
        block = f"input_blocks.{3 * i + j + 1}"
    else:
        if what == "upsamplers":
            return f"output_blocks.{3 * i + 2}.{2 if i in attended_up else 1}.conv"
        block = f"output_blocks.{3 * i + j}"
    return f"{block}.1.{leaf}" if what == "attentions" else f"{block}.0.{_SGM_RESNET[leaf]}"


# -- containers -----------------------------------------------------------------------------------


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file by the reference library."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, path, dict(metadata) if metadata else None)
    return path


def write_in_order(path: Path, tensors: Mapping[str, Tensor], names: Iterable[str]) -> Path:
    """With keys and bytes in this order: the reference library has one of its own."""
    header: dict[str, object] = {}
    data = b""
    for name in names:
        raw = safetensors.torch.save({name: tensors[name].contiguous()})
        size = int.from_bytes(raw[:8], "little")
        entry, body = json.loads(raw[8 : 8 + size])[name], raw[8 + size :]
        header[name] = entry | {"data_offsets": [len(data), len(data) + len(body)]}
        data += body
    path.write_bytes(raw_container(header, data))
    return path


def raw_container(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A container with any header: bytes are taken as they are, all else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(text) if length is None else length
    return claimed.to_bytes(8, "little") + text + data


def sealed(body: bytes) -> bytes:
    """A compiled file, of all that comes before its seal."""
    return body + xxhash.xxh3_128(body).digest()
