"""Likeness: how far a picture is from a reference, tolerant to size and place.

Takes pictures in [-1, 1]; gives distances. Knows no models: everything is measured on pixels, so that anyone can repeat
it from the committed reference sheets.

A picture is described on a grid (16x16 to tell concepts apart, 8x8 to compare drawings of one concept) by five maps:
red, green and blue means, edge strength and colourfulness. Its distance from a reference is the root mean square
difference of the maps, least over 27 sizes and shifts of the reference (85, 92, 100 %; -3, 0, 3 px each way), because
captions say nothing of size and place.
"""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (0.85, 0.92, 1.0)
SHIFTS = (-3, 0, 3)


def describe(pictures: Tensor, grid: int) -> Tensor:
    """[n, 3, 64, 64] to [n, 5, grid, grid]."""
    across = F.pad(pictures.diff(dim=-1).abs().mean(1, keepdim=True), (0, 1))
    down = F.pad(pictures.diff(dim=-2).abs().mean(1, keepdim=True), (0, 0, 0, 1))
    colourful = pictures.amax(1, keepdim=True) - pictures.amin(1, keepdim=True)
    return F.avg_pool2d(torch.cat([pictures, across + down, colourful], dim=1), pictures.shape[-1] // grid)


def variants(reference: Tensor) -> Tensor:
    """[n, 3, 64, 64] to [n, 27, 3, 64, 64]: every size and shift, the ground extended from the corner."""
    ground = reference[:, :, :1, :1]
    placed: list[Tensor] = []
    for scale, right, down in product(SCALES, SHIFTS, SHIFTS):
        edge = round(reference.shape[-1] * scale)
        small = F.interpolate(reference - ground, (edge, edge), mode="bilinear", antialias=True, align_corners=False)
        margin = (reference.shape[-1] - edge) // 2
        rest = reference.shape[-1] - edge - margin
        padded = F.pad(small, (margin + right, rest - right, margin + down, rest - down))
        placed.append(padded + ground)
    return torch.stack(placed, dim=1)


def distances(pictures: Tensor, references: Tensor, grid: int = 16) -> Tensor:
    """[n, m]: each picture's distance from each reference."""
    made = describe(pictures, grid).flatten(1)
    many = variants(references)
    real = describe(many.flatten(0, 1), grid).flatten(1)
    apart = torch.cdist(made, real) / made.shape[1] ** 0.5
    return apart.view(len(pictures), *many.shape[:2]).amin(dim=2)


def paired_distances(pictures: Tensor, references: Tensor, grid: int = 8) -> Tensor:
    """[n]: each picture's distance from its own reference."""
    made = describe(pictures, grid).flatten(1)
    many = variants(references)
    real = describe(many.flatten(0, 1), grid).flatten(1).view(*many.shape[:2], -1)
    return ((real - made[:, None]).square().mean(dim=2)).sqrt().amin(dim=1)
