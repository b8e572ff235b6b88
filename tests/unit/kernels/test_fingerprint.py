"""A fingerprint changes with every byte and every exchange, and with nothing else."""

from __future__ import annotations

from operator import mul

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from gptrio.kernels.fingerprint import _byte_multipliers, _word_multipliers, fingerprint

SIZES = [1, 2, 3, 7, 8, 9, 12, 13, 1023, 1024, 8191, 8192, 8196, 8200, 30_001]


@pytest.fixture(params=[True, False], ids=["bytes", "words"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, on every processor."""
    monkeypatch.setattr("gptrio.kernels.fingerprint.has_int8_products", lambda: request.param)


@pytest.mark.parametrize("size", SIZES)
def test_every_bit_of_every_byte_counts(size: int) -> None:
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    before = fingerprint(data)
    places = (
        range(size) if size < 2000 else [*range(20), *range(size - 20, size), *torch.randint(0, size, (200,)).tolist()]
    )
    for place in places:
        bit = int(torch.randint(0, 8, ()))
        data[place] ^= 1 << bit
        assert not torch.equal(fingerprint(data), before), (place, bit)
        data[place] ^= 1 << bit
    assert torch.equal(fingerprint(data), before)
    assert torch.equal(fingerprint(data.clone()), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("values", ["zeros and ones", "powers of two", "signs", "normal"])
def test_every_exchange_of_two_values_counts(dtype: torch.dtype, values: str) -> None:
    """Plain values have most of their bytes in common."""
    made = {
        "zeros and ones": lambda: torch.randint(0, 2, (3, 4096)),
        "powers of two": lambda: 2.0 ** torch.randint(0, 6, (3, 4096)),
        "signs": lambda: torch.randint(0, 2, (3, 4096)) * 2.0 - 1,
        "normal": lambda: torch.randn(3, 4096) * 20,
    }
    data = made[values]().to(dtype)
    flat, before = data.view(-1), fingerprint(data)
    for _ in range(250):
        first, second = (torch.randint(0, flat.numel() // 2, (2,)) * 2 + torch.randint(0, 2, ())).tolist()  # one half
        changed = bool(flat[first] != flat[second])
        flat[[first, second]] = flat[[second, first]]
        assert torch.equal(fingerprint(data), before) != changed
        flat[[first, second]] = flat[[second, first]]


@pytest.mark.parametrize("edit", ["rows", "columns", "turned", "shifted", "negated", "permuted"])
def test_whole_edits_of_a_permutation_count(edit: str) -> None:
    """Edits that keep the sum of every row and column, or of all."""
    matrix = torch.eye(256)[torch.randperm(256)]
    edits = {
        "rows": lambda: matrix[torch.randperm(256)],
        "columns": lambda: matrix[:, torch.randperm(256)],
        "turned": lambda: matrix.t().contiguous(),
        "shifted": lambda: matrix.roll(1, 1),
        "negated": lambda: -matrix,
        "permuted": lambda: torch.eye(256),
    }
    assert not torch.equal(fingerprint(edits[edit]()), fingerprint(matrix))


def test_strided_tensors_have_fingerprints() -> None:
    matrix = torch.randn(64, 48)

    def seen(view: Tensor) -> None:
        before = fingerprint(view)
        view[3, 5] += 1
        assert not torch.equal(fingerprint(view), before)

    seen(matrix.t())
    seen(matrix[:, ::2])
    seen(matrix[7:, 3:])


def test_a_default_device_or_dtype_changes_nothing() -> None:
    data = torch.randn(1000)
    before = fingerprint(data)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            after = fingerprint(data)
    finally:
        torch.set_default_dtype(torch.float32)
    assert after.is_cpu and torch.equal(after, before)


@pytest.mark.parametrize("count", [2, 4, 128])
@pytest.mark.parametrize("bit", [0, 7, 15, 31, 32, 47, 62, 63])
def test_an_even_number_of_equal_edits_is_seen(count: int, bit: int) -> None:
    """Such as other signs of every second number: the upmost bits of words, whose sum is what it was."""
    words = torch.randint(-(2**62), 2**62, (3, 128))
    before = fingerprint(words)
    words[:, torch.randperm(128)[:count]] ^= -(2**63) if bit == 63 else 1 << bit
    assert not torch.equal(fingerprint(words), before)


@pytest.mark.parametrize("start", range(8))
def test_a_tensor_may_begin_between_words(start: int) -> None:
    data = torch.randint(0, 256, (5000,), dtype=torch.uint8)
    assert torch.equal(fingerprint(data[start:]), fingerprint(data[start:].clone()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("low", [-128, 127, 0])
def test_no_product_is_cut_off(size: int, low: int) -> None:
    """Also of the largest bytes there are."""
    high = 128 if low == 0 else low + 1
    data = torch.randint(low, high, (size,), dtype=torch.int8)
    rows = pad(data, (0, -size % 1024)).view(-1, 1024)
    found = fingerprint(data)[: len(rows)]
    if found.dtype == torch.int32:
        assert torch.equal(found.long(), rows.long() @ _byte_multipliers().long())
        return
    whole, upper = _word_multipliers().tolist()
    for row, sums in zip(rows.view(torch.int64).tolist(), found.tolist(), strict=True):
        exact = sum(map(mul, row, whole)), sum(map(mul, (word >> 32 for word in row), upper))
        assert [value % 2**64 for value in exact] == [value % 2**64 for value in sums]


def test_no_multiplier_is_0_too_large_or_even() -> None:
    assert _byte_multipliers().abs().unique().tolist() == list(range(1, 64))
    assert bool((_word_multipliers() & 1).all()) and _word_multipliers().unique().numel() == 256
