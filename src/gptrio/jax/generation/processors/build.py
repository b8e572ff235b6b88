"""Builds the processors that the options need, in the order of Transformers 4.56."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.jax.generation.processors import forcing, sampling, sequences
from gptrio.jax.generation.processors.base import Processor, merge


def build_processors(
    config: GenerationConfig, prompt_length: int, max_length: int, logits_processor: Iterable[Processor] = ()
) -> tuple[Processor, ...]:
    """Return the processors that have an effect under `config`.

    Args:
        config: the options.
        prompt_length: columns of the prompt.
        max_length: most columns of a row, prompt included.
        logits_processor: the caller's own processors.

    Raises:
        OptionError: an option is out of range, or the caller's processor has the class of one that is built here.
    """
    built = merge(list(_processors(config, prompt_length, max_length)), logits_processor)
    return (*built, *_warpers(config)) if config.do_sample else tuple(built)


def _processors(config: GenerationConfig, prompt_length: int, max_length: int) -> Iterator[Processor]:
    min_length, ends = config.min_length or 0, eos_ids(config)
    if config.min_new_tokens is not None:
        min_length = prompt_length + config.min_new_tokens
    if config.repetition_penalty not in (None, 1.0):
        yield sequences.FlaxRepetitionPenaltyLogitsProcessor(config.repetition_penalty)
    if min_length and ends:
        yield forcing.FlaxMinLengthLogitsProcessor(min_length, ends)
    if config.forced_bos_token_id is not None:
        yield forcing.FlaxForcedBOSTokenLogitsProcessor(config.forced_bos_token_id)
    if config.forced_eos_token_id is not None:
        yield forcing.FlaxForcedEOSTokenLogitsProcessor(max_length, config.forced_eos_token_id)
    if config.suppress_tokens is not None:
        yield forcing.FlaxSuppressTokensLogitsProcessor(config.suppress_tokens)
    if config.begin_suppress_tokens is not None:
        begins_later = prompt_length == 1 and config.forced_bos_token_id is not None
        begin = prompt_length + begins_later
        yield forcing.FlaxSuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin)
    if config.no_repeat_ngram_size:
        yield sequences.FlaxNoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size)


def _warpers(config: GenerationConfig) -> Iterator[Processor]:
    if config.temperature not in (None, 1.0):
        yield sampling.FlaxTemperatureLogitsWarper(config.temperature)
    if config.top_k:
        yield sampling.FlaxTopKLogitsWarper(config.top_k)
    if config.top_p is not None and config.top_p < 1:
        yield sampling.FlaxTopPLogitsWarper(config.top_p)
