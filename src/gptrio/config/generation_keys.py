"""Generation options that `config.json` carried before `generation_config.json` existed."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any, cast


@dataclass(init=False, eq=False, repr=False, kw_only=True)
class GenerationKeys:
    """Options of `generate` on a model's configuration, for old checkpoints; `GenerationConfig` validates them."""

    max_length: int = 20
    min_length: int = 0
    do_sample: bool = False
    early_stopping: bool | str = False
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    num_return_sequences: int = 1
    output_scores: bool = False
    return_dict_in_generate: bool = False
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None

    def _get_non_default_generation_parameters(self) -> dict[str, Any]:
        """Return the generation options that differ from those of a new configuration of the class."""
        defaults = _defaults(cast(Hashable, type(self)))
        values = {name: getattr(self, name) for name in defaults}
        return {name: value for name, value in values.items() if value is not None and value != defaults[name]}


@functools.cache
def _defaults(kind: Any) -> dict[str, Any]:
    """The options of a new configuration of a class; the general ones if it cannot be built without arguments."""
    names = [field.name for field in fields(GenerationKeys)]
    try:
        new = kind()
    except (TypeError, ValueError):
        new = GenerationKeys
    return {name: getattr(new, name) for name in names}
