"""Options of the two watermarks. No torch is loaded before a processor is built."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptrio.config.fields import check_number, unknown_option
from gptrio.errors import OptionError

if TYPE_CHECKING:
    import torch

    from gptrio.generation.processors.base import LogitsProcessor


@dataclass
class BaseWatermarkingConfig(ABC):
    """Base of both watermark configurations: dictionaries, JSON, validation."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **overrides: Any) -> BaseWatermarkingConfig:
        """Build from a dictionary; `overrides` win. Raises OptionError for keys that do not exist."""
        options = config_dict | overrides
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown_option(name, known, cls.__name__)
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a new dictionary."""
        return asdict(self)

    def to_json_string(self) -> str:
        """Return the options as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the options to a JSON file."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def update(self, **options: Any) -> None:
        """Set the options that exist; ignore the others."""
        for field in fields(self):
            if field.name in options:
                setattr(self, field.name, options[field.name])

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.to_dict().items())

    @abstractmethod
    def validate(self) -> None:
        """Raise OptionError when an option is out of range."""

    @abstractmethod
    def construct_processor(self, vocab_size: int, device: str | torch.device) -> LogitsProcessor:
        """Build the processor that watermarks scores (B, V) with V = vocab_size."""


@dataclass
class WatermarkingConfig(BaseWatermarkingConfig):
    """Green-list watermark: the scores of a pseudo-random part of the vocabulary are raised at each step.

    Source: Kirchenbauer et al., "On the Reliability of Watermarks for Large Language Models", arXiv:2306.04634.

    Args:
        greenlist_ratio: part of the vocabulary that is green.
        bias: added to the scores of green tokens.
        hashing_key: secret of the seeds; the millionth prime by default.
        seeding_scheme: "lefthash" seeds from the last token, "selfhash" also from the candidate itself (slower).
        context_width: number of previous tokens that "selfhash" hashes.
    """

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    def validate(self) -> None:
        """Raise OptionError when an option is out of range."""
        check_number("greenlist_ratio", self.greenlist_ratio, float, gt=0, lt=1)
        check_number("context_width", self.context_width, int, ge=1)
        if self.seeding_scheme not in ("lefthash", "selfhash"):
            raise OptionError(f"seeding_scheme={self.seeding_scheme!r} is not known; expected 'lefthash' or 'selfhash'")

    def construct_processor(self, vocab_size: int, device: str | torch.device) -> LogitsProcessor:
        """Build the processor of this watermark."""
        from gptrio.generation.watermark.greenlist import WatermarkLogitsProcessor

        return WatermarkLogitsProcessor(vocab_size, device, **self.to_dict())


@dataclass
class SynthIDTextWatermarkingConfig(BaseWatermarkingConfig):
    """SynthID watermark: tournament sampling over pseudo-random values of each n-gram.

    Source: Dathathri et al., "Scalable watermarking for identifying large language model outputs", Nature 634 (2024).

    Args:
        ngram_len: length of the hashed n-grams, the new token included.
        keys: secret keys, one for each layer (depth) of the tournament.
        context_history_size: number of stored contexts; a repeated one is not watermarked twice.
        sampling_table_seed: seed of the table of random bits.
        sampling_table_size: entries of that table.
        skip_first_ngram_calls: do not watermark the first `ngram_len - 1` steps.
        debug_mode: watermark a uniform distribution instead of the model's.
    """

    ngram_len: int
    keys: list[int]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False

    def validate(self) -> None:
        """Raise OptionError when an option is out of range."""
        check_number("ngram_len", self.ngram_len, int, ge=2)
        check_number("context_history_size", self.context_history_size, int, ge=1)
        check_number("sampling_table_size", self.sampling_table_size, int, ge=1, le=2**24)
        if not self.keys:
            raise OptionError("keys is empty; expected one integer for each layer of the tournament")

    def construct_processor(self, vocab_size: int, device: str | torch.device) -> LogitsProcessor:
        """Build the processor of this watermark; the vocabulary's size is read from the scores."""
        from gptrio.generation.watermark.synthid import SynthIDTextWatermarkLogitsProcessor

        return SynthIDTextWatermarkLogitsProcessor(**self.to_dict(), device=device)


def watermarking_from(value: BaseWatermarkingConfig | dict[str, Any]) -> BaseWatermarkingConfig:
    """Return a watermark configuration from itself or from a dictionary."""
    if isinstance(value, BaseWatermarkingConfig):
        return value
    if "ngram_len" in value or "keys" in value:
        return SynthIDTextWatermarkingConfig.from_dict(value)
    return WatermarkingConfig.from_dict(value)
