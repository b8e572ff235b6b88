"""What rotary tables depend on, and their inverse frequencies, computed by the functions of torch or of JAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from gptrio.config.gpt_neox import GPTNeoXConfig


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

    @classmethod
    def of(cls, config: GPTNeoXConfig) -> RotarySettings:
        """The settings of a configuration."""
        width = config.hidden_size // config.num_attention_heads
        return cls(
            int(width * config.rotary_pct),
            config.rotary_emb_base,
            config.max_position_embeddings,
            config.rope_scaling or {},
            getattr(config, "original_max_position_embeddings", None),
        )

    @property
    def plain_length(self) -> int:
        """Longest sequence whose frequencies do not depend on its length."""
        return (self.kind == "longrope" and self.original_length) or self.max_length


class Arrays(NamedTuple):
    """Functions of an array library, whose results are float32.

    Attributes:
        arange: of (start, stop, step).
        array: of numbers.
        where: of (condition, one, other).
    """

    arange: Callable[[int, int, int], Any]
    array: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]


# Inverse frequencies (R / 2,) in float32, and the factor of the tables. The functions below compute them for sequences
# of `length`, an integer array without axes, whose value they never read on the host.
Frequencies = tuple[Any, float]


def _waves(settings: RotarySettings, arrays: Arrays, base: Any = None) -> Any:
    """(R / 2,) wavelengths over 2 pi: powers of the base."""
    powers = arrays.arange(0, settings.width, 2) / settings.width
    return (settings.base if base is None else base) ** powers


def _default(settings: RotarySettings, length: Any, arrays: Arrays) -> Frequencies:
    return 1.0 / _waves(settings, arrays), 1.0


def _linear(settings: RotarySettings, length: Any, arrays: Arrays) -> Frequencies:
    """Positions divided by a factor (Chen et al., 2023)."""
    return 1.0 / _waves(settings, arrays) / settings.scaling["factor"], 1.0


def _dynamic(settings: RotarySettings, length: Any, arrays: Arrays) -> Frequencies:
    """A base that grows with the length beyond that of pretraining (NTK-aware scaling)."""
    factor, trained, width = settings.scaling["factor"], settings.max_length, settings.width
    is_long = length > trained
    growth = factor * arrays.where(is_long, length, trained) / trained - (factor - 1)
    stretched = _waves(settings, arrays, settings.base * growth ** (width / (width - 2)))
    return arrays.where(is_long, 1.0 / stretched, 1.0 / _waves(settings, arrays)), 1.0


def _yarn(settings: RotarySettings, length: Any, arrays: Arrays) -> Frequencies:
    """Slow frequencies divided by a factor, fast ones kept, a ramp between (YaRN; Peng et al., 2023)."""
    low, high = _yarn_ramp(settings)
    pairs, waves = arrays.arange(0, settings.width // 2, 1), _waves(settings, arrays)
    kept = 1 - ((pairs - low) / ((high - low) or 0.001)).clip(0, 1)
    stretched = 1.0 / (settings.scaling["factor"] * waves)
    return stretched * (1 - kept) + (1.0 / waves) * kept, _yarn_attention(settings.scaling)


def _longrope(settings: RotarySettings, length: Any, arrays: Arrays) -> Frequencies:
    """One searched factor for every frequency, others for long sequences (LongRoPE; Ding et al., 2024)."""
    short, long = (arrays.array(settings.scaling[name]) for name in ("short_factor", "long_factor"))
    factors = arrays.where(length > settings.plain_length, long, short)
    return 1.0 / (factors * _waves(settings, arrays)), _longrope_attention(settings)


def _llama3(settings: RotarySettings, length: Any, arrays: Arrays) -> Frequencies:
    """Long waves divided by a factor, short ones kept, the middle blended (Llama 3.1; Dubey et al., 2024)."""
    scaling = settings.scaling
    factor, slow, fast = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = scaling["original_max_position_embeddings"]
    frequencies = 1.0 / _waves(settings, arrays)
    waves = 2 * math.pi / frequencies
    kept = (trained / waves - slow) / (fast - slow)
    blended = (1 - kept) * frequencies / factor + kept * frequencies
    long_or_middle = arrays.where(waves > trained / slow, frequencies / factor, blended)
    return arrays.where(waves < trained / fast, frequencies, long_or_middle), 1.0


SCALINGS: dict[str, Callable[[RotarySettings, Any, Arrays], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}


def _yarn_ramp(settings: RotarySettings) -> tuple[float, float]:
    """The pairs between which frequencies go over from those kept to those divided (YaRN; Peng et al., 2023)."""
    scaling, width = settings.scaling, settings.width
    trained = scaling.get("original_max_position_embeddings") or settings.max_length

    def pair_of(turns: float) -> float:
        """Index of the pair that turns this often over the trained length."""
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(settings.base))

    low, high = pair_of(scaling.get("beta_fast") or 32), pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, width - 1)


def _yarn_attention(scaling: Mapping[str, Any]) -> float:
    """Factor of the tables, which sharpens attention over long sequences."""
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    mscale, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return sharpness(mscale) / sharpness(all_dims) if mscale and all_dims else sharpness(1.0)


def _longrope_attention(settings: RotarySettings) -> float:
    """Factor of the tables for long sequences (LongRoPE; Ding et al., 2024)."""
    scaling = settings.scaling
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)
    trained = settings.plain_length
    factor = settings.max_length / trained if settings.original_length else scaling.get("factor") or 1.0
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
