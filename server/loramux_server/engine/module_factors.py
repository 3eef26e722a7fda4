"""One module's factors as a compiled file has them, and what becomes of them in a layer.

Takes factors and base weights; gives rank rows, channel scales and side operations. It knows no layers,
no queue and no request.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loramux_kernels import Dense, Hadamard, Kronecker, NormDelta, SideOperation


@dataclass(frozen=True, slots=True)
class ModuleFactors:
    """parts: fp32, by the names of the compiled file; scale: of its delta; axis: of its magnitudes, "" without."""

    parts: Mapping[str, Tensor]
    scale: float
    axis: str = ""

    def channel_scale(self, weight: Tensor) -> Tensor | None:
        """m / ||W0 + delta|| for every output or input channel, fp32, from the resident weight (arXiv:2402.09353, with
        the norm of the sum, not of W0); 1 where the sum is zero, so that its zeros stay. None without magnitudes."""
        if not self.axis:
            return None
        whole = weight.float() + self._delta(weight)
        across = [dim for dim in range(whole.dim()) if dim != (0 if self.axis == "output" else 1)]
        norm = torch.linalg.vector_norm(whole, dim=across)
        return torch.where(norm > 0, self.parts["m"].to(norm) / norm, 1.0)

    def rows(self, weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, float] | None:
        """(a [r, K], b [r, N], scale) with the channel scale worked in; None where there are none."""
        if "a" not in self.parts:
            return None
        a, b = (self.parts[name].to(weight.device) for name in "ab")
        if scale is not None and self.axis == "output":
            b = b * scale
        elif scale is not None:
            a = (a.view(len(a), -1, weight.shape[1]) * scale).view(a.shape)
        return a, b, self.scale

    def side(self, weight: Tensor, scale: Tensor | None) -> SideOperation | None:
        """What has no rank rows; None where that is nothing."""
        delta = None if "a" in self.parts else self._operation(weight)
        bias = self.parts["bias"].to(weight.device) if "bias" in self.parts else None
        if delta is None:
            return None if bias is None else SideOperation(None, bias=bias)
        outputs, inputs = (scale, None) if self.axis == "output" else (None, scale)
        return SideOperation(delta, outputs, inputs, bias)

    def norm(self, weight: Tensor) -> NormDelta:
        """Of a normalisation."""
        weight_delta, bias = (self.parts.get(name) for name in ("weight", "bias"))
        return NormDelta(*(part if part is None else part.to(weight.device) for part in (weight_delta, bias)))

    def _operation(self, like: Tensor) -> Dense | Kronecker | Hadamard | None:
        """In the dtype of a tensor, which is the layer's weight or has its shape."""
        parts = {name: part.to(like.device) for name, part in self.parts.items()}
        if "w1" in parts:
            return Kronecker.of(parts["w1"], parts["w2"], self.scale, like)
        if "p1" in parts:
            return Hadamard.of(parts["p1"], parts["q1"], parts["p2"], parts["q2"], self.scale, like)
        return Dense.of(parts["delta"], self.scale, like) if "delta" in parts else None

    def _delta(self, weight: Tensor) -> Tensor:
        """Dense, fp32."""
        if "a" not in self.parts:
            operation = self._operation(torch.empty(weight.shape, dtype=torch.float32, device=weight.device))
            return torch.zeros((), device=weight.device) if operation is None else operation.dense()
        a, b = (self.parts[name].to(weight.device) for name in "ab")
        flat = self.scale * (b.T @ a)
        if weight.dim() == 2:
            return flat
        n, cin, height, width = weight.shape
        return flat.view(n, height, width, cin).permute(0, 3, 1, 2)
