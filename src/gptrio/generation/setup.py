"""Prepares a call of `generate`: cache, runner, processors, stopping rules, random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptrio.cache import DynamicCache, make_cache
from gptrio.config.fields import has_type
from gptrio.errors import OptionError
from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.options.max_length import context_length, last_column, no_more_positions, positions
from gptrio.generation.options.schema import GenerationMode
from gptrio.generation.processors.base import LogitsProcessorList, Processor
from gptrio.generation.processors.build import build_processors
from gptrio.generation.prompt import Prompt
from gptrio.generation.protocol import CausalLM
from gptrio.generation.sampling import Generators
from gptrio.generation.state import GenerationState
from gptrio.generation.step import DecodeRunner, OnStep
from gptrio.generation.stopping import (
    Criterion,
    MaxLengthCriteria,
    OnFinish,
    StoppingCriteriaList,
    Tokenizer,
    build_stopping,
)
from gptrio.generation.streamers import Streamer
from gptrio.utils.seed import check_seed


@dataclass
class GenerateArguments:
    """The arguments of `generate` that are not options of its config; see there."""

    logits_processor: Iterable[Processor]
    stopping_criteria: Iterable[Criterion]
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None
    negative_prompt_ids: Tensor | None
    negative_prompt_attention_mask: Tensor | None
    tokenizer: Tokenizer | None
    seed: int | Sequence[int] | None
    generator: Generators
    streamer: Streamer | None
    synced_gpus: bool
    on_finish: OnFinish | None
    on_step: OnStep | None


def prepare_generation(
    model: CausalLM, prompt: Prompt, config: GenerationConfig, mode: GenerationMode, extras: GenerateArguments
) -> GenerationState:
    """Build the state of a decoding loop.

    Raises:
        OptionError: arguments are impossible or contradict each other.
        InputError: the cache does not fit.
    """
    if extras.streamer is not None and config.num_beams > 1:
        raise OptionError("a streamer cannot show beams, whose tokens change until the end; pass num_beams=1")
    copies = max(config.num_beams, config.num_return_sequences)
    if mode is GenerationMode.CONTRASTIVE_SEARCH and not config.low_memory:
        copies = config.top_k or 1
    processors = _processors(model, prompt, config, extras)
    criteria = _criteria(model, prompt, config, extras)
    cache = _cache(model, prompt, config, mode, copies)
    if cache is not None and prompt.moved is not None:
        cache.real_positions_last = True
    step = DecodeRunner(model, prompt, config, copies, cache, extras.on_step)
    rows = prompt.repeated(copies)
    beams = prompt.ids.shape[0] if config.num_beams > 1 else rows.ids.shape[0]
    generators = _generators(extras.seed, extras.generator, beams, rows.ids.device)
    pads = eos_ids(config) if config.pad_token_id is None else [config.pad_token_id]
    return GenerationState(
        model, config, rows, step, processors, criteria, next(iter(pads), None), prompt.ids.shape[0], generators,
        extras.streamer, extras.synced_gpus, extras.on_finish,
        not (extras.logits_processor or extras.prefix_allowed_tokens_fn),
    )  # fmt: skip


def _processors(
    model: CausalLM, prompt: Prompt, config: GenerationConfig, extras: GenerateArguments
) -> LogitsProcessorList:
    return build_processors(
        config,
        prompt_length=prompt.ids.shape[1],
        vocab_size=model.config.vocab_size,
        device=prompt.ids.device,
        prompt_ids=prompt.ids,
        prefix_allowed_tokens_fn=extras.prefix_allowed_tokens_fn,
        logits_processor=extras.logits_processor,
        model=model,
        negative_prompt_ids=extras.negative_prompt_ids,
        negative_prompt_attention_mask=extras.negative_prompt_attention_mask,
    )


def _criteria(
    model: CausalLM, prompt: Prompt, config: GenerationConfig, extras: GenerateArguments
) -> StoppingCriteriaList:
    """The rules that finish rows; a length that the model cannot reach is an error if no other rule ends a row."""
    context = context_length(model)
    warns = (config.max_length or 0) > context and positions(model) is None
    criteria = build_stopping(
        config,
        stopping_criteria=extras.stopping_criteria,
        tokenizer=extras.tokenizer,
        max_position_embeddings=context if warns else None,
    )
    limit = last_column(model, prompt)
    if limit is not None and all(type(item) is MaxLengthCriteria for item in criteria):
        needed = (criteria.max_length or limit) - 1  # the last token is never fed to the model
        if needed > limit:
            raise no_more_positions(model, prompt, needed + 1)
    return criteria


def _cache(model: CausalLM, prompt: Prompt, config: GenerationConfig, mode: GenerationMode, copies: int) -> Any:
    """The cache of this call: the caller's, one by name, a dynamic one, or none."""
    given = prompt.cache
    if given is not None:
        if config.cache_implementation is not None:
            raise OptionError(
                f"past_key_values and cache_implementation={config.cache_implementation!r} were both given; pass one"
            )
        return given
    if not config.use_cache and prompt.embeds is None:
        return None
    name = config.cache_implementation
    if name in (None, "dynamic"):
        rolls_back = mode in (GenerationMode.ASSISTED_GENERATION, GenerationMode.CONTRASTIVE_SEARCH)
        return DynamicCache(config=None if rolls_back else model.config)
    if name == "dynamic_full":
        return DynamicCache()
    columns = config.max_length or 0
    if mode is not GenerationMode.CONTRASTIVE_SEARCH:  # which tries out even the last token
        columns -= 1  # the last one is never fed to the model
    length = max(columns, prompt.ids.shape[1]) - prompt.ids.shape[1] + prompt.length
    rows = prompt.ids.shape[0] * copies
    return make_cache(name, model.config, rows, length, model.device, model.dtype, config.cache_config or {})


def _generators(seed: int | Sequence[int] | None, generator: Generators, rows: int, device: torch.device) -> Generators:
    """Where random numbers come from: one generator for the call, or one for each row (each prompt, with beams)."""
    if seed is None and generator is None:
        return None
    if seed is not None and generator is not None:
        raise OptionError("seed and generator were both given; pass one of them")
    if isinstance(generator, torch.Generator):
        return generator
    if seed is not None and not has_type(seed, int | list[int]):
        raise OptionError(f"seed={seed!r} must be an integer, or one for each row")
    for own in [seed] if isinstance(seed, int) else seed or ():
        check_seed(own)
    if isinstance(seed, int):
        return torch.Generator(device).manual_seed(seed)
    generator = [torch.Generator(device).manual_seed(own) for own in seed] if seed is not None else generator
    assert generator is not None
    if len(generator) != rows:
        raise OptionError(
            f"{len(generator)} seeds or generators for {rows} rows; pass one for each row, or one for all"
        )
    return list(generator)
