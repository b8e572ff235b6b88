"""The Flax twin: the same families on JAX, in files and functions of the same names. Torch is never loaded.

Flax Linen modules hold the equations (`model.module`); `FlaxPreTrainedModel` adds parameters, files and a plain call.
"""

from gptrio.errors import import_optional

for _package in ("jax", "flax"):
    import_optional(_package, "the Flax classes need jax and flax: pip install 'gptrio[jax]'")
