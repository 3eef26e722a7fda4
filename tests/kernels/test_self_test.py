"""The self-test passes what is right and names what is wrong."""

import pytest
import torch

from loramux_kernels import reference, self_test
from loramux_kernels.triton import launch

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_both_implementations_pass(impl: str, dtype: torch.dtype) -> None:
    self_test(impl, CPU, dtype)


@pytest.mark.parametrize("name", ["lora_linear", "lora_qkv", "lora_conv2d"])
def test_an_operation_that_is_wrong_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(reference, name)
    monkeypatch.setattr(launch, name, lambda *args: right(*args) * 1.02)
    with pytest.raises(ValueError, match=rf"{name} is wrong on cpu in torch.float16: relative error 0\.02"):
        self_test("triton", CPU, torch.float16)


def test_a_result_that_is_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.lora_qkv
    monkeypatch.setattr(launch, "lora_qkv", lambda *args: right(*args) * float("nan"))
    with pytest.raises(ValueError, match="lora_qkv is wrong"):
        self_test("triton", CPU, torch.float32)
