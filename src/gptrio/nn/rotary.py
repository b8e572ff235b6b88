"""Rotary positions (Su et al., 2021), and the ways of stretching them past the length of pretraining."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gptrio.config.rotary import SCALINGS, Arrays, Frequencies, RotarySettings

if TYPE_CHECKING:
    from gptrio.config.gpt_neox import GPTNeoXConfig

RotaryTables = tuple[Tensor, Tensor]  # cosines and sines, each (B or 1, 1, T, 1, R)


def _compute(settings: RotarySettings, length: Tensor) -> Frequencies:
    """See `gptrio.config.rotary`; on the device of `length`, a tensor without axes."""
    arange, array = (partial(make, dtype=torch.float32, device=length.device) for make in (torch.arange, torch.tensor))
    return SCALINGS[settings.kind](settings, length, Arrays(arange, array, torch.where))


def _of_config(
    kind: str, config: GPTNeoXConfig, device: torch.device | str | None = None, seq_len: int | Tensor | None = None
) -> Frequencies:
    settings = RotarySettings.of(config)
    scaling = {**settings.scaling, "rope_type": kind}
    length = torch.as_tensor(seq_len or 1, device=device)  # a number counts in double precision, as in Python
    return _compute(replace(settings, scaling=scaling), length if isinstance(seq_len, Tensor) else length.double())


# type of scaling -> a function of (config, device, seq_len), as Transformers has it
ROPE_INIT_FUNCTIONS = {kind: partial(_of_config, kind) for kind in SCALINGS}


class RotaryEmbedding(nn.Module):
    """Tables of cosines and sines, computed in float32 where they are needed; never part of a state dict.

    Attributes:
        settings: what the frequencies were computed of, and those of longer sequences are.
        inv_freq: (R / 2,) inverse frequencies, a buffer that may be edited or replaced; not those of long sequences,
            where the type of scaling has others for them.
        original_inv_freq: the same at first; "longrope" reads these for short sequences.
        long_inv_freq: those of "longrope" for long sequences; None for other types.
        attention_scaling: factor of the tables.
    """

    inv_freq: Tensor

    def __init__(self, settings: RotarySettings) -> None:
        super().__init__()
        self.settings = settings
        self._set_frequencies(torch.get_default_device())

    def _set_frequencies(self, device: torch.device) -> None:
        """Compute all that does not depend on a call, on the CPU where the device is "meta"."""
        device = torch.device("cpu") if device.type == "meta" else device
        length = torch.ones((), dtype=torch.long, device=device)
        inv_freq, self.attention_scaling = _compute(self.settings, length)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.original_inv_freq, is_longrope = inv_freq, self.settings.kind == "longrope"
        self.long_inv_freq = _compute(self.settings, length + self.settings.plain_length)[0] if is_longrope else None

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions (B or 1, T), each (B or 1, T, R), in the dtype and on the device of `x`."""
        frequencies, factor = self._frequencies_for(position_ids), self.attention_scaling
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            frequencies = torch.cat([frequencies, frequencies])  # for both parts of a pair
            angles = position_ids[:, :, None].float() * frequencies  # (B or 1, T, R)
            cos, sin = angles.cos(), angles.sin()
            if factor != 1.0:
                cos, sin = cos * factor, sin * factor
            return cos.to(x.dtype), sin.to(x.dtype)

    def _frequencies_for(self, position_ids: Tensor) -> Tensor:
        """Inverse frequencies (R / 2,) in float32, for the longest of some sequences."""
        if self.settings.kind not in ("dynamic", "longrope"):
            return self.inv_freq.detach().to(position_ids.device, torch.float32)
        length = position_ids.max() + 1
        short = self.inv_freq if self.long_inv_freq is None else self.original_inv_freq
        long = _compute(self.settings, length)[0] if self.long_inv_freq is None else self.long_inv_freq
        short, long = (each.detach().to(position_ids.device, torch.float32) for each in (short, long))
        return torch.where(length > self.settings.plain_length, long, short)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        """Move the frequencies with their values, also where parameters get new storage, and leave them in float32."""
        kept = self.inv_freq, self.original_inv_freq, self.long_inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        device = self.inv_freq.device
        if kept[0].is_meta and device.type != "meta":
            self._set_frequencies(device)
        else:
            self.inv_freq, self.original_inv_freq = kept[0].to(device), kept[1].to(device)
            self.long_inv_freq = None if kept[2] is None else kept[2].to(device)
        return self

    # read-only attributes of Transformers' module
    rope_type = property(attrgetter("settings.kind"), doc="Type of the scaling.")
    max_seq_len_cached = property(attrgetter("settings.max_length"), doc="Positions of pretraining.")
    original_max_seq_len = property(attrgetter("settings.max_length"), doc="Positions of pretraining.")

    def extra_repr(self) -> str:
        """Type and width, for `repr`."""
        return f"{self.settings.kind}, width={self.settings.width}, base={self.settings.base}"


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotate the first R dimensions of each head by the angles of its position; pairs are (i, i + R / 2).

    Args:
        x: (B, H, T, n, D), of which n share a position: queries and keys.
        tables: cosines and sines, each (B or 1, 1, T, 1, R).
    """
    (cos, sin), half = tables, tables[0].shape[-1] // 2
    first, second = x[..., :half], x[..., half : 2 * half]
    parts = [
        torch.addcmul(first * cos[..., :half], second, sin[..., :half], value=-1),
        torch.addcmul(second * cos[..., half:], first, sin[..., half:]),
    ]
    return torch.cat([*parts, x[..., 2 * half :]], dim=-1).to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """(..., R) with its halves exchanged and the new first one negated: each pair turned by a right angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None = None, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Queries and keys with the first R dimensions of each head rotated, in their own dtypes.

    Args:
        q: (B, H, T, D); for `unsqueeze_dim=2` (B, T, H, D).
        k: likewise.
        cos: (B or 1, T, R), from a `RotaryEmbedding`.
        sin: likewise.
        position_ids: not read; the tables are those of the positions.
        unsqueeze_dim: the axis of heads.
    """
    tables = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return rotate(q, tables), rotate(k, tables)
