"""What rotary tables depend on, and the parts of their computation that need no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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


def yarn_ramp(settings: RotarySettings) -> tuple[float, float]:
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


def yarn_attention(scaling: Mapping[str, Any]) -> float:
    """Factor of the tables, which sharpens attention over long sequences."""
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    mscale, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return sharpness(mscale) / sharpness(all_dims) if mscale and all_dims else sharpness(1.0)


def longrope_attention(settings: RotarySettings) -> float:
    """Factor of the tables for long sequences (LongRoPE; Ding et al., 2024)."""
    scaling = settings.scaling
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)
    trained = settings.original_length or settings.max_length
    factor = settings.max_length / trained if settings.original_length else scaling.get("factor") or 1.0
    return math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
