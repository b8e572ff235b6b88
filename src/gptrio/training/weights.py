"""The weights of a model in a checkpoint of a run: written, and put back into the same model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from gptrio.checkpoint.load import open_checkpoint
from gptrio.checkpoint.write import save_state_dict
from gptrio.errors import CheckpointNotFoundError, import_optional, warn
from gptrio.training.sharding import is_sharded, placed
from gptrio.utils.file_names import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

ADAPTER_FILES = (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)


def save_weights(
    model: Any, folder: str | os.PathLike[str], state_dict: dict[str, Tensor] | None = None, safetensors: bool = True
) -> None:
    """Write a model into a folder: by its own `save_pretrained`, or, of any other module, its tensors."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder, state_dict=state_dict, safe_serialization=safetensors)
        return
    save_state_dict(model.state_dict() if state_dict is None else state_dict, folder, safe_serialization=safetensors)


def restore_weights(model: Any, folder: str | os.PathLike[str]) -> None:
    """Copy the weights, or the adapter, of a checkpoint into a model, whose parameters stay the same objects.

    Raises:
        CheckpointNotFoundError: the folder has no weights.
        CheckpointError: they are damaged, or of other shapes.
    """
    folder = Path(folder)
    adapters = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    if adapters:
        peft = import_optional("peft", f"{adapters[0]} is an adapter, which needs PEFT; pip install 'gptrio[train]'")
        tensors = _tensors(adapters[0])
        if is_sharded(model):
            active = f".{model.active_adapter}"
            tensors = _placed(tensors, {name.replace(active, ""): p for name, p in model.named_parameters()})
        peft.set_peft_model_state_dict(model, tensors)
        return
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"no checkpoint folder {folder}")
    tensors = _tensors(folder)
    if is_sharded(model):
        tensors = _placed(tensors, model.state_dict(keep_vars=True))
    result = model.load_state_dict(tensors, strict=False)
    known = {id(parameter) for name, parameter in model.state_dict(keep_vars=True).items() if name in tensors}
    missing = [name for name, p in model.named_parameters() if name in result.missing_keys and id(p) not in known]
    if missing or result.unexpected_keys:
        warn(
            f"the weights in {folder} do not fit {type(model).__name__}: it lacks {', '.join(missing) or 'none'}, and "
            f"has {', '.join(result.unexpected_keys) or 'none'} too many"
        )
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def _placed(tensors: dict[str, Tensor], parameters: dict[str, Any]) -> dict[str, Tensor]:
    """The rows of this rank of each tensor that the model has divided."""
    return {name: placed(value, parameters[name]) if name in parameters else value for name, value in tensors.items()}


def _tensors(location: Path) -> dict[str, Tensor]:
    reader = open_checkpoint(location)
    return {name: reader.tensor(name) for name in list(reader.keys())}
