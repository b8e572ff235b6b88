"""Building a model: in a dtype, on a device, with or without storage for its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gptrio.config import PretrainedConfig
from gptrio.config.auto import as_own_config
from gptrio.models.base.pretrained import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def build(
    cls: type[Model],
    config: PretrainedConfig,
    *model_args: Any,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    device: torch.device | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Model:
    """Build a model with new weights; on the meta device parameters have no storage, but buffers have their values.

    Args:
        cls: class of the model.
        config: its configuration.
        model_args: further positional arguments of the class.
        dtype: type of the weights; torch's default type if None.
        torch_dtype: older name of `dtype`.
        attn_implementation: attention back end.
        device: where the weights are; torch's default device if None.
        arguments: further named arguments of the class.
    """
    config = as_own_config(config)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    dtype = (torch_dtype if dtype is None else dtype) or torch.get_default_dtype()
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    is_meta = device == "meta"
    device = torch.get_default_device() if device is None or is_meta else device
    with torch.device(device), TensorDefaults(dtype, empty_on_meta=is_meta):
        model = cls(config, *model_args, **arguments or {})
    config.dtype = dtype
    return model


def keep_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the modules that the class names to float32 in a model of float16, or of either half precision."""
    names: list[str] = []
    if dtype is torch.float16:
        names += model._keep_in_fp32_modules or ()
    if dtype in (torch.float16, torch.bfloat16):
        names += model._keep_in_fp32_modules_strict or ()
    for path, parameter in model.named_parameters():
        if any(re.search(rf"(^|\.){name}($|\.)", path) for name in names):
            parameter.data = parameter.data.float()


# functions that make floating-point tensors where no dtype is given
_FILLING = (
    torch.empty,
    torch.empty_strided,
    torch.zeros,
    torch.ones,
    torch.rand,
    torch.randn,
    torch.eye,
    torch.linspace,
)
_INFERRING = (torch.tensor, torch.full, torch.arange)  # whose dtype follows from their values
_DRAWING = ("normal_", "uniform_", "trunc_normal_")


class TensorDefaults(TorchFunctionMode):
    """Sets the default dtype of new tensors in this thread, and on request puts empty ones on the meta device.

    Modules create empty parameters and then draw them; with `empty_on_meta`, such tensors are on the meta device and
    nothing is drawn. Buffers, weights of a loss and other tensors that a constructor makes are not in checkpoints; they
    have the values that the constructor computes.

    torch's own default dtype is shared by all threads, and another thread may be building a model of another dtype. To
    draw on the meta device, torch would load its compiler, which takes a second.

    Args:
        dtype: of floating-point tensors that are made without one.
        empty_on_meta: make what `torch.empty` makes on the meta device.
    """

    def __init__(self, dtype: torch.dtype, empty_on_meta: bool) -> None:
        super().__init__()
        self._dtype, self._empty_on_meta = dtype, empty_on_meta

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch with the defaults; draw nothing on the meta device."""
        kwargs = kwargs or {}
        if self._empty_on_meta and func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        if func in _FILLING and kwargs.get("dtype") is None:
            return func(*args, **{**kwargs, "dtype": self._dtype})
        if func in _INFERRING and kwargs.get("dtype") is None:
            made = func(*args, **kwargs)
            is_from_numbers = made.is_floating_point() and not (args and isinstance(args[0], Tensor))
            return func(*args, **{**kwargs, "dtype": self._dtype}) if is_from_numbers else made
        if getattr(func, "__name__", "") in _DRAWING:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
