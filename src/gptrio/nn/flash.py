"""The `flash_attention_2` back end: the functions of the flash_attn package (Dao, 2023).

They support causality and windows, but not masks: padding is taken out of the batch before the call and put back after
it, and packed sequences are given by their bounds. A mask that they cannot express goes to another back end.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.errors import MissingDependencyError, UnsupportedError, import_optional
from gptrio.nn.masks import AttentionMask

if TYPE_CHECKING:
    from gptrio.nn.attention import AttentionOptions

NAME = "flash_attention_2"


def load() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The package's functions for batches of one length, and of many.

    Raises:
        MissingDependencyError: the package is not installed, or too old to support windows.
    """
    package = import_optional(
        "flash_attn",
        f"attn_implementation={NAME!r} needs the flash_attn package and an NVIDIA GPU of compute capability 8.0 or "
        "higher (Ampere or newer); pip install flash-attn, or use 'sdpa', which runs everywhere",
    )
    if not _supports_windows(package.flash_attn_func):
        raise MissingDependencyError(
            f"attn_implementation={NAME!r} needs flash_attn 2.3 or newer; pip install -U flash-attn"
        )
    return package.flash_attn_func, package.flash_attn_varlen_func


@functools.cache
def _supports_windows(function: Callable[..., Any]) -> bool:
    return "window_size" in inspect.signature(function).parameters


def can_express(mask: AttentionMask) -> bool:
    """Whether the package's functions can apply a mask."""
    if mask.custom is not None or mask.positions is not None:
        return False
    at_end = mask.query_start + mask.query_length == mask.key_offset + mask.key_length
    if mask.causal and not at_end:
        return False
    # with padding taken out, a window would count real tokens only
    return mask.attention_mask is None or mask.window is None or mask.window >= mask.key_length or _is_one_run(mask)


def _is_one_run(mask: AttentionMask) -> bool:
    """Whether the real tokens of every row are consecutive."""
    if "one run" not in mask.memo:
        is_real = mask.attention_mask
        assert is_real is not None
        starts = F.pad(is_real, (1, 0))[:, :-1].logical_not() & is_real  # (B, positions)
        mask.memo["one run"] = bool((starts.sum(-1) <= 1).all())
    return bool(mask.memo["one run"])


def flash(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, options: AttentionOptions, head_mask: Tensor | None
) -> tuple[Tensor, None]:
    """The formula of `eager`, whose scores the package computes in float32; queries that are padding return zeros.

    Raises:
        MissingDependencyError: see `load`.
        UnsupportedError: float32 on a GPU.
    """
    dense, varlen = load()
    window = (-1, -1) if mask.window is None else (mask.window - 1, 0 if mask.causal else -1)
    settings = {
        "dropout_p": options.dropout,
        "softmax_scale": options.scale,
        "causal": mask.causal,
        "window_size": window,
    }
    dtype = _call_dtype(q)
    states = tuple(x.transpose(1, 2).to(dtype) for x in (q, k, v))  # (B, T or S, H, D)
    if mask.attention_mask is None and mask.segments is None:
        out = dense(*states, **settings)
    else:
        queries, keys = _layout(mask)
        packed = varlen(
            queries.take(states[0]),
            keys.take(states[1]),
            keys.take(states[2]),
            cu_seqlens_q=queries.bounds,
            cu_seqlens_k=keys.bounds,
            max_seqlen_q=queries.longest,
            max_seqlen_k=keys.longest,
            **settings,
        )
        out = queries.put(packed, states[0])
    out = out.transpose(1, 2).to(v.dtype)
    return (out if head_mask is None else out * head_mask.to(out.dtype)), None


def _call_dtype(q: Tensor) -> torch.dtype:
    """Dtype of the call: that of autocast if it is on, since norms and rotations return float32 there."""
    if torch.is_autocast_enabled(q.device.type):
        return torch.get_autocast_dtype(q.device.type)
    if q.dtype == torch.float32 and q.is_cuda:
        raise UnsupportedError(
            f"attn_implementation={NAME!r} works in float16 and bfloat16 only, but the model is in float32; load it "
            "with dtype=torch.bfloat16, or use 'sdpa'"
        )
    return q.dtype


@dataclass
class _Ragged:
    """Rows of different lengths, concatenated.

    Attributes:
        index: (N,) indices of the tokens in the flattened batch; None for all.
        bounds: (rows + 1,) int32, where each row starts and ends.
        longest: length of the longest row.
    """

    index: Tensor | None
    bounds: Tensor
    longest: int

    def take(self, x: Tensor) -> Tensor:
        """(B, T, H, D) to (N, H, D)."""
        flat = x.flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def put(self, packed: Tensor, like: Tensor) -> Tensor:
        """(N, H, D) to (B, T, H, D), zeros for padding."""
        if self.index is None:
            return packed.view(like.shape)
        out = packed.new_zeros(like.shape[0] * like.shape[1], *like.shape[2:])
        return out.index_put((self.index,), packed).view(like.shape)


def _layout(mask: AttentionMask) -> tuple[_Ragged, _Ragged]:
    """How queries and keys are concatenated, computed once for all layers that share the mask."""
    if NAME not in mask.memo:
        mask.memo[NAME] = _of_segments(mask.segments) if mask.segments is not None else _of_padding(mask)
    layout: tuple[_Ragged, _Ragged] = mask.memo[NAME]
    return layout


def _of_segments(segments: Tensor) -> tuple[_Ragged, _Ragged]:
    starts = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True).flatten().nonzero().flatten()
    bounds = F.pad(starts, (0, 1), value=segments.numel()).int()
    ragged = _Ragged(None, bounds, int(bounds.diff().max()))
    return ragged, ragged


def _of_padding(mask: AttentionMask) -> tuple[_Ragged, _Ragged]:
    real_keys = mask.real_keys()
    assert real_keys is not None
    keys = _of_real(real_keys)
    if mask.causal:
        return _of_real(real_keys[:, -mask.query_length :]), keys
    rows, length = real_keys.shape[0], mask.query_length
    bounds = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=mask.device)
    return _Ragged(None, bounds, length), keys


def _of_real(real: Tensor) -> _Ragged:
    lengths = real.sum(-1, dtype=torch.int32)
    bounds = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return _Ragged(real.flatten().nonzero().flatten(), bounds, int(lengths.max()))
