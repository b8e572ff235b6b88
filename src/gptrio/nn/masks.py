"""What a query may attend to, described once for each forward; attention back ends derive their own masks from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # missing in torch 2.5


@lru_cache(maxsize=8)
def causal_table(positions: int, window: int | None, device: torch.device) -> Tensor:
    """(1, 1, N, N) bool, True where a query sees a key: what Transformers' layers hold as `bias`."""
    visible = torch.ones(positions, positions, dtype=torch.bool, device=device).tril()
    return (visible if window is None else visible.triu(1 - window))[None, None]


# A value below this in an additive mask hides a key: scores, and biases that callers add to them, lie far above it.
_HIDDEN_BELOW = -1000.0

_all_real: ContextVar[bool] = ContextVar("gptrio_tokens_are_real", default=False)


@contextmanager
def tokens_are_real() -> Iterator[None]:
    """Treat all tokens of calls without a mask, in this thread, as real ones, and do not warn of the padding token."""
    token = _all_real.set(True)
    try:
        yield
    finally:
        _all_real.reset(token)


def are_tokens_real() -> bool:
    """Whether calls run inside `tokens_are_real`."""
    return _all_real.get()


@dataclass
class AttentionMask:
    """Which of `S` keys each of `T` queries may attend to.

    Key slot `j` holds position `key_offset + j`; query `i` stands at `query_start + i`, or at `positions[i]` when given
    (static caches, whose lengths a compiled graph may only see as tensors).

    A query whose every visible key is padding attends evenly to those keys (or to all keys, if
    `mask_fully_padded_rows` is false), as the reference's eager path does, so that no row is ever NaN. What back ends
    derive from the mask is computed once and shared by all layers that share the mask.

    Attributes:
        query_length: T.
        key_length: S.
        query_start: position of the first query.
        key_offset: position of the first key slot.
        causal: a query sees no later position.
        mask_fully_padded_rows: causality, window and packing hold for such a query too.
        window: a query sees at most this many positions, itself included; None for all.
        attention_mask: (B, positions) bool, True for real tokens, indexed by position; None if all are real.
        custom: (B or 1, H or 1, T, S), the caller's own 4D mask: bool (True attends) or added to the scores.
        segments: (B, T), the packed sequence each token belongs to; queries see only their own.
        positions: (T,) positions of the queries, if they are only known as a tensor.
        key_positions: (S,) positions of the keys where they do not follow each other; negative for empty slots.
        memo: what back ends have computed from the mask, under a name or dtype.
    """

    query_length: int
    key_length: int
    device: torch.device
    query_start: int = 0
    key_offset: int = 0
    causal: bool = True
    mask_fully_padded_rows: bool = True
    window: int | None = None
    attention_mask: Tensor | None = None
    custom: Tensor | None = None
    segments: Tensor | None = None
    positions: Tensor | None = None
    key_positions: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def for_layer(
        self, key_length: int, key_offset: int, window: int | None, key_positions: Tensor | None = None
    ) -> AttentionMask:
        """The same mask for a layer that has other keys, or sees a window of them.

        Args:
            key_length: S; a window may leave fewer of them, the last ones.
            key_offset: position of the first key slot.
            window: most positions that a query sees, itself included; None for all.
            key_positions: see the attribute.
        """
        if window is not None and self.positions is None:
            unseen = max(self.query_start - window + 1 - key_offset, 0)
            key_length, key_offset = key_length - unseen, key_offset + unseen
        custom = self.custom
        if custom is not None and key_positions is not None:
            custom = custom.index_select(-1, key_positions.clamp(0, custom.shape[-1] - 1))
        elif custom is not None:
            custom = custom[..., key_offset - self.key_offset :][..., :key_length]
        return replace(
            self,
            key_length=key_length,
            key_offset=key_offset,
            window=window,
            custom=custom,
            key_positions=key_positions,
            memo={},
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> AttentionMask:
        """The same mask with its tensors on another device, and an empty memo."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            device=device,
            attention_mask=moved(self.attention_mask),
            custom=moved(self.custom),
            segments=moved(self.segments),
            positions=moved(self.positions),
            key_positions=moved(self.key_positions),
            memo={},
        )

    @property
    def is_causal_only(self) -> bool:
        """True if at most causality and the window restrict a query."""
        return self.attention_mask is None and self.custom is None and self.segments is None and self.positions is None

    @property
    def is_unmasked(self) -> bool:
        """True if every query attends to every key; never under a window in an export, which is for any length."""
        if not self.is_causal_only or (self.window is not None and is_exporting()):
            return False
        last_key = self.key_offset + self.key_length - 1
        reaches_back = self.window is None or self.query_start + self.query_length - 1 - self.window < self.key_offset
        return reaches_back and (not self.causal or last_key <= self.query_start)

    @property
    def is_square_causal(self) -> bool:
        """True if the mask is the lower triangle of a square, query i sees keys 0..i; as `is_unmasked` in an export."""
        if self.window is not None and is_exporting():
            return False
        if not (self.is_causal_only and self.causal and self.query_length == self.key_length):
            return False
        return self.query_start == self.key_offset and (self.window is None or self.window >= self.key_length)

    @property
    def is_causal_span(self) -> bool:
        """True if query i sees all keys up to its own position, or the window of them, and nothing else masks keys."""
        return self.is_causal_only and self.causal and self.key_positions is None

    def visible(self) -> Tensor:
        """(1 or B, 1, T, S) bool: positions that causality, window and packing allow, padding included."""
        keys = self.key_positions
        if keys is None:
            keys = torch.arange(self.key_offset, self.key_offset + self.key_length, device=self.device)
        if self.positions is not None:
            queries = self.positions[:, None]
        else:
            start = self.query_start
            queries = torch.arange(start, start + self.query_length, device=self.device)[:, None]
        if self.causal:
            allowed = keys <= queries  # (T, S)
        else:
            allowed = torch.ones(self.query_length, self.key_length, dtype=torch.bool, device=self.device)
        if self.window is not None:
            allowed = allowed & (keys > queries - self.window)
        if self.key_positions is not None:
            allowed = allowed & (keys >= 0)
        allowed = allowed[None, None]
        if self.segments is not None:
            allowed = allowed & (self.segments[:, None, :, None] == self.segments[:, None, None, :])
        return allowed

    def real_keys(self) -> Tensor | None:
        """(B, S) bool, True for keys that are not padding; None if all are real."""
        if self.attention_mask is None:
            return None
        if self.key_positions is not None:
            known = (self.key_positions >= 0) & (self.key_positions < self.attention_mask.shape[1])
            return self.attention_mask[:, self.key_positions.clamp(0, self.attention_mask.shape[1] - 1)] & known
        real = self.attention_mask[:, self.key_offset : self.key_offset + self.key_length]
        missing = self.key_length - real.shape[1]  # slots of a static cache that are not filled yet
        return torch.nn.functional.pad(real, (0, missing)) if missing > 0 else real

    def additive(self, dtype: torch.dtype) -> Tensor:
        """(B or 1, H or 1, T, S) float to add to scores: 0 attends, -inf never, a very low finite value padding."""
        if dtype not in self.memo:
            self.memo[dtype] = self._compute_additive(dtype)
        return cast(Tensor, self.memo[dtype])

    def _compute_additive(self, dtype: torch.dtype) -> Tensor:
        least = (
            torch.finfo(dtype).min / 2
        )  # a score can be added without overflow; a row of -inf alone would become NaN
        soft = torch.zeros((), dtype=dtype, device=self.device)
        real = self.real_keys()
        if real is not None:
            soft = soft.masked_fill(~real[:, None, None, :], least)
        if self.custom is not None:
            soft = soft + _as_additive(self.custom, dtype, least)
        return torch.where(self.visible(), soft, float("-inf") if self.mask_fully_padded_rows else least)

    def has_fully_padded_rows(self) -> bool:
        """Whether every key that some query may attend to is padding; False while traced."""
        if torch.compiler.is_compiling() or (self.custom is None and self.real_keys() is None):
            return False
        if "has_fully_padded_rows" not in self.memo:
            best = self.additive(torch.float32).amax(-1)
            self.memo["has_fully_padded_rows"] = bool((best < _HIDDEN_BELOW).any())
        return bool(self.memo["has_fully_padded_rows"])


def _as_additive(custom: Tensor, dtype: torch.dtype, least: float) -> Tensor:
    if custom.dtype == torch.bool:
        return torch.zeros((), dtype=dtype, device=custom.device).masked_fill(~custom, least)
    return custom.to(dtype).clamp(min=least)
