"""The nearest delta of a rank, by singular values.

Takes Factors of one module; gives Factors. Knows no files.
"""

from __future__ import annotations

import torch

from loramux_store.forms.factors import Factors, conv_rows, flat_rows

__all__ = ["truncated"]


def truncated(module: Factors, rank: int) -> Factors:
    """The largest `rank` singular values and their vectors (Eckart and Young 1936), in float64. A bias stays.

    Of factors B A the values are those of the small R_B R_A^T, with B = Q_B R_B and A^T = Q_A R_A.
    """
    if "a" in module.parts:
        left, left_core = torch.linalg.qr(module.scale * module.parts["b"].double().T)
        right, right_core = torch.linalg.qr(conv_rows(module.parts["a"].double(), module.spec).flatten(1).T)
        u, values, vh = torch.linalg.svd(left_core @ right_core.T)
        u, vh = left @ u, vh @ right.T
    elif (delta := module.delta()) is not None:
        u, values, vh = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    else:
        return module
    root = values[:rank].sqrt()  # on both sides, so that neither outgrows the other
    a = flat_rows(root[:, None] * vh[: len(root)], module.spec)
    b = root[:, None] * u[:, : len(root)].T
    beside = {name: module.parts[name] for name in ("bias",) if name in module.parts}
    return Factors(module.path, module.spec, {"a": a.float(), "b": b.float(), **beside}, 1.0)
