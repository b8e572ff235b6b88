"""The linear layers and the tables of all families."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Dtype = Any  # what `numpy.dtype` takes, such as `jnp.bfloat16`


Linear = nn.Dense  # `x @ kernel + bias`; kernel (inputs, outputs)


class Conv1D(nn.Module):
    """`x @ kernel.T + bias`; kernel (outputs, inputs), the layout of GPT-2's Flax checkpoints.

    Attributes:
        features: number of outputs.
        dtype: of the computation.
        kernel_init: draws the kernel.
    """

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: Any = jax.nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (..., inputs) to (..., outputs)."""
        kernel = self.param("kernel", self.kernel_init, (self.features, x.shape[-1]))
        bias = self.param("bias", jax.nn.initializers.zeros, (self.features,))
        x, kernel, bias = (jnp.asarray(array, self.dtype) for array in (x, kernel, bias))
        return jnp.einsum("...i,oi->...o", x, kernel) + bias


class Embedding(nn.Embed):
    """A table of vectors; an index outside it gives a vector of NaN, which no mask hides from the logits."""

    def __call__(self, inputs: Array) -> Array:
        """Map indices (...) to vectors (..., C)."""
        return super().__call__(jnp.where(inputs < 0, self.num_embeddings, inputs))
