"""Where the tensors of a model go: one device, several, or files that accelerate reads them from at each use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gptrio.errors import OptionError, import_optional

if TYPE_CHECKING:
    from gptrio.models.base.pretrained import PreTrainedModel

DeviceMap = str | int | torch.device | dict[str, Any]
_PLANNED = ("auto", "balanced", "balanced_low_0", "sequential")
_DISK = "disk"


@dataclass(frozen=True)
class Placement:
    """Where the tensors of a model are put.

    Args:
        device_map: a device, "auto" (or "balanced", "balanced_low_0", "sequential"), or {name of a module: device or
            "disk"}.
        max_memory: {device: bytes, or text such as "8GB"}, the most that "auto" puts on each.
        offload_folder: folder for what goes to "disk"; if None, that is read from the checkpoint itself, if it can be.
        offload_buffers: send buffers there, too.
    """

    device_map: DeviceMap | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    offload_folder: str | os.PathLike[str] | None = None
    offload_buffers: bool = False

    @classmethod
    def pop_from(cls, device_map: DeviceMap | None, kwargs: dict[str, Any]) -> Placement:
        """Take the other arguments out of those of `from_pretrained`."""
        return cls(
            device_map,
            kwargs.pop("max_memory", None),
            kwargs.pop("offload_folder", None),
            bool(kwargs.pop("offload_buffers", False)),
        )

    def resolve(self, model: nn.Module, dtype: torch.dtype) -> DeviceMap | None:
        """The device map, with "auto" replaced by accelerate's choice where `max_memory` or `offload_folder` is given.

        Args:
            model: on the meta device, its layers in the form in which they are loaded.
            dtype: type of the floating-point weights.
        """
        if self.device_map not in _PLANNED or not (self.max_memory or self.offload_folder):
            return self.device_map
        _import_accelerate("max_memory and offload_folder")
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory, get_max_memory

        kept_whole: Any = getattr(model, "_no_split_modules", [])
        if self.device_map == "sequential":
            memory = get_max_memory(self.max_memory)
        else:
            low_zero = self.device_map == "balanced_low_0"
            memory = get_balanced_memory(model, self.max_memory, kept_whole, dtype, low_zero=low_zero)
        chosen: dict[str, Any] = infer_auto_device_map(
            model, memory, kept_whole, dtype, offload_buffers=self.offload_buffers
        )
        return chosen

    def dispatch(self, model: PreTrainedModel, device_map: DeviceMap | None, is_mapped: bool = False) -> None:
        """Make a model that is spread over several devices move activations between them, and weights from files.

        Args:
            model: with its weights.
            device_map: as resolved.
            is_mapped: the weights are pages of the checkpoint's files, see `TensorReader.is_mapped`.

        Raises:
            OptionError: something goes to "disk", `offload_folder` is None, and the weights are not mapped.
            MissingDependencyError: accelerate is needed and not installed.
        """
        if device_map is None:
            return
        model.hf_device_map = device_map = _as_dictionary(device_map)
        devices = {str(device) if device == _DISK else torch.device(device) for device in device_map.values()}
        if devices == {torch.device("cpu")} or (len(devices) == 1 and _DISK not in devices):
            return
        stays = _DISK in devices and self.offload_folder is None  # where it is, in the checkpoint
        if stays and not is_mapped:
            names = [name or "the whole model" for name, device in device_map.items() if device == _DISK]
            raise OptionError(
                f"device_map puts {', '.join(names)} on disk; pass offload_folder, a folder for it, as the checkpoint "
                "itself can be read at each use only if it is of safetensors in the dtype of the model"
            )
        accelerate = _import_accelerate("a device_map over several devices, or with 'disk',")
        state = model.state_dict() if stays else None
        if devices == {_DISK}:
            device, buffers = torch.device("cuda" if torch.cuda.is_available() else "cpu"), self.offload_buffers
            if stays:
                accelerate.cpu_offload(model, device, offload_buffers=buffers, state_dict=state)
            else:
                accelerate.disk_offload(model, self.offload_folder, device, offload_buffers=buffers)
            return
        accelerate.dispatch_model(
            model,
            device_map,
            state_dict=state,
            offload_dir=self.offload_folder,
            offload_index={} if stays else None,
            offload_buffers=self.offload_buffers,
            skip_keys=model._skip_keys_device_placement,
        )


def device_function(device_map: DeviceMap | None) -> Callable[[str], torch.device]:
    """A function from a tensor's name to the device that it is read to: the CPU for tensors on "disk".

    The function raises OptionError for a tensor without a device in the map; this one for what is no device.
    """
    if device_map is None:
        device_map = torch.get_default_device()
    elif device_map in _PLANNED:
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    by_module = device_map if isinstance(device_map, dict) else {}
    places = {name: "cpu" if device == _DISK else device for name, device in by_module.items()}
    try:
        prefixes = {name: torch.device(device) for name, device in (places or {"": device_map}).items()}
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            f"device_map={device_map!r} is not possible; expected a device such as 'cpu' or 'cuda:0', one of "
            f"{', '.join(_PLANNED)}, or a dictionary of modules' names with a device or 'disk' for each"
        ) from error

    def device_of(key: str) -> torch.device:
        fitting = [name for name in prefixes if not name or key == name or key.startswith(f"{name}.")]
        if not fitting:
            raise OptionError(f"device_map has no device for {key}; add an entry for it, or '' for all the rest")
        return prefixes[max(fitting, key=len)]

    return device_of


def _as_dictionary(device_map: DeviceMap) -> dict[str, Any]:
    """A device map as the dictionary that Transformers keeps on a model."""
    if isinstance(device_map, dict):
        return device_map
    if device_map in _PLANNED:
        return {"": 0 if torch.cuda.is_available() else "cpu"}
    return {"": device_map if isinstance(device_map, int) else torch.device(device_map)}


def execution_device(model: nn.Module) -> torch.device | None:
    """The first device that a hook of accelerate brings weights to; None if the model has no such hook."""
    for module in model.modules():
        hook: Any = module.__dict__.get("_hf_hook")
        for part in getattr(hook, "hooks", (hook,)):  # of a SequentialHook, or the hook itself
            device = getattr(part, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None


def _import_accelerate(what: str) -> Any:
    message = f"{what} needs accelerate; pip install 'gptrio[accelerate]', or name one device"
    return import_optional("accelerate", message)
