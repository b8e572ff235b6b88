"""Beam search in one compiled loop.

Shapes: `B` prompts, `K` beams, `N` columns, `V` vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from gptrio.jax.generation.loop import Call
from gptrio.jax.generation.model import Cache, prefill, step

LOWEST = -1.0e7  # score of what may not be chosen


class BeamOptions(struct.PyTreeNode):
    """How beams are compared, and when the search ends.

    Attributes:
        length_penalty: () exponent of the length that divides a score.
        beams: K.
        returned: sequences for each prompt.
        early_stopping: end when K sequences are finished (True), when no beam can become better by its present
            length (False), or by any length ("never").
    """

    length_penalty: Any
    beams: int = struct.field(pytree_node=False)
    returned: int = struct.field(pytree_node=False)
    early_stopping: bool | str = struct.field(pytree_node=False)


class Finished(struct.PyTreeNode):
    """The best finished sequences: ids (B, K, N), scores (B, K), and which of them are there (B, K)."""

    ids: Array
    scores: Array
    is_there: Array


class BeamState(struct.PyTreeNode):
    """What changes from step to step.

    Attributes:
        column: () of the next token.
        ids: (B, K, N) the beams, best first.
        scores: (B, K) sums of log-probabilities.
        finished: the best finished sequences.
        positions: (B * K, 1) of the newest tokens.
        cache: of the model, with B * K rows.
    """

    column: Array
    ids: Array
    scores: Array
    finished: Finished
    positions: Array
    cache: Cache


def beam_search(call: Call, options: BeamOptions) -> tuple[Array, Array]:
    """The best sequences (B * returned, N), and their scores (B * returned,)."""
    final = _search(call.replace(prompt=None), options, start(call, options))
    result: tuple[Array, Array] = best(final, options.returned)
    return result


@jax.jit
def start(call: Call, options: BeamOptions) -> BeamState:
    """Read each prompt once, and choose the first tokens of its beams."""
    logits, cache, positions = prefill(call.model, call.params, call.prompt, call.mask)
    beams, rows = options.beams, call.ids.shape[0]
    ids = jnp.repeat(call.ids[:, None], beams, axis=1)
    scores = jnp.full((rows, beams), LOWEST).at[:, 0].set(0)  # all beams are the same yet
    finished = Finished(ids, jnp.full((rows, beams), LOWEST), jnp.zeros((rows, beams), bool))
    repeat = partial(jnp.repeat, repeats=beams, axis=0)
    state = BeamState(
        jnp.asarray(call.column), ids, scores, finished, repeat(positions), jax.tree.map(_of_rows(repeat), cache)
    )
    return choose(call, options, state, repeat(logits))


@partial(jax.jit, donate_argnames="state")
def _search(call: Call, options: BeamOptions, state: BeamState) -> BeamState:
    mask = jnp.repeat(call.mask, options.beams, axis=0)

    def advance(state: BeamState) -> BeamState:
        newest = lax.dynamic_slice_in_dim(state.ids, state.column - 1, 1, axis=2).reshape(-1, 1)
        logits, cache = step(call.model, call.params, newest, mask, state.positions, state.cache)
        return choose(call, options, state.replace(cache=cache), logits)

    return lax.while_loop(partial(goes_on, call, options), advance, state)


def choose(call: Call, options: BeamOptions, state: BeamState, logits: Array) -> BeamState:
    """Continue the beams by their best next tokens, given logits (B * K, V)."""
    rows, beams, columns = state.ids.shape
    vocabulary = logits.shape[-1]
    scores = call.rules.process(state.ids.reshape(-1, columns), jax.nn.log_softmax(logits), state.column)
    sums = scores.reshape(rows, beams, vocabulary) + state.scores[..., None]
    # each beam ends by at most all the tokens that end a row, so that K of so many continuations go on
    count = beams * min(max(2, 1 + jnp.size(call.rules.ends)), vocabulary)
    best_sums, index = lax.top_k(sums.reshape(rows, -1), count)
    origin, tokens = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    ids = lax.dynamic_update_slice_in_dim(_take(state.ids, origin), tokens[..., None], state.column, axis=2)
    ends = call.rules.are_ends(tokens)

    running, order = lax.top_k(best_sums + ends * LOWEST, beams)
    parents = _take(origin, order)
    flat = (jnp.arange(rows)[:, None] * beams + parents).reshape(-1)
    return state.replace(
        column=state.column + 1,
        ids=_take(ids, order),
        scores=running,
        finished=_finish(call, options, state, ids, best_sums, ends),
        positions=state.positions[flat] + 1,
        cache=jax.tree.map(_of_rows(lambda held: held[flat]), state.cache),
    )


def _finish(call: Call, options: BeamOptions, state: BeamState, ids: Array, sums: Array, ends: Array) -> Finished:
    """The best finished sequences, after those of the continuations that end here."""
    held = state.finished
    lengths = (state.column + 1 - call.column).astype(jnp.float32)
    is_out = ~ends
    if options.early_stopping is True:
        is_out |= held.is_there.all(-1, keepdims=True)
    scores = sums / lengths**options.length_penalty + is_out * LOWEST
    merged = Finished(
        jnp.concatenate([held.ids, ids], axis=1),
        jnp.concatenate([held.scores, scores], axis=1),
        jnp.concatenate([held.is_there, ends], axis=1),
    )
    order = lax.top_k(merged.scores, options.beams)[1]
    return Finished(*(_take(each, order) for each in (merged.ids, merged.scores, merged.is_there)))


def goes_on(call: Call, options: BeamOptions, state: BeamState) -> Array:
    """Whether a beam can still become one of the best sequences."""
    last = call.rules.limit if options.early_stopping == "never" else state.column
    longest = jnp.where(options.length_penalty > 0, last, state.column) - call.column
    best_running = state.scores[:, :1] / longest.astype(jnp.float32) ** options.length_penalty
    worst = jnp.where(state.finished.is_there, state.finished.scores.min(-1, keepdims=True), LOWEST)
    is_open = (state.column < call.rules.limit) & (best_running > worst).any()
    return is_open & ~state.finished.is_there.all() if options.early_stopping is True else is_open


@partial(jax.jit, static_argnames="count")
def best(state: BeamState, count: int) -> tuple[Array, Array]:
    """The best finished sequences of each prompt, or its beams if none is finished."""
    has_any = state.finished.is_there.any(-1)
    ids = jnp.where(has_any[:, None, None], state.finished.ids, state.ids)[:, :count]
    scores = jnp.where(has_any[:, None], state.finished.scores, state.scores)[:, :count]
    return ids.reshape(-1, ids.shape[-1]), scores.reshape(-1)


def _take(held: Array, order: Array) -> Array:
    """Select along the second axis: held (B, J, ...) by an order (B, I)."""
    return jnp.take_along_axis(held, order.reshape(*order.shape, *[1] * (held.ndim - 2)), axis=1)


def _of_rows(change: Any) -> Any:
    """Apply to arrays that have rows; the number of columns in a cache has none."""
    return lambda held: change(held) if held.ndim else held
