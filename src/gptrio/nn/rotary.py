"""Rotary positions (Su et al., 2021), and the ways of stretching them past the length of pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RotarySettings:
    """What rotary tables depend on.

    Attributes:
        width: R, rotated dimensions of a head.
        base: of the frequencies.
        max_length: positions of pretraining.
        scaling: a normalized `rope_scaling`, or empty.
        original_length: length before stretching, for "longrope" files that have it beside `rope_scaling`.
    """

    width: int
    base: float
    max_length: int
    scaling: Mapping[str, Any] = field(default_factory=dict)
    original_length: int | None = None

    @property
    def kind(self) -> str:
        """Type of the scaling."""
        return str(self.scaling.get("rope_type", "default"))

    def powers(self, device: torch.device) -> Tensor:
        """(R / 2,) exponents of the base."""
        return torch.arange(0, self.width, 2, device=device).float() / self.width


RotaryTables = tuple[Tensor, Tensor]  # cosines and sines, each (B or 1, 1, T, 1, R)

# Inverse frequencies (R / 2,) in float32, and the factor of the tables. The functions below compute them for sequences
# of `length`, a tensor without axes, whose value they never read on the host.
Frequencies = tuple[Tensor, float]


def _default(settings: RotarySettings, length: Tensor) -> Frequencies:
    return 1.0 / settings.base ** settings.powers(length.device), 1.0


def _linear(settings: RotarySettings, length: Tensor) -> Frequencies:
    """Positions divided by a factor (Chen et al., 2023)."""
    frequencies, _ = _default(settings, length)
    return frequencies / settings.scaling["factor"], 1.0


def _dynamic(settings: RotarySettings, length: Tensor) -> Frequencies:
    """A base that grows with the length beyond that of pretraining (NTK-aware scaling)."""
    factor, trained, width = settings.scaling["factor"], settings.max_length, settings.width
    plain, _ = _default(settings, length)
    growth: Tensor = factor * length.clamp(min=trained) / trained - (factor - 1)
    stretched = 1.0 / (settings.base * growth ** (width / (width - 2))) ** settings.powers(length.device)
    return torch.where(length > trained, stretched, plain), 1.0


def _yarn(settings: RotarySettings, length: Tensor) -> Frequencies:
    """Slow frequencies divided by a factor, fast ones kept, a ramp between (YaRN; Peng et al., 2023)."""
    scaling, width = settings.scaling, settings.width
    factor = scaling["factor"]
    trained = scaling.get("original_max_position_embeddings") or settings.max_length

    def pair_of(turns: float) -> float:
        """Index of the pair that turns this often over the trained length."""
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(settings.base))

    low, high = pair_of(scaling.get("beta_fast") or 32), pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    pairs = torch.arange(width // 2, dtype=torch.float32, device=length.device)
    kept = 1 - ((pairs - low) / ((high - low) or 0.001)).clamp(0, 1)
    wavelengths = settings.base ** settings.powers(length.device)
    return (1.0 / (factor * wavelengths)) * (1 - kept) + (1.0 / wavelengths) * kept, _yarn_attention(scaling)


def _yarn_attention(scaling: Mapping[str, Any]) -> float:
    """Factor of the tables, which sharpens attention over long sequences."""
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    mscale, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return sharpness(mscale) / sharpness(all_dims) if mscale and all_dims else sharpness(1.0)


def _longrope(settings: RotarySettings, length: Tensor) -> Frequencies:
    """One searched factor for every frequency, others for long sequences (LongRoPE; Ding et al., 2024)."""
    scaling = settings.scaling
    trained = settings.original_length or settings.max_length
    factor = settings.max_length / trained if settings.original_length else scaling.get("factor") or 1.0
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    short, long = (
        torch.tensor(scaling[name], dtype=torch.float32, device=length.device)
        for name in ("short_factor", "long_factor")
    )
    factors = torch.where(length > trained, long, short)
    return 1.0 / (factors * settings.base ** settings.powers(length.device)), float(attention)


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
        if torch.compiler.is_compiling():
            return self._compute(torch.ones((), device=device))
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
