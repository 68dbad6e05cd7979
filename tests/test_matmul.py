"""The switch to oneDNN keeps float32's accuracy or is not thrown."""

import pytest
import torch
from benchmarks import matmul
from benchmarks.matmul import onednn_products


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]


def test_products_inside_have_float32_accuracy_and_the_setting_is_put_back() -> None:
    before = setting()
    left, right = torch.randn(64, 300), torch.randn(300, 64)
    exact = left.double() @ right.double()
    with onednn_products():
        assert float((left @ right - exact).abs().max() / exact.abs().max()) < matmul.LARGEST_ERROR
    assert setting() == before


def test_a_product_that_is_less_than_float32_switches_it_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = setting()
    monkeypatch.setattr(matmul, "_largest_error", lambda: 3e-3)
    with onednn_products() as on:
        assert not on
        assert setting() == before
