"""Rotary positions (Su et al., 2021), and the ways of stretching them past the length of pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gptrio.config.rotary import RotarySettings, longrope_attention, yarn_attention, yarn_ramp
from gptrio.kernels.recompute import is_untransformed

if TYPE_CHECKING:
    from gptrio.config.gpt_neox import GPTNeoXConfig

RotaryTables = tuple[Tensor, Tensor]  # cosines and sines, each (B or 1, 1, T, 1, R)

# Inverse frequencies (R / 2,) in float32, and the factor of the tables. The functions below compute them for sequences
# of `length`, a tensor without axes, whose value they never read on the host.
Frequencies = tuple[Tensor, float]


def _powers(settings: RotarySettings, device: torch.device) -> Tensor:
    """(R / 2,) exponents of the base."""
    return torch.arange(0, settings.width, 2, device=device).float() / settings.width


def _default(settings: RotarySettings, length: Tensor) -> Frequencies:
    return 1.0 / settings.base ** _powers(settings, length.device), 1.0


def _linear(settings: RotarySettings, length: Tensor) -> Frequencies:
    """Positions divided by a factor (Chen et al., 2023)."""
    frequencies, _ = _default(settings, length)
    return frequencies / settings.scaling["factor"], 1.0


def _dynamic(settings: RotarySettings, length: Tensor) -> Frequencies:
    """A base that grows with the length beyond that of pretraining (NTK-aware scaling)."""
    factor, trained, width = settings.scaling["factor"], settings.max_length, settings.width
    plain, _ = _default(settings, length)
    growth: Tensor = factor * length.clamp(min=trained) / trained - (factor - 1)
    stretched = 1.0 / (settings.base * growth ** (width / (width - 2))) ** _powers(settings, length.device)
    return torch.where(length > trained, stretched, plain), 1.0


def _yarn(settings: RotarySettings, length: Tensor) -> Frequencies:
    """Slow frequencies divided by a factor, fast ones kept, a ramp between (YaRN; Peng et al., 2023)."""
    scaling = settings.scaling
    low, high = yarn_ramp(settings)
    pairs = torch.arange(settings.width // 2, dtype=torch.float32, device=length.device)
    kept = 1 - ((pairs - low) / ((high - low) or 0.001)).clamp(0, 1)
    wavelengths = settings.base ** _powers(settings, length.device)
    return (1.0 / (scaling["factor"] * wavelengths)) * (1 - kept) + (1.0 / wavelengths) * kept, yarn_attention(scaling)


def _longrope(settings: RotarySettings, length: Tensor) -> Frequencies:
    """One searched factor for every frequency, others for long sequences (LongRoPE; Ding et al., 2024)."""
    trained = settings.original_length or settings.max_length
    short, long = (
        torch.tensor(settings.scaling[name], dtype=torch.float32, device=length.device)
        for name in ("short_factor", "long_factor")
    )
    factors = torch.where(length > trained, long, short)
    return 1.0 / (factors * settings.base ** _powers(settings, length.device)), longrope_attention(settings)


def _llama3(settings: RotarySettings, length: Tensor) -> Frequencies:
    """Long waves divided by a factor, short ones kept, the middle blended (Llama 3.1; Dubey et al., 2024)."""
    scaling = settings.scaling
    factor, slow, fast = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = scaling["original_max_position_embeddings"]
    frequencies, _ = _default(settings, length)
    waves = 2 * math.pi / frequencies
    kept = (trained / waves - slow) / (fast - slow)
    blended = (1 - kept) * frequencies / factor + kept * frequencies
    long_or_middle = torch.where(waves > trained / slow, frequencies / factor, blended)
    return torch.where(waves < trained / fast, frequencies, long_or_middle), 1.0


SCALINGS: dict[str, Callable[[RotarySettings, Tensor], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
_BY_LENGTH = ("dynamic", "longrope")


def _of_config(
    compute: Callable[[RotarySettings, Tensor], Frequencies],
    config: GPTNeoXConfig,
    device: torch.device | str | None = None,
    seq_len: int | None = None,
) -> Frequencies:
    return compute(RotarySettings.of(config), torch.tensor(seq_len or 1, device=device))


# type of scaling -> a function of (config, device, seq_len), as Transformers has it
ROPE_INIT_FUNCTIONS = {kind: partial(_of_config, compute) for kind, compute in SCALINGS.items()}


class RotaryEmbedding(nn.Module):
    """Tables of cosines and sines, computed in float32 where they are needed; never part of a state dict.

    Args:
        settings: what they depend on.
    """

    def __init__(self, settings: RotarySettings) -> None:
        super().__init__()
        self.settings = settings
        self._frequencies: dict[torch.device, tuple[RotarySettings, Frequencies]] = {}

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions (B or 1, T), each (B or 1, T, R), in the dtype and on the device of `x`."""
        frequencies, factor = self._frequencies_for(position_ids)
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            angles = position_ids[:, :, None].float() * frequencies  # (B or 1, T, R)
            cos, sin = angles.cos(), angles.sin()
            if factor != 1.0:
                cos, sin = cos * factor, sin * factor
            return cos.to(x.dtype), sin.to(x.dtype)

    def _frequencies_for(self, position_ids: Tensor) -> Frequencies:
        """Inverse frequencies (R,) for both parts of a pair; computed for each call if they depend on its length."""
        kind, device = self.settings.kind, position_ids.device
        if kind in _BY_LENGTH:
            return self._compute(position_ids.max() + 1)
        if not is_untransformed() or torch._C._len_torch_dispatch_stack():
            return self._compute(torch.ones((), device=device))  # its tensors belong to the trace or mode
        known = self._frequencies.get(device)
        if known is None or known[0] is not self.settings:
            with torch.inference_mode(False):
                known = self.settings, self._compute(torch.ones((), device=device))
            self._frequencies[device] = known
        return known[1]

    def _compute(self, length: Tensor) -> Frequencies:
        frequencies, factor = SCALINGS[self.settings.kind](self.settings, length)
        return torch.cat([frequencies, frequencies]), factor

    # read-only attributes of Transformers' module; to change them, set `settings`
    rope_type = property(attrgetter("settings.kind"), doc="Type of the scaling.")
    max_seq_len_cached = property(attrgetter("settings.max_length"), doc="Positions of pretraining.")
    original_max_seq_len = property(attrgetter("settings.max_length"), doc="Positions of pretraining.")
    original_inv_freq = property(attrgetter("inv_freq"), doc="The same as `inv_freq`.")

    @property
    def inv_freq(self) -> Tensor:
        """(R / 2,) inverse frequencies of short sequences, in float32."""
        return SCALINGS[self.settings.kind](self.settings, torch.ones((), device="cpu"))[0]

    @property
    def attention_scaling(self) -> float:
        """Factor of the tables."""
        return SCALINGS[self.settings.kind](self.settings, torch.ones((), device="cpu"))[1]

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
