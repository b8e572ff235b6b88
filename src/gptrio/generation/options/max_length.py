"""How long the result may become, and what to do with a prompt that is too long for the model."""

from __future__ import annotations

from typing import Any

from gptrio.config.fields import LARGEST_COUNT
from gptrio.errors import OptionError, warn
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.prompt import Prompt

OVERFLOWS = ("error", "truncate_left")


def settle_lengths(
    model: Any, prompt: Prompt, config: GenerationConfig, given: dict[str, Any], overflow: str
) -> Prompt:
    """Set `max_length` and `min_length` of the config for this prompt, and return the prompt, cut if need be.

    Lengths count columns of the ids: a prompt of embeddings without ids has none.

    Args:
        model: says how many positions it has.
        prompt: the rows to continue.
        config: the options of this call; changed.
        given: the options that the caller named in this call.
        overflow: "error", or "truncate_left" to drop the first tokens of a prompt that leaves no room.

    Raises:
        OptionError: there is no room for a new token, or a length is impossible.
    """
    if overflow not in OVERFLOWS:
        raise OptionError(f"overflow={overflow!r} is not known; expected one of {list(OVERFLOWS)}")
    if given.get("max_length") is not None and config.max_new_tokens is not None:
        warn(f"max_new_tokens={config.max_new_tokens} wins over max_length={config.max_length}; pass one of them")
    if overflow == "truncate_left":
        prompt = _truncated(model, prompt, config, given)
    _check_context(model, prompt)
    columns = prompt.ids.shape[1]
    hidden = prompt.length - columns - prompt.skipped  # positions of embeddings that have no column
    context = context_length(model)
    if config.max_new_tokens is not None:
        config.max_length = columns + config.max_new_tokens
    elif config.max_length is None:
        config.max_length = columns + context - prompt.longest_row
    elif _is_default(config, given):
        config.max_length = min(columns + config.max_length, columns + max(context - prompt.longest_row, 0))
    else:
        config.max_length -= hidden
    if config.max_length <= columns:
        raise OptionError(
            f"the prompt has {prompt.length} tokens and max_length={config.max_length + hidden} counts them; raise it, "
            "or pass max_new_tokens"
        )
    _settle_shortest(config, columns, hidden, given)
    return prompt


def _settle_shortest(config: GenerationConfig, columns: int, hidden: int, given: dict[str, Any]) -> None:
    if config.min_new_tokens is not None:
        if given.get("min_length") is not None:
            warn(f"min_new_tokens={config.min_new_tokens} wins over min_length={config.min_length}; pass one of them")
        config.min_length = columns + config.min_new_tokens
    elif config.min_length:
        config.min_length = max(config.min_length - hidden, 0)
    fewest, most = config.min_length, config.max_length
    if fewest is not None and most is not None and fewest > most:
        warn(f"at least {fewest} tokens were asked for and at most {most}; generation ends at {most}")


def context_length(model: Any) -> int:
    """Positions that the model was made for; of a model that does not say, as many as there can be."""
    return int(getattr(model.config, "max_position_embeddings", LARGEST_COUNT))


def positions(model: Any) -> int | None:
    """Positions that the model has a table for, or None if it can go on beyond those it was made for."""
    return getattr(getattr(model, "base_model", model), "max_positions", None)


def _check_context(model: Any, prompt: Prompt) -> None:
    """Raise OptionError for a prompt that is longer than the model's table of positions."""
    room, longest = positions(model), prompt.longest_row
    if room is not None and longest > room:
        raise OptionError(
            f"the prompt has {longest} tokens and the model {room} positions; shorten it, or pass "
            "overflow='truncate_left' to drop its first tokens"
        )


def last_column(model: Any, prompt: Prompt) -> int | None:
    """Most columns of ids that the model has positions for; None without limit."""
    room = positions(model)
    return None if room is None else prompt.ids.shape[1] + room - prompt.longest_row


def no_more_positions(model: Any, prompt: Prompt, columns: int) -> OptionError:
    """The error for going on after all positions are used."""
    return OptionError(
        f"{prompt.longest_row} tokens of prompt and {columns - prompt.ids.shape[1]} new ones are more than the model's "
        f"{positions(model)} positions; pass a smaller max_new_tokens, or overflow='truncate_left'"
    )


def _truncated(model: Any, prompt: Prompt, config: GenerationConfig, given: dict[str, Any]) -> Prompt:
    """The prompt without the first tokens that leave no room for the new ones."""
    context = context_length(model)
    most = context + 1  # the last token is never fed
    new_tokens = config.max_new_tokens
    if new_tokens is None and config.max_length is not None:
        if _is_default(config, given):
            new_tokens = min(config.max_length, context)
        else:
            most = min(most, config.max_length)
    if new_tokens is not None and new_tokens > context:
        raise OptionError(f"max_new_tokens={new_tokens} alone is more than the model's {context} positions")
    excess = prompt.longest_row + (new_tokens or 1) - most
    if excess <= 0:
        return prompt
    if prompt.cache is not None:
        raise OptionError("overflow='truncate_left' cannot shorten what past_key_values hold; pass the prompt alone")
    return prompt.without_first(prompt.length - prompt.longest_row + excess)


def _is_default(config: GenerationConfig, given: dict[str, Any]) -> bool:
    """Whether nobody asked for a `max_length`; the default counts new tokens only."""
    return config.max_length == GenerationConfig.max_length and given.get("max_length") is None
