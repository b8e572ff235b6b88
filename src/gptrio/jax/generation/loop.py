"""The decoding loops of greedy search and sampling: one program reads the prompt, one `while_loop` chooses the rest."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.typing import ArrayLike

from gptrio.jax.generation.model import Cache, Model, prefill, step
from gptrio.jax.generation.processors.base import FlaxLogitsProcessorList, Processor


class Rules(struct.PyTreeNode):
    """How tokens are chosen, and when a row ends.

    Attributes:
        processors: of the scores.
        limit: () most columns of a row.
        ends: (E,) tokens that end a row.
        pad: () token after the end of a row.
        do_sample: draw tokens rather than take the likeliest.
    """

    processors: tuple[Processor, ...]
    limit: ArrayLike
    ends: ArrayLike
    pad: ArrayLike
    do_sample: bool = struct.field(pytree_node=False, default=False)

    def process(self, ids: Array, logits: Array, column: Array) -> Array:
        """Scores (B, V) in float32 of the next tokens."""
        return FlaxLogitsProcessorList(self.processors)(ids, logits, column)

    def are_ends(self, tokens: Array) -> Array:
        """Which tokens end a row."""
        return (tokens[..., None] == self.ends).any(-1)


class DecodeState(struct.PyTreeNode):
    """What changes from step to step.

    Attributes:
        column: () of the next token in `ids`.
        ids: (B, L) the tokens, prompt included.
        positions: (B, 1) of the newest token.
        is_finished: (B,).
        key: of the next random numbers.
        cache: of the model.
    """

    column: Array
    ids: Array
    positions: Array
    is_finished: Array
    key: Array
    cache: Cache

    @property
    def newest(self) -> Array:
        """(B, 1) the newest tokens."""
        return lax.dynamic_slice_in_dim(self.ids, self.column - 1, 1, axis=1)


def choose(state: DecodeState, logits: Array, rules: Rules) -> DecodeState:
    """Add the next token of each row, given logits (B, V)."""
    scores, key = rules.process(state.ids, logits, state.column), state.key
    if rules.do_sample:
        now, key = jax.random.split(key)
        chosen = jax.random.categorical(now, scores)
    else:
        chosen = scores.argmax(-1)
    tokens = jnp.where(state.is_finished, rules.pad, chosen.astype(jnp.int32))
    return state.replace(
        column=state.column + 1,
        ids=lax.dynamic_update_slice_in_dim(state.ids, tokens[:, None], state.column, axis=1),
        positions=state.positions + 1,
        is_finished=state.is_finished | rules.are_ends(tokens),
        key=key,
    )


class Call(struct.PyTreeNode):
    """What a loop is given.

    Attributes:
        model: the module.
        params: of the model.
        rules: of the choice.
        prompt: (B, P) ids for the model.
        mask: (B, N) True for real tokens in the columns of the cache, those to come included.
        ids: (B, N) the prompt in the columns before `column`, as processors see it.
        column: () of the first new token.
        key: random key.
    """

    model: Model = struct.field(pytree_node=False)
    params: Any
    rules: Rules
    prompt: Array
    mask: Array
    ids: Array
    column: ArrayLike
    key: Array


def decode(call: Call) -> Array:
    """Ids (B, N) of finished rows; those after `call.rules.limit` columns are of no meaning."""
    return _decode(call.replace(prompt=None), start(call)).ids


@jax.jit
def start(call: Call) -> DecodeState:
    """Read the prompt and choose the first token."""
    logits, cache, positions = prefill(call.model, call.params, call.prompt, call.mask)
    rows = call.ids.shape[0]
    state = DecodeState(jnp.asarray(call.column), call.ids, positions, jnp.zeros(rows, bool), call.key, cache)
    return choose(state, logits, call.rules)


@partial(jax.jit, donate_argnames="state")
def _decode(call: Call, state: DecodeState) -> DecodeState:
    def goes_on(state: DecodeState) -> Array:
        return (state.column < call.rules.limit) & ~state.is_finished.all()

    def advance(state: DecodeState) -> DecodeState:
        logits, cache = step(call.model, call.params, state.newest, call.mask, state.positions, state.cache)
        return choose(state.replace(cache=cache), logits, call.rules)

    return lax.while_loop(goes_on, advance, state)
