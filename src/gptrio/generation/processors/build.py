"""Builds the processors that the options need, in the order of Transformers 4.56."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from gptrio.errors import InputError, OptionError
from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.processors import forcing, guidance, penalties, sampling, sequences
from gptrio.generation.processors.base import LogitsProcessorList, Processor, merge


def build_processors(
    config: GenerationConfig,
    *,
    prompt_length: int,
    vocab_size: int,
    device: str | torch.device = "cpu",
    prompt_ids: torch.Tensor | None = None,
    prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None,
    logits_processor: Iterable[Processor] = (),
    model: Callable[..., Any] | None = None,
    negative_prompt_ids: torch.Tensor | None = None,
    negative_prompt_attention_mask: torch.Tensor | None = None,
) -> LogitsProcessorList:
    """Return the processors that have an effect under `config`; an empty list if no option changes scores.

    Args:
        config: the options.
        prompt_length: tokens of the (padded) prompt.
        vocab_size: V, for watermarks.
        device: device on which the random tables of watermarks are drawn.
        prompt_ids: (B, T) the prompts, for options that depend on them alone.
        prefix_allowed_tokens_fn: see `PrefixConstrainedLogitsProcessor`.
        logits_processor: the caller's own processors; one of a built-in class replaces the one built here.
        model: the model, for guidance.
        negative_prompt_ids, negative_prompt_attention_mask: (B, U) the prompt that guidance lowers the scores of.

    Raises:
        OptionError: an option is out of range, or needs another one that is not set.
        InputError: an option needs the prompt's ids or the model.
    """
    built = LogitsProcessorList()
    if config.guidance_scale is not None and config.guidance_scale != 1:
        if model is None:
            raise InputError("guidance_scale needs model=, which it runs a second time each step")
        built.append(
            guidance.UnbatchedClassifierFreeGuidanceLogitsProcessor(
                config.guidance_scale, model, negative_prompt_ids, negative_prompt_attention_mask, config.use_cache
            )
        )
    built.extend(_penalties(config, prompt_ids))
    built.extend(_lengths(config, prompt_length, prefix_allowed_tokens_fn))
    built.extend(_forced(config, prompt_length, config.max_length))
    built = LogitsProcessorList(merge(built, logits_processor, "logits_processor"))
    if config.do_sample:
        built.extend(_truncations(config))
    if config.watermarking_config is not None:
        built.append(config.watermarking_config.construct_processor(vocab_size, device))
    if config.renormalize_logits:
        built.append(sampling.LogitNormalization())
    return built


def _penalties(config: GenerationConfig, prompt_ids: torch.Tensor | None) -> Iterator[Processor]:
    if config.sequence_bias is not None:
        yield sequences.SequenceBiasLogitsProcessor(config.sequence_bias)
    if config.diversity_penalty and config.num_beams > 1 and config.num_beam_groups > 1:
        yield penalties.HammingDiversityLogitsProcessor(
            config.diversity_penalty, config.num_beams, config.num_beam_groups
        )
    if config.encoder_repetition_penalty not in (None, 1.0):
        prompts = _required(prompt_ids, "encoder_repetition_penalty")
        yield penalties.EncoderRepetitionPenaltyLogitsProcessor(config.encoder_repetition_penalty, prompts)
    if config.repetition_penalty not in (None, 1.0):
        yield penalties.RepetitionPenaltyLogitsProcessor(config.repetition_penalty)
    if config.no_repeat_ngram_size:
        yield sequences.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size)
    if config.encoder_no_repeat_ngram_size:
        prompts = _required(prompt_ids, "encoder_no_repeat_ngram_size")
        yield sequences.EncoderNoRepeatNGramLogitsProcessor(config.encoder_no_repeat_ngram_size, prompts)
    if config.bad_words_ids is not None:
        yield sequences.NoBadWordsLogitsProcessor(config.bad_words_ids, eos_ids(config) or None)


def _lengths(
    config: GenerationConfig,
    prompt_length: int,
    prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None,
) -> Iterator[Processor]:
    if ends := eos_ids(config):
        if config.min_length:
            yield forcing.MinLengthLogitsProcessor(config.min_length, ends)
        if config.min_new_tokens:
            yield forcing.MinNewTokensLengthLogitsProcessor(prompt_length, config.min_new_tokens, ends)
    if prefix_allowed_tokens_fn is not None:
        rows = max(1, config.num_beams // config.num_beam_groups)  # a group's beams are processed together
        yield forcing.PrefixConstrainedLogitsProcessor(prefix_allowed_tokens_fn, rows)


def _forced(config: GenerationConfig, prompt_length: int, max_length: int | None) -> Iterator[Processor]:
    if config.forced_bos_token_id is not None:
        yield forcing.ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id)
    if config.forced_eos_token_id is not None and max_length is not None:
        yield forcing.ForcedEOSTokenLogitsProcessor(max_length, config.forced_eos_token_id)
    if config.remove_invalid_values:
        yield sampling.InfNanRemoveLogitsProcessor()
    if config.exponential_decay_length_penalty is not None:
        ends = eos_ids(config)
        if not ends:
            raise OptionError("exponential_decay_length_penalty needs eos_token_id, whose score it raises")
        yield penalties.ExponentialDecayLengthPenalty(config.exponential_decay_length_penalty, ends, prompt_length)
    if config.suppress_tokens:
        yield forcing.SuppressTokensLogitsProcessor(config.suppress_tokens)
    if config.begin_suppress_tokens:
        forced_first = prompt_length == 1 and config.forced_bos_token_id is not None
        yield forcing.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, prompt_length + forced_first)


def _truncations(config: GenerationConfig) -> Iterator[Processor]:
    ends = max(1, len(eos_ids(config)))
    keep = 1 if config.num_beams == 1 else ends + 1  # a beam needs a candidate that is not an end-of-text token
    if config.temperature == 0:
        raise OptionError("temperature=0 with do_sample=True; pass do_sample=False for the most likely tokens")
    if config.temperature not in (None, 1.0):
        yield sampling.TemperatureLogitsWarper(config.temperature)
    if config.top_k:
        yield sampling.TopKLogitsWarper(config.top_k, min_tokens_to_keep=keep)
    if config.top_p is not None and config.top_p < 1:
        yield sampling.TopPLogitsWarper(config.top_p, min_tokens_to_keep=keep)
    if config.min_p is not None:
        yield sampling.MinPLogitsWarper(config.min_p, min_tokens_to_keep=keep)
    if config.typical_p is not None and config.typical_p < 1:
        yield sampling.TypicalLogitsWarper(config.typical_p, min_tokens_to_keep=keep)
    if config.epsilon_cutoff is not None and 0 < config.epsilon_cutoff < 1:
        yield sampling.EpsilonLogitsWarper(config.epsilon_cutoff, min_tokens_to_keep=keep)
    if config.eta_cutoff is not None and 0 < config.eta_cutoff < 1:
        yield sampling.EtaLogitsWarper(config.eta_cutoff, min_tokens_to_keep=keep)


def _required(prompt_ids: torch.Tensor | None, option: str) -> torch.Tensor:
    if prompt_ids is None or prompt_ids.numel() == 0:
        raise InputError(f"{option} looks at the prompt's ids, and there are none; pass input_ids")
    return prompt_ids
