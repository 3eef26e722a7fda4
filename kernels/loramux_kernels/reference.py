"""The rank-row operations in plain torch: the CPU path, the oracle and the documentation.

Takes what `ops` has checked and gives activations. It knows no device and no dispatch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from loramux_kernels.pool import Tables


def lora_linear(x: Tensor, w0: Tensor, bias: Tensor | None, a_pool: Tensor, b_pool: Tensor, tables: Tables) -> Tensor:
    """y[i] = W0 x[i] + b + B_pool[idx[i]]^T (scale[i] * (A_pool[idx[i]] x[i])).

    The adapter term is added in place to the fresh base product, so that a row whose scales are all
    zero keeps the base product's bits (adding +0.0 or -0.0 changes no finite value).
    """
    y = F.linear(x, w0, bias)
    rows = x.shape[0]
    x3 = x.reshape(rows, -1, x.shape[-1])
    a = a_pool[tables.idx]  # [rows, R, K]
    b = b_pool[tables.idx]  # [rows, R, N]
    s = torch.bmm(x3, a.transpose(1, 2)) * tables.scale[:, None, :].to(x.dtype)
    y.view(rows, -1, y.shape[-1]).baddbmm_(s, b)
    return y


def lora_conv2d(
    x: Tensor,
    w0: Tensor,
    bias: Tensor | None,
    a_pool: Tensor,
    b_pool: Tensor,
    tables: Tables,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """The same for a convolution: A is a kxk convolution to the rank, B is 1x1.

    A rows lie as [kh][kw][Cin]; all rows of the batch run as one grouped convolution with a group a
    batch row, which is exact for any stride, padding and dilation.
    """
    y = F.conv2d(x, w0, bias, stride, padding, dilation)
    rows, cin, height, width = x.shape
    kh, kw = w0.shape[2:]
    r = tables.idx.shape[1]
    a = a_pool[tables.idx].view(rows * r, kh, kw, cin).permute(0, 3, 1, 2)
    s = F.conv2d(x.reshape(1, rows * cin, height, width), a, None, stride, padding, dilation, groups=rows)
    s = s.view(rows, r, -1) * tables.scale[:, :, None].to(x.dtype)
    b = b_pool[tables.idx]  # [rows, R, N]
    return y.add_(torch.bmm(b.transpose(1, 2), s).view(y.shape))
