"""Casts of whole models, which layers of bitsandbytes do not take part in."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from gptrio.errors import UnsupportedError

Model = TypeVar("Model", bound="CastingMixin")


class CastingMixin(nn.Module):
    """Refuses to cast a model with layers of bitsandbytes; its device may change."""

    def to(self: Model, *args: Any, **kwargs: Any) -> Model:
        """Move or cast the model, as `nn.Module.to` does.

        Raises:
            UnsupportedError: a dtype for a model with layers of bitsandbytes.
        """
        if "dtype" in kwargs or any(isinstance(value, torch.dtype) for value in args):
            self._check_castable("to(dtype)")
        return super().to(*args, **kwargs)

    def half(self: Model, *args: Any) -> Model:
        """Cast to float16; raises UnsupportedError for a model with layers of bitsandbytes."""
        self._check_castable("half()")
        return super().half(*args)

    def float(self: Model, *args: Any) -> Model:
        """Cast to float32; raises UnsupportedError for a model with layers of bitsandbytes."""
        self._check_castable("float()")
        return super().float(*args)

    def _check_castable(self, call: str) -> None:
        if getattr(self, "quantization_method", None) == "bitsandbytes":
            raise UnsupportedError(
                f"{type(self).__name__}.{call} would cast only what bitsandbytes has not quantized; load the model "
                "with dtype=..., or call dequantize() first"
            )
