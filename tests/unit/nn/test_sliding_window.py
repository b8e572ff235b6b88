"""Windowed attention in blocks equals the same attention in one piece."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio.nn import sliding_window as local
from gptrio.nn.attention import AttentionOptions, attention
from gptrio.nn.masks import AttentionMask
from gptrio.testing import assert_close

ROWS, HEADS, WIDTH = 2, 2, 4


def tensors(queries: int, keys: int, rows: int = ROWS) -> list[Tensor]:
    shapes = [(rows, HEADS, length, WIDTH) for length in (queries, keys, keys)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def run(states: list[Tensor], mask: AttentionMask, **options: Any) -> list[Tensor]:
    """The result, and the gradients of q, k, v."""
    out, _ = attention(*states, mask, AttentionOptions(1.0), **options)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), states)]


def in_one_piece(
    monkeypatch: pytest.MonkeyPatch, states: list[Tensor], mask: AttentionMask, **options: Any
) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(local, "should_use", lambda *_: False)
        return run(states, mask, **options)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("window", "past"), [*itertools.product([2, 3, 5, 8], [0, 1, 7, 30])])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_equal_one_piece(
    implementation: str, window: int, past: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for extra, offset in itertools.product((1, window, window + 1, 20), {0, max(past - window + 1, 0)}):
        length = 2 * window + extra
        states = tensors(length, past + length - offset)
        padding = None
        if padded:
            padding = torch.ones(ROWS, past + length, dtype=torch.bool)
            padding[0, :6] = padding[1, -3:] = False
        given = {"query_start": past, "key_offset": offset, "window": window, "attention_mask": padding}
        mask, again = (AttentionMask(length, states[1].shape[2], torch.device("cpu"), **given) for _ in range(2))
        options = {"implementation": implementation, "head_mask": torch.rand(1, HEADS, 1, 1)}
        assert local.should_use(mask, options["head_mask"])
        for one, other in zip(
            run(states, mask, **options), in_one_piece(monkeypatch, states, again, **options), strict=True
        ):
            assert_close(one, other, 2e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_sequences(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = tensors(40, 40)
    segments = torch.stack([torch.arange(40) // 13, torch.arange(40) // 40])
    mask, again = (AttentionMask(40, 40, torch.device("cpu"), window=8, segments=segments) for _ in range(2))
    options = {"implementation": implementation}
    for one, other in zip(
        run(states, mask, **options), in_one_piece(monkeypatch, states, again, **options), strict=True
    ):
        assert_close(one, other, 2e-6)


@pytest.mark.parametrize(
    "given",
    [
        {"window": None},
        {"window": 20},
        {"window": 8, "causal": False},
        {"window": 8, "custom": torch.zeros(1, 1, 40, 40)},
        {"window": 8, "positions": torch.arange(40)},
    ],
    ids=str,
)
def test_what_is_left_in_one_piece(given: dict[str, Any]) -> None:
    assert not local.should_use(AttentionMask(40, 40, torch.device("cpu"), **given), None)
    plain = AttentionMask(40, 40, torch.device("cpu"), window=8)
    assert local.should_use(plain, None)
    assert not local.should_use(plain, torch.ones(ROWS, HEADS, 1, 1))


def test_dropout_keeps_the_mean() -> None:
    q, k, _ = (x.detach() for x in tensors(64, 64, rows=64))
    mask = AttentionMask(64, 64, torch.device("cpu"), window=8)
    for implementation in ("eager", "sdpa"):
        out, _ = attention(
            q, k, torch.ones_like(k), mask, AttentionOptions(0.1, dropout=0.5), implementation=implementation
        )
        assert out.mean().item() == pytest.approx(1.0, abs=0.05)
        assert out.std().item() > 0.1


def test_keys_are_not_copied_for_one_row() -> None:
    q, k, v = tensors(32, 40, rows=1)
    mask = AttentionMask(32, 40, torch.device("cpu"), query_start=8, window=8)
    _, keys, values, _ = local.to_blocks(q, k, v, mask)
    assert keys.shape == (4, HEADS, 16, WIDTH)
    assert keys.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    assert torch.equal(values[1], v[0, :, 8:24])


def test_cost_grows_with_the_length_and_not_its_square() -> None:
    """Counted in the numbers of scores that are taken."""
    counts = []
    for length in (512, 1024):
        q, k, v = tensors(length, length, rows=1)
        queries, keys, _, _ = local.to_blocks(q, k, v, AttentionMask(length, length, q.device, window=32))
        counts.append(queries.shape[0] * queries.shape[2] * keys.shape[2])
    assert counts == [512 * 64, 1024 * 64]
