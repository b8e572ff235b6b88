"""Adapters of PEFT on a model, by the methods of Transformers' models, and what PEFT must know of this package.

PEFT recognises three things by Transformers' classes: GPT-2's linear layer, a model whose head is left out of
"all-linear", and a cache that is still empty. Transformers' `Trainer` so recognises models that it can save.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from gptrio.cache.protocol import Cache
from gptrio.errors import (
    CheckpointFormatError,
    CheckpointNotFoundError,
    InputError,
    MissingDependencyError,
    OptionError,
    warn,
)
from gptrio.hub import HubOptions, read_json, replace_file
from gptrio.nn.linear import Conv1D
from gptrio.quantization.modules import replace_module
from gptrio.utils.file_names import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

if TYPE_CHECKING:
    from peft import PeftConfig

_MODULES = ("tuners.tuners_utils", "peft_model", "utils.other")  # of PEFT, which recognise models by their class
Loaded = TypeVar("Loaded")
_PREFIX = "base_model.model."  # of the names in an adapter's file


def enable_peft() -> None:
    """Let PEFT take this package's models as it takes Transformers'.

    Models do this by themselves where PEFT is in use, when it asks them for their modules. It may be called any number
    of times.

    Raises:
        MissingDependencyError: PEFT is not installed.
    """
    try:
        _introduce(importlib.import_module("peft"))
    except ImportError as error:
        raise MissingDependencyError("adapters need the package peft; pip install 'gptrio[peft]'") from error


@functools.cache
def _introduce(peft: ModuleType) -> None:
    """Name our classes to PEFT, once."""
    tuners, *others = (importlib.import_module(f"{peft.__name__}.{name}") for name in _MODULES)
    for ours, theirs in ((Conv1D, tuners.Conv1D), (Cache, others[0].Cache)):
        if theirs not in ours.__mro__:
            ours.__bases__ = (*ours.__bases__, theirs)
    for module in (tuners, *others):  # they use the name in isinstance(model, PreTrainedModel) alone
        names = vars(module)
        names["PreTrainedModel"] = (names["PreTrainedModel"], AdaptersMixin)


@functools.cache
def _introduce_to_trainer(trainer: Any) -> None:
    """Let `Trainer` save our models by `save_pretrained`; of what is not Transformers' it saves tensors alone."""
    trainer.PreTrainedModel = (trainer.PreTrainedModel, AdaptersMixin)  # which it uses in isinstance alone


class AdaptersMixin(nn.Module):
    """A model that holds adapters inside its own layers, each under a name.

    Attributes:
        peft_config: configuration of each adapter, by name, once there is one.
    """

    _hf_peft_config_loaded = False
    peft_config: dict[str, PeftConfig]

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        """All modules with their paths; makes this package known to PEFT and `Trainer` first, if they are in use."""
        if hasattr(sys.modules.get("peft"), "PeftModel"):
            enable_peft()
        trainer = sys.modules.get("transformers.trainer")
        if hasattr(trainer, "Trainer"):
            _introduce_to_trainer(trainer)
        return super().named_modules(*args, **kwargs)

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """Put a new adapter into the layers and make it the active one.

        Args:
            adapter_config: of a kind that changes layers, such as `peft.LoraConfig`; prompt and prefix tuning go
                through `peft.get_peft_model`.
            adapter_name: "default" if None.

        Raises:
            OptionError: the name is taken.
            InputError: `adapter_config` is not a configuration of PEFT.
        """
        enable_peft()
        from peft import PeftConfig, inject_adapter_in_model

        name = self._new_adapter_name(adapter_name)
        if not isinstance(adapter_config, PeftConfig):
            raise InputError(f"adapter_config is a {type(adapter_config).__name__}; expected a peft.PeftConfig")
        adapter_config.base_model_name_or_path = self.__dict__.get("name_or_path")
        inject_adapter_in_model(adapter_config, self, name)
        self._hf_peft_config_loaded = True
        self.set_adapter(name)

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike[str] | None = None,
        adapter_name: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        device_map: Any = "auto",
        max_memory: Any = None,
        offload_folder: str | None = None,
        offload_index: Any = None,
        peft_config: PeftConfig | None = None,
        adapter_state_dict: dict[str, Tensor] | None = None,
        low_cpu_mem_usage: bool = False,
        is_trainable: bool = False,
        adapter_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Read an adapter from a folder or the hub, or take it from a dictionary, and put it into the layers.

        Args:
            peft_model_id: folder or hub repository that `save_pretrained` of an adapted model has written.
            adapter_name: "default" if None.
            revision: branch, tag or commit of the repository.
            token: of the hub.
            device_map, max_memory, offload_folder, offload_index: accepted and without effect: an adapter lies where
                the layer that it adapts lies.
            peft_config: configuration, in place of the file's.
            adapter_state_dict: tensors, with `peft_config`, in place of a file.
            low_cpu_mem_usage: make the adapter without storage first.
            is_trainable: let its weights require gradients.
            adapter_kwargs: further arguments of PEFT's loading, such as `subfolder`.

        Raises:
            OptionError: the name is taken, or there is nothing to load.
            CheckpointNotFoundError: there is no adapter in that place.
        """
        enable_peft()
        from peft import inject_adapter_in_model, load_peft_weights
        from peft.utils import set_peft_model_state_dict

        name = self._new_adapter_name(adapter_name)
        if peft_model_id is None and (peft_config is None or adapter_state_dict is None):
            raise OptionError("load_adapter needs peft_model_id, or peft_config and adapter_state_dict")
        lookup = dict(adapter_kwargs or {})
        lookup.setdefault("revision", revision)
        lookup.setdefault("token", token)
        device = str(lookup.pop("device", None) or getattr(self, "device", "cpu"))
        if peft_config is None:
            peft_config = _read_config(peft_model_id, lookup)
            peft_config.inference_mode = not is_trainable
        tensors = adapter_state_dict
        if peft_model_id is not None:
            tensors = load_peft_weights(os.fspath(peft_model_id), device=device, **lookup)
        assert tensors is not None
        inject_adapter_in_model(peft_config, self, name, low_cpu_mem_usage=low_cpu_mem_usage)
        self._hf_peft_config_loaded = True
        tensors = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
        loaded = set_peft_model_state_dict(self, tensors, name, low_cpu_mem_usage=low_cpu_mem_usage)
        _warn_of_differences(loaded, name, peft_model_id)
        if peft_config.inference_mode:
            self.eval()

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Make one adapter, or several together, the active ones.

        Raises:
            OptionError: there is no such adapter.
        """
        self._check_adapters([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        for layer in self._adapter_layers(with_saved_modules=True):
            layer.set_adapter(adapter_name)

    def disable_adapters(self) -> None:
        """Compute as if there were no adapters; `enable_adapters` brings them back."""
        self._check_adapters([])
        for layer in self._adapter_layers(with_saved_modules=True):
            layer.enable_adapters(enabled=False)

    def enable_adapters(self) -> None:
        """Compute with the active adapters again."""
        self._check_adapters([])
        for layer in self._adapter_layers(with_saved_modules=True):
            layer.enable_adapters(enabled=True)

    def active_adapters(self) -> list[str]:
        """Names of the active adapters."""
        self._check_adapters([])
        active: list[str] | str = next(self._adapter_layers()).active_adapter
        return [active] if isinstance(active, str) else active

    def active_adapter(self) -> str:
        """Name of the first active adapter."""
        return self.active_adapters()[0]

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Any]:
        """The tensors of an adapter.

        Args:
            adapter_name: the first active one if None.
            state_dict: of the model, if it is not its own.
        """
        name = self.active_adapters()[0] if adapter_name is None else adapter_name
        self._check_adapters([name])
        from peft import get_peft_model_state_dict

        tensors: dict[str, Any] = get_peft_model_state_dict(self, state_dict=state_dict, adapter_name=name)
        return tensors

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """Take adapters out of the layers; with the last one, the layers around them and `peft_config` go too.

        Raises:
            OptionError: there is no such adapter.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_adapters(names)
        for name in names:
            for layer in self._adapter_layers():
                layer.delete_adapter(name)
            self.peft_config.pop(name, None)
        if not self.peft_config:
            del self.peft_config
            self._hf_peft_config_loaded = False
            paths = {layer: path for path, layer in self.named_modules()}
            for layer in reversed(list(self._adapter_layers())):  # its weights have their own names again
                replace_module(self, paths[layer], layer.get_base_layer())

    def _adapter_layers(self, with_saved_modules: bool = False) -> Iterator[Any]:
        """Layers that hold adapters, and on request the modules that are trained whole beside them."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        kinds = (BaseTunerLayer, ModulesToSaveWrapper) if with_saved_modules else (BaseTunerLayer,)
        return (module for module in self.modules() if isinstance(module, kinds))

    def _new_adapter_name(self, name: str | None) -> str:
        name = "default" if name is None else name
        if self._hf_peft_config_loaded and name in self.peft_config:
            raise OptionError(f"there is an adapter {name!r} already; delete it, or pass another adapter_name")
        return name

    def _check_adapters(self, names: list[str]) -> None:
        if not self._hf_peft_config_loaded:
            raise OptionError("the model has no adapter; add_adapter or load_adapter brings one")
        missing = [name for name in names if name not in self.peft_config]
        if missing:
            raise OptionError(
                f"there is no adapter {', '.join(map(repr, missing))}; the model has: {', '.join(self.peft_config)}"
            )


def load_with_adapter(load: Callable[[Any], Loaded], name_or_path: Any, kwargs: dict[str, Any]) -> Loaded:
    """Load a model; from what `save_pretrained` has written of a model with adapters, its base and then the adapter.

    Args:
        load: loads the model of a name or folder.
        name_or_path: of a model or of an adapter.
        kwargs: of `from_pretrained`; `adapter_name` and `adapter_kwargs` (see `load_adapter`) are taken out.
    """
    name, lookup = kwargs.pop("adapter_name", None), kwargs.pop("adapter_kwargs", None) or {}
    options = HubOptions.pop_from(dict(kwargs))
    found = None
    if name_or_path is not None and os.path.isdir(name_or_path):
        found = options.find(name_or_path, ADAPTER_CONFIG_NAME)
    if found is None:
        try:
            return load(name_or_path)
        except CheckpointNotFoundError:  # of the configuration, which an adapter in the hub lacks
            found = None if name_or_path is None else options.find(name_or_path, ADAPTER_CONFIG_NAME)
            if found is None:
                raise
    loaded = load(_base_named_in(found))
    model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
    lookup = {"revision": options.revision, "token": options.token, **lookup}
    model.load_adapter(name_or_path, name, adapter_kwargs={key: value for key, value in lookup.items() if value})
    return loaded


def adapted_model(name_or_path: Any, options: HubOptions) -> str | None:
    """Name of the model that an adapter was trained for; None for anything but an adapter."""
    found = options.find(name_or_path, ADAPTER_CONFIG_NAME)
    return None if found is None else _base_named_in(found)


def _base_named_in(path: Path) -> str:
    base = read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointFormatError(f"{path} does not name the model that it adapts; load that, then load_adapter")
    return base


def save_adapter(
    model: AdaptersMixin,
    folder: Path,
    state_dict: Mapping[str, Tensor] | None = None,
    safe_serialization: bool = True,
    peft_format: bool = True,
) -> None:
    """Write the active adapter alone into a folder, as PEFT and Transformers read it.

    Args:
        model: has adapters.
        folder: made if need be.
        state_dict: of the model, if it is not its own.
        safe_serialization: write safetensors rather than a torch file.
        peft_format: name the tensors as PEFT does.

    Raises:
        OptionError: several adapters are active.
    """
    active = model.active_adapters()
    if len(active) > 1:
        raise OptionError(f"the adapters {', '.join(active)} are active together; set_adapter to the one to save")
    held = model.get_adapter_state_dict(active[0], None if state_dict is None else dict(state_dict))
    prefix = _PREFIX if peft_format else ""
    tensors = {f"{prefix}{key}": tensor.detach().cpu().contiguous() for key, tensor in held.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / (ADAPTER_SAFE_WEIGHTS_NAME if safe_serialization else ADAPTER_WEIGHTS_NAME)) as partial:
        if safe_serialization:
            from safetensors.torch import save_file

            save_file(tensors, partial, {"format": "pt"})
        else:
            torch.save(tensors, partial)
    model.peft_config[active[0]].save_pretrained(os.fspath(folder))


def _read_config(peft_model_id: Any, lookup: dict[str, Any]) -> PeftConfig:
    from peft import PeftConfig

    try:
        config: PeftConfig = PeftConfig.from_pretrained(os.fspath(peft_model_id), **lookup)
        return config
    except (ValueError, OSError) as error:
        raise CheckpointNotFoundError(f"there is no adapter to be read in {peft_model_id}: {error}") from error


def _warn_of_differences(loaded: Any, name: str, origin: Any) -> None:
    """One warning that names the adapter's tensors that were not there, and those that have no place."""
    missing = [key for key in loaded.missing_keys if "lora_" in key and name in key]
    parts = {"not in the model": loaded.unexpected_keys, "missing, so that they are as new": missing}
    clauses = [f"{what}: {', '.join(keys)}" for what, keys in parts.items() if keys]
    if clauses:
        warn(f"adapter {name!r} from {origin or 'a dictionary'}: {'; '.join(clauses)}")
