"""Comparison of tensors relative to their largest value, as for logits of two implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value expected; infinite where only one of two is finite.

    Args:
        actual: any shape.
        expected: the same shape. Equal infinities count as no difference, NaN never equals anything.

    Raises:
        AssertionError: the shapes differ.
    """
    import torch

    assert actual.shape == expected.shape, f"shapes {tuple(actual.shape)} and {tuple(expected.shape)} differ"
    one, other = actual.detach().double().cpu(), expected.detach().double().cpu()
    gap = torch.where(one == other, 0.0, (one - other).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
    finite = other[other.isfinite()].abs()
    scale = finite.max().item() if finite.numel() else 1.0
    return (gap.max().item() if gap.numel() else 0.0) / (scale or 1.0)


def assert_close(actual: Tensor, expected: Tensor, limit: float = 1e-5, name: str = "tensors") -> None:
    """Check that two tensors differ by at most `limit` of the expected one's largest value.

    Args:
        actual: any shape.
        expected: the same shape.
        limit: largest `relative_difference` allowed.
        name: what is compared, for the message.

    Raises:
        AssertionError: they differ by more.
    """
    difference = relative_difference(actual, expected)
    assert difference <= limit, f"{name}: relative difference {difference:.2e}, allowed {limit:.0e}"
