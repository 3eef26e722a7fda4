"""The linear layers in the transformer blocks of two UNets, by shape.

Takes nothing; gives shapes with how often one forward of one batch row meets them. It knows no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Layers of one shape.

    count: how many a forward has. tokens: activations of one batch row. k, n: inputs and outputs of one layer.
    grouped: how many of them are the q, k, v (parts 3) or the k, v (parts 2) of one input. stacked: whether they
    are such groups already, each one launch with n outputs a part.
    """

    model: str
    name: str
    count: int
    tokens: int
    k: int
    n: int
    grouped: int = 0
    parts: int = 1
    stacked: bool = False

    @property
    def outputs(self) -> int:
        """Outputs of one launch."""
        return self.n * self.parts if self.stacked else self.n

    @property
    def size(self) -> tuple[int, int, int, int]:
        """(tokens, k, n, parts) of one launch: what its time depends on."""
        return self.tokens, self.k, self.n, self.parts if self.stacked else 1

    @property
    def flop(self) -> int:
        """Of one launch for one batch row."""
        return 2 * self.tokens * self.k * self.outputs


SD15 = "SD1.5 512x512"
SDXL = "SDXL 1024x1024"
TEXT_TOKENS = 77


def _level(model: str, side: int, width: int, blocks: int, projections: int) -> tuple[LayerShape, ...]:
    """Transformer blocks at one resolution: attn is proj_in, proj_out, attn1's q, k, v and out, attn2's q and out."""
    tokens = side * side
    return (
        LayerShape(model, f"attn@{side}", projections + 6 * blocks, tokens, width, width, 3 * blocks, 3),
        LayerShape(model, f"ff.net.0@{side}", blocks, tokens, width, 8 * width),
        LayerShape(model, f"ff.net.2@{side}", blocks, tokens, 4 * width, width),
    )


def _text(model: str, name: str, blocks: int, text_width: int, width: int) -> LayerShape:
    """The k, v of cross-attention."""
    return LayerShape(model, f"attn2.kv@{name}", 2 * blocks, TEXT_TOKENS, text_width, width, 2 * blocks, 2)


SHAPES: tuple[LayerShape, ...] = (
    *_level(SD15, 64, 320, blocks=5, projections=10),
    *_level(SD15, 32, 640, blocks=5, projections=10),
    *_level(SD15, 16, 1280, blocks=5, projections=10),
    *_level(SD15, 8, 1280, blocks=1, projections=2),
    _text(SD15, "64", 5, 768, 320),
    _text(SD15, "32", 5, 768, 640),
    _text(SD15, "16,8", 6, 768, 1280),
    *_level(SDXL, 64, 640, blocks=10, projections=10),
    *_level(SDXL, 32, 1280, blocks=60, projections=12),
    _text(SDXL, "64", 10, 2048, 640),
    _text(SDXL, "32", 60, 2048, 1280),
)


def of_model(model: str) -> list[LayerShape]:
    """Every layer launched by itself."""
    return [shape for shape in SHAPES if shape.model == model]


def stacked(shapes: Sequence[LayerShape]) -> list[LayerShape]:
    """The same layers with q, k, v and k, v in one launch each."""
    launches: list[LayerShape] = []
    for shape in shapes:
        if shape.count > shape.grouped:
            launches.append(replace(shape, count=shape.count - shape.grouped, grouped=0, parts=1))
        if shape.grouped:
            name = f"{shape.name} {'qkv' if shape.parts == 3 else 'kv'}"
            count = shape.grouped // shape.parts
            launches.append(replace(shape, name=name, count=count, grouped=0, stacked=True))
    return launches
