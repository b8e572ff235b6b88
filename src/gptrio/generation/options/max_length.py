"""Limits of the length of a result, and truncation of prompts that are too long for the model."""

from __future__ import annotations

import copy
from typing import Any

from gptrio.config.fields import LARGEST_COUNT
from gptrio.errors import OptionError, warn
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.prompt import Prompt
from gptrio.generation.protocol import CausalLM

OVERFLOWS = ("error", "truncate_left")


def settle_lengths(
    model: CausalLM, prompt: Prompt, config: GenerationConfig, given: dict[str, Any], overflow: str
) -> tuple[Prompt, GenerationConfig]:
    """Return the prompt, cut if it has to be, and the options with `max_length` and `min_length` for this prompt.

    Lengths count columns of the ids: a prompt of embeddings without ids has none.

    Args:
        model: its number of positions is used.
        prompt: the rows to continue.
        config: the options of this call; not changed.
        given: the options that the caller named in this call.
        overflow: "error", or "truncate_left" to drop the first tokens of a prompt that fills the context.

    Raises:
        OptionError: no new token fits, or a length is impossible.
    """
    if overflow not in OVERFLOWS:
        raise OptionError(f"overflow={overflow!r} is not known; expected one of {list(OVERFLOWS)}")
    if given.get("max_length") is not None and config.max_new_tokens is not None:
        warn(f"max_new_tokens={config.max_new_tokens} wins over max_length={config.max_length}; pass one of them")
    if overflow == "truncate_left":
        prompt = _truncated(model, prompt, config, given)
    _check_context(model, prompt, config)
    columns = prompt.ids.shape[1]
    embedded = prompt.length - columns - prompt.skipped  # positions of embeddings, which have no column
    max_length = _max_length(model, prompt, config, given, embedded)
    if max_length <= columns:
        raise OptionError(
            f"the prompt has {prompt.length} tokens and max_length={max_length + embedded} counts them; raise it, "
            "or pass max_new_tokens"
        )
    min_length = _min_length(config, columns, given, embedded)
    if min_length is not None and min_length > max_length:
        warn(f"at least {min_length} tokens were asked for and at most {max_length}; generation ends at {max_length}")
    config = copy.copy(config)
    config.max_length, config.min_length = max_length, min_length
    return prompt, config


def _max_length(model: CausalLM, prompt: Prompt, config: GenerationConfig, given: dict[str, Any], embedded: int) -> int:
    columns = prompt.ids.shape[1]
    if config.max_new_tokens is not None:
        return columns + config.max_new_tokens
    free = context_length(model) - prompt.longest_row
    if config.max_length is None:
        return columns + free
    if _is_default(config, given):
        return columns + min(config.max_length, max(free, 0))
    return config.max_length - embedded


def _min_length(config: GenerationConfig, columns: int, given: dict[str, Any], embedded: int) -> int | None:
    if config.min_new_tokens is not None:
        if given.get("min_length") is not None:
            warn(f"min_new_tokens={config.min_new_tokens} wins over min_length={config.min_length}; pass one of them")
        return columns + config.min_new_tokens
    return max(config.min_length - embedded, 0) if config.min_length else config.min_length


def context_length(model: CausalLM) -> int:
    """Number of positions that the model was trained with; the largest count if its config does not name one."""
    return int(getattr(model.config, "max_position_embeddings", LARGEST_COUNT))


def positions(model: CausalLM) -> int | None:
    """Size of the model's table of positions, or None for a model without one, which accepts any position."""
    return getattr(getattr(model, "base_model", model), "max_positions", None)


def _check_context(model: CausalLM, prompt: Prompt, config: GenerationConfig) -> None:
    """Raise OptionError for a prompt that is longer than the model's table of positions."""
    limit, longest = positions(model), prompt.longest_row
    if limit is not None and longest > limit:
        also = f", and max_new_tokens={limit} or less" if (config.max_new_tokens or 0) > limit else ""
        raise OptionError(
            f"the prompt has {longest} tokens and the model {limit} positions; shorten it, or pass "
            f"overflow='truncate_left' to drop its first tokens{also}"
        )


def last_column(model: CausalLM, prompt: Prompt) -> int | None:
    """Largest number of columns of ids for which the model has positions; None if there is no limit."""
    limit = positions(model)
    return None if limit is None else prompt.ids.shape[1] + limit - prompt.longest_row


def no_more_positions(model: CausalLM, prompt: Prompt, columns: int) -> OptionError:
    """Return the error for a sequence that needs more positions than the model has."""
    limit, length, also = positions(model) or 0, prompt.longest_row, ""
    if prompt.cache is None:
        also = f", or overflow='truncate_left', which drops the first tokens of the prompt, with {limit} or less"
    return OptionError(  # the last token needs no position
        f"{length} tokens of prompt and {columns - prompt.ids.shape[1]} new ones are more than the model's {limit} "
        f"positions; pass max_new_tokens={limit + 1 - length} or less{also}"
    )


def _truncated(model: CausalLM, prompt: Prompt, config: GenerationConfig, given: dict[str, Any]) -> Prompt:
    """Return the prompt without its first tokens, as many as needed for the new tokens to fit."""
    context = context_length(model)
    most = context + 1  # the last token is never fed to the model
    new_tokens = config.max_new_tokens
    if new_tokens is None and config.max_length is not None:
        if _is_default(config, given):
            new_tokens = min(config.max_length, context)
        else:
            most = min(most, config.max_length)
    if new_tokens is not None and new_tokens > context:
        raise OptionError(
            f"max_new_tokens={new_tokens} alone is more than the model's {context} positions; pass {context} or less"
        )
    excess = prompt.longest_row + (new_tokens or 1) - most
    if excess <= 0:
        return prompt
    if prompt.cache is not None:
        raise OptionError("overflow='truncate_left' cannot shorten what past_key_values hold; pass the prompt alone")
    return prompt.without_first(prompt.length - prompt.longest_row + excess)


def _is_default(config: GenerationConfig, given: dict[str, Any]) -> bool:
    """Whether `max_length` was left at its default, which counts new tokens only."""
    return config.max_length == GenerationConfig.max_length and given.get("max_length") is None
