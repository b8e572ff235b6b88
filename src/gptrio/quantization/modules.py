"""What quantizers need of a model: its heads, and putting one module in place of another."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gptrio.errors import SizeMismatchError


def output_head(model: Any) -> nn.Module | None:
    """The language-model head; None if there is none, or the model is of another library."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def tied_head(model: Any) -> nn.Module | None:
    """The language-model head, if its weight is the token table's; else None."""
    is_tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    return output_head(model) if is_tied else None


def full_precision_modules(model: Any) -> tuple[str, ...]:
    """Names of modules that no method quantizes: small heads, which are trained anew, and the weights of adapters."""
    layers = [(n, m) for n, m in model.named_modules() if type(m).__module__.startswith("peft.tuners.")]
    parts = (f"{name}.{part}" for name, layer in layers for part, _ in layer.named_modules())
    adapters = [name for name in parts if ".base_layer" not in name]
    return (*getattr(model, "full_precision_modules", ()), *adapters)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in place of the one at the path `name`."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, module)


def check_weight_shape(weight: Tensor, layer: Any) -> None:
    """Raise SizeMismatchError unless a weight is (out, in) of a layer."""
    expected = (layer.out_features, layer.in_features)
    if weight.shape != expected:
        raise SizeMismatchError(
            f"a weight is {tuple(weight.shape)} (out, in) in the checkpoint, {expected} in the model"
        )
