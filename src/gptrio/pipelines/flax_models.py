"""Flax models in pipelines: an adapter that takes and gives torch tensors, and loading.

Loads JAX only when a Flax model is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gptrio.errors import InputError, UnsupportedError
from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.options.resolve import merge_config
from gptrio.generation.stopping import FinishReason

_BY_TOKEN = ("last_hidden_state", "start_logits", "end_logits")  # and "logits" (B, T, ...)
_OF_TORCH = ("device_map", "attn_implementation", "quantization_config")


def is_flax(model: Any) -> bool:
    """Whether a model is one of the Flax classes."""
    return any(base.__module__.startswith("gptrio.jax.") for base in type(model).__mro__)


def framework_of(model: Any, framework: str | None) -> str:
    """ "pt" or "flax", that of a model, or for one that is yet to be loaded the one that was asked for.

    Raises:
        UnsupportedError: another framework.
        InputError: the model is of another framework than the one that was asked for.
    """
    if framework not in (None, "pt", "flax"):
        raise UnsupportedError(f"framework={framework!r} is not supported; pipelines run 'pt' and 'flax' models")
    if model is None or isinstance(model, (str, os.PathLike)):
        return framework or "pt"
    actual = "flax" if is_flax(model) or isinstance(model, FlaxModelForPipelines) else "pt"
    if framework not in (None, actual):
        raise InputError(
            f"framework={framework!r} was given for a {type(model).__name__}, whose framework is {actual!r}"
        )
    return actual


def flax_class(auto_class: str) -> Any:
    """The Flax auto class beside one of PyTorch's."""
    from gptrio.jax.models import auto

    return getattr(auto, f"Flax{auto_class}")


def flax_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a Flax model's `from_pretrained`, given those of a pipeline's model.

    Raises:
        UnsupportedError: an argument that only PyTorch models have.
    """
    import jax.numpy as jnp

    arguments = {("dtype" if name == "torch_dtype" else name): value for name, value in arguments.items()}
    for name in _OF_TORCH:
        if name in arguments:
            raise UnsupportedError(f"{name} is for PyTorch models; leave it out with framework='flax'")
    dtype = str(arguments.pop("dtype", "auto")).removeprefix("torch.")
    return arguments if dtype == "auto" else {**arguments, "dtype": jnp.dtype(dtype)}


class FlaxModelForPipelines(nn.Module):
    """A Flax model that takes torch tensors and returns them; its other attributes are the Flax model's.

    A row is padded to the next width of `gptrio.jax.generation.prompt.BUCKETS`, so that texts of many lengths run the
    same compiled code. JAX decides on which device it runs; tensors stay on the CPU.

    Args:
        model: the Flax model.

    Attributes:
        flax_model: the same.
    """

    device = torch.device("cpu")
    hf_device_map: ClassVar[dict[str, str]] = {"": "cpu"}  # a pipeline leaves it where it is

    def __init__(self, model: Any) -> None:
        import jax

        super().__init__()
        self.flax_model = model
        plain = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
        self._run: Callable[..., Any] = jax.jit(lambda params, ids, mask: model(ids, mask, params=params, **plain))
        self.eval()

    def __getattr__(self, name: str) -> Any:
        if name == "flax_model":
            raise AttributeError(name)
        return getattr(self.flax_model, name)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> Any:
        """Apply the model.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T) 1 for real tokens, which come first.
            use_cache: accepted and ignored; no cache is returned.

        Returns:
            The model's output object, with torch tensors in float32.
        """
        from gptrio.jax.models.base.inputs import check_ids

        ids, length = input_ids.numpy(), input_ids.shape[1]
        check_ids(ids, self.config)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        missing = self._width(length) - length
        padded = nn.functional.pad(input_ids, (0, missing), value=self.config.pad_token_id or 0)
        output = self._run(self.params, padded.numpy(), nn.functional.pad(mask, (0, missing)).numpy())
        fields = {name: _tensor(value) for name, value in output.items()}
        for name, value in fields.items():
            if name in _BY_TOKEN or value.dim() == 3:
                fields[name] = value[:, :length]
        return type(output)(**fields)

    def _width(self, length: int) -> int:
        """Columns that the model sees."""
        from gptrio.jax.generation.prompt import BUCKETS, bucket
        from gptrio.jax.models.base.heads import SequenceClassificationModule

        if self.config.pad_token_id is None and isinstance(self.module, SequenceClassificationModule):
            return length  # it classifies by the last column
        context: int = self.config.max_position_embeddings
        return max(length, min(bucket(length, BUCKETS), context))

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        on_step: Callable[[int, int], object] | None = None,
        on_finish: Callable[[int, FinishReason, int], object] | None = None,
        **options: Any,
    ) -> Tensor:
        """Continue prompts with the Flax model's `generate`, whose arguments and errors these are.

        Args:
            input_ids: (B, T); None for a prompt of the model's `bos_token_id`.
            attention_mask: (B, T).
            generation_config: the options.
            on_step: called once, at the end: the loop is one compiled program.
            on_finish: called for each sequence with its number, the reason and its number of new tokens.
            options: further options; without `prng_key` sampling takes one from torch's random numbers.

        Returns:
            Sequences (R, N) up to the end of the longest one.
        """
        import jax

        from gptrio.jax.generation.setup import ARGUMENTS

        if "seed" in options:
            raise UnsupportedError("seed is for PyTorch models; pass prng_key=jax.random.PRNGKey(seed)")
        config, _ = merge_config(self.flax_model, generation_config, False, dict(options), ARGUMENTS)
        if input_ids is None:
            input_ids = self._empty_prompt(config)
        if config.do_sample:
            drawn = int(torch.empty((), dtype=torch.int64).random_())
            options.setdefault("prng_key", jax.random.PRNGKey(drawn % 2**32))
        mask = None if attention_mask is None else attention_mask.numpy()
        found = self.flax_model.generate(input_ids.numpy(), generation_config, attention_mask=mask, **options)
        sequences, columns = _tensor(found.sequences).long(), input_ids.shape[1]
        is_end = torch.isin(sequences[:, columns:], torch.tensor(eos_ids(config), dtype=torch.long))
        lengths = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, is_end.shape[1]).tolist()
        for row, (length, ended) in enumerate(zip(lengths, is_end.any(1).tolist(), strict=True)):
            if on_finish is not None:
                on_finish(row, FinishReason.STOP_TOKEN if ended else FinishReason.LENGTH, length)
        if on_step is not None:
            on_step(1, 1)
        return sequences[:, : columns + max(lengths)]

    def _empty_prompt(self, config: GenerationConfig) -> Tensor:
        if config.bos_token_id is None:
            raise InputError("the prompt is empty, and the model has no bos_token_id to begin with; pass a text")
        return torch.tensor([[config.bos_token_id]])


def _tensor(array: Any) -> Tensor:
    """A JAX array as a tensor; types narrower than float32 become float32."""
    import jax.numpy as jnp
    import numpy as np

    wide = array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array
    return torch.from_numpy(np.array(wide))
