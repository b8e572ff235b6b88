"""What a block may ask of the forward that it is part of."""

from __future__ import annotations

from flax import struct
from jax import Array


@struct.dataclass
class AttentionContext:
    """The parts of a forward that all layers share.

    Attributes:
        attention_mask: (B, columns) True for real tokens, padding and past included; None if all are real.
        rotary: cosine and sine tables, each (B, 1, T, R), or None.
        deterministic: nothing is dropped.
        need_weights: blocks return their attention weights.
        need_states: the input of each block is returned.
        cache_length: columns of a cache to be made from this forward; None for none.
    """

    attention_mask: Array | None = None
    rotary: tuple[Array, Array] | None = None
    deterministic: bool = struct.field(pytree_node=False, default=True)
    need_weights: bool = struct.field(pytree_node=False, default=False)
    need_states: bool = struct.field(pytree_node=False, default=False)
    cache_length: int | None = struct.field(pytree_node=False, default=None)
