"""Where tensors are worked on, and by which implementation of the adapter arithmetic.

Takes settings; gives a device and an implementation, or says why they cannot be had here. It loads no base.
"""

from typing import cast

import torch

from loramux_kernels import Impl, check_impl, default_impl, self_test
from loramux_server.errors import BadSetting


def find_device(name: str) -> torch.device:
    """The device of that name; for auto a GPU if there is one.

    Raises:
        BadSetting: where this machine, or the torch on it, has none of that name.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        why = "finds no GPU that it can use" if torch.version.cuda else "is built without CUDA"
        raise BadSetting(f"device is 'cuda', and torch {torch.__version__} {why}; expected cpu, or auto")
    if name == "auto":
        name = "cuda" if there else "cpu"
    return torch.device(name)


def find_kernels(name: str, device: torch.device, dtype: torch.dtype, *, deterministic: bool) -> Impl:
    """The implementation of that name, once it was seen to work on the device; for auto the device's own, or where
    last bits matter the reference: it gives rows without adapters the bits of the base's own product, whatever their
    company, and Triton's product has other bits than the vendor's.

    Raises:
        BadSetting: where it cannot run there, computes something else, or is not deterministic and was to be.
    """
    if deterministic and name == "triton":
        raise BadSetting("kernels is 'triton' with --deterministic; expected reference, or auto")
    impl = ("reference" if deterministic else default_impl(device)) if name == "auto" else cast("Impl", name)
    try:
        check_impl(impl, device)
        if impl != "reference":
            self_test(impl, device, dtype)
    except Exception as error:  # a compiler's or a driver's, of many kinds
        raise BadSetting(f"kernels is {name!r}: {error}; --kernels reference does without them") from error
    return impl
