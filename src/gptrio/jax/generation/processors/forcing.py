"""Processors that forbid or force tokens: minimum lengths, first and last tokens, suppressed tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from gptrio.config.fields import check_number, check_token_ids
from gptrio.errors import OptionError
from gptrio.jax.generation.processors.base import NEG_INF, FlaxLogitsProcessor, compiled_with

Ids = int | Sequence[int]


def _token_ids(name: str, ids: Ids) -> tuple[int, ...]:
    tokens = tuple(check_token_ids(name, ids))
    if min(tokens, default=0) < 0:
        raise OptionError(f"{name}={ids!r} must hold token ids of at least 0")
    return tokens


def _forbid(scores: Array, tokens: tuple[int, ...], when: Array | bool = True) -> Array:
    return jnp.where(when, scores.at[:, tokens].set(NEG_INF), scores)


def _force(scores: Array, tokens: Array | tuple[int, ...], when: Array) -> Array:
    return jnp.where(when, jnp.full_like(scores, NEG_INF).at[:, tokens].set(0), scores)


@compiled_with("min_length")
class FlaxMinLengthLogitsProcessor(FlaxLogitsProcessor):
    """Forbid end-of-text tokens until a row, prompt included, has `min_length` tokens.

    Args:
        min_length: at least 0.
        eos_token_id: token or tokens that end a row.
    """

    def __init__(self, min_length: int, eos_token_id: Ids) -> None:
        self.min_length = check_number("min_length", min_length, int, ge=0)
        self.eos_token_id = _token_ids("eos_token_id", eos_token_id)

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V) in which short rows cannot end."""
        return _forbid(scores, self.eos_token_id, cur_len < self.min_length)


@compiled_with()
class FlaxForcedBOSTokenLogitsProcessor(FlaxLogitsProcessor):
    """Force a token after a single first token.

    Args:
        bos_token_id: the token.
    """

    def __init__(self, bos_token_id: int) -> None:
        (self.bos_token_id,) = _token_ids("forced_bos_token_id", bos_token_id)

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V), 0 for the token and minus infinity otherwise, after one column."""
        return _force(scores, (self.bos_token_id,), cur_len == 1)


@compiled_with("max_length")
class FlaxForcedEOSTokenLogitsProcessor(FlaxLogitsProcessor):
    """Force an end-of-text token as the last token that `max_length` allows.

    Args:
        max_length: most tokens of a row, prompt included.
        eos_token_id: token or tokens to force.
    """

    def __init__(self, max_length: int, eos_token_id: Ids) -> None:
        self.max_length = max_length
        self.eos_token_id = _token_ids("forced_eos_token_id", eos_token_id)

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V), at the last position 0 for the forced tokens and minus infinity otherwise."""
        return _force(scores, self.eos_token_id, cur_len == self.max_length - 1)


@compiled_with()
class FlaxSuppressTokensLogitsProcessor(FlaxLogitsProcessor):
    """Forbid tokens at every position.

    Args:
        suppress_tokens: the tokens.
    """

    def __init__(self, suppress_tokens: Ids) -> None:
        self.suppress_tokens = _token_ids("suppress_tokens", suppress_tokens)

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V) without the tokens."""
        return _forbid(scores, self.suppress_tokens)


@compiled_with("begin_index")
class FlaxSuppressTokensAtBeginLogitsProcessor(FlaxLogitsProcessor):
    """Forbid tokens as the first new one.

    Args:
        begin_suppress_tokens: the tokens.
        begin_index: number of columns when the first token is chosen.
    """

    def __init__(self, begin_suppress_tokens: Ids, begin_index: int) -> None:
        self.begin_suppress_tokens = _token_ids("begin_suppress_tokens", begin_suppress_tokens)
        self.begin_index = begin_index

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V) without the tokens, at the first step."""
        return _forbid(scores, self.begin_suppress_tokens, cur_len == self.begin_index)


@compiled_with("force_token_array")
class FlaxForceTokensLogitsProcessor(FlaxLogitsProcessor):
    """Force certain tokens in certain columns.

    Args:
        force_token_map: column and token of each, as a mapping or pairs; None forces nothing there.
    """

    def __init__(self, force_token_map: Mapping[int, int | None] | Iterable[Sequence[int | None]]) -> None:
        forced = dict(force_token_map)  # type: ignore[arg-type]  # pairs may be lists
        tokens = np.full(max(forced) + 1, -1, np.int32)  # negative where nothing is forced
        for column, token in forced.items():
            tokens[column] = -1 if token is None else token
        self.force_token_array = tokens

    def __call__(self, input_ids: Array, scores: Array, cur_len: Array) -> Array:
        """Return scores (B, V), 0 for the token forced in the next column, if any, and minus infinity otherwise."""
        token = jnp.take(jnp.asarray(self.force_token_array), cur_len, mode="fill", fill_value=-1)
        return _force(scores, token, token >= 0)
