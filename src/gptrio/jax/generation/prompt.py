"""The rows to continue, in arrays of few shapes, so that prompts of many lengths run the same compiled code.

Padding anywhere becomes padding on the left, up to a bucket's width: a row's next token then follows its last real
token, and all rows write the same column of the cache. Outside of `jit` this is done by numpy, since each operation of
JAX would be compiled for each length.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptrio.errors import InputError, OptionError, warn
from gptrio.jax.models.base import inputs

BUCKETS = (16, 32, 64, 128, 256, 512, 1024)

ArrayLike = Any  # a numpy array, or a JAX array where the call is traced


class Prompt(NamedTuple):
    """The rows.

    Attributes:
        ids: (B, T) as given.
        mask: (B, T) True for real tokens.
        array_module: numpy, or jax.numpy where the call is traced.
    """

    ids: ArrayLike
    mask: ArrayLike
    array_module: ModuleType

    @property
    def longest_row(self) -> int:
        """Real tokens of the longest row; all columns where they are not known."""
        return int(self.mask.sum(-1).max()) if self.array_module is np else self.ids.shape[1]

    def aligned(self) -> Prompt:
        """The rows with what is padded on the right moved to the left."""
        xp, length = self.array_module, self.ids.shape[1]
        trailing = xp.argmax(self.mask[:, ::-1], axis=1)
        order = (xp.arange(length) - trailing[:, None]) % length
        return self._replace(
            ids=xp.take_along_axis(self.ids, order, axis=1), mask=xp.take_along_axis(self.mask, order, axis=1)
        )

    def repeated(self, times: int) -> Prompt:
        """Each row so many times."""
        xp = self.array_module
        return self._replace(ids=xp.repeat(self.ids, times, axis=0), mask=xp.repeat(self.mask, times, axis=0))

    def padded(self, left: int, right: int, token: int) -> Prompt:
        """The rows with further columns: masked ones on the left, others on the right."""
        xp = self.array_module
        ids = xp.pad(self.ids, ((0, 0), (left, right)), constant_values=token)
        mask = xp.pad(xp.pad(self.mask, ((0, 0), (left, 0))), ((0, 0), (0, right)), constant_values=True)
        return self._replace(ids=ids, mask=mask)


def build_prompt(input_ids: Any, attention_mask: Any, config: Any) -> Prompt:
    """Check the rows.

    Args:
        input_ids: (B, T).
        attention_mask: (B, T) 1 for real tokens; all are by default.
        config: of the model.

    Raises:
        InputError: shapes do not fit each other.
        TokenIdError: an id is outside the vocabulary.
    """
    is_traced = any(isinstance(array, jax.core.Tracer) for array in (input_ids, attention_mask))
    xp: ModuleType = jnp if is_traced else np
    ids = inputs.as_ids(input_ids, xp)
    inputs.check_ids(ids, config)
    mask = xp.ones(ids.shape, bool) if attention_mask is None else xp.asarray(attention_mask) != 0
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask has shape {mask.shape}; input_ids have {ids.shape}")
    return Prompt(ids, mask, xp)


def warn_of_unseen_padding(prompt: Prompt, pads: Sequence[int]) -> None:
    """Warn if rows begin or end with the first of `pads`, which without an attention_mask counts as text."""
    if prompt.array_module is np and len(prompt.ids) > 1 and pads and (prompt.ids[:, [0, -1]] == pads[0]).any():
        warn(
            f"some prompts begin or end with token {pads[0]}, the padding token, which counts as text without an "
            "attention_mask; pass the tokenizer's"
        )


def bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds so many columns; beyond the largest, the next multiple of it."""
    largest = max(buckets)
    return min((size for size in buckets if size >= length), default=-(-length // largest) * largest)


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """Widths as a tuple; raises OptionError for anything else."""
    if not buckets or not all(isinstance(size, int) and size > 0 for size in buckets):
        raise OptionError(f"buckets={buckets!r} must be widths in columns, such as {BUCKETS}")
    return tuple(buckets)
