"""Tensors from a checkpoint into a model that was built without storage."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from gptrio.checkpoint.keys import KeyRules, plan_keys, renamed
from gptrio.checkpoint.locate import WeightFiles, locate_weights
from gptrio.checkpoint.msgpack_files import MsgpackFile
from gptrio.checkpoint.reader import CheckpointReader, MappedFile, SafetensorsFile
from gptrio.checkpoint.report import LoadReport
from gptrio.checkpoint.torch_files import TensorDict, read_torch_file
from gptrio.errors import CheckpointFormatError
from gptrio.hub import HubOptions
from gptrio.memory import drop_mapped_pages
from gptrio.utils.file_names import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

AS_NAMED = KeyRules()  # names in the files are those of the model
EXTRA_STATE = "_extra_state"  # torch's name for what a module saves besides parameters and buffers
Device = str | int | torch.device
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class MappedTensors(MappedFile):
    """A mapped file as torch tensors, which share its memory."""

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, without reading it; raises CheckpointFormatError for one that torch lacks."""
        code = self.info(name).dtype
        if code not in _DTYPES:
            raise CheckpointFormatError(f"{self.path}: tensor {name} has type {code}; expected one of {list(_DTYPES)}")
        return _DTYPES[code]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, on the CPU; writing to it never reaches the file."""
        shape, dtype = self.info(name).shape, self.dtype(name)
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.buffer(name), dtype=dtype).view(shape)


class SafetensorsTensors(MappedTensors, SafetensorsFile):
    """A safetensors file as torch tensors."""


class MsgpackTensors(MappedTensors, MsgpackFile):
    """A Flax model's msgpack file as torch tensors."""


class TensorReader(CheckpointReader[MappedTensors | TensorDict]):
    """All tensors of a checkpoint of any format, for torch."""

    def __init__(self, files: WeightFiles) -> None:
        super().__init__(files, _open_file)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, without reading it."""
        file, stored, _ = self.find(name)
        return file.dtype(stored)

    def is_mapped(self, dtype: torch.dtype) -> bool:
        """Whether the weights of a model in this type are pages of the files, which are read when they are used."""
        stored = {kind for kind in map(self.dtype, self.keys()) if kind.is_floating_point}
        return all(path.suffix == ".safetensors" for path in self.files.paths) and stored == {dtype}

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, on the CPU, memory-mapped where the format allows; writing to it never reaches the file."""
        file, stored, is_transposed = self.find(name)
        tensor = file.tensor(stored)
        return tensor.T if is_transposed else tensor


def _open_file(path: Path) -> MappedTensors | TensorDict:
    kinds = {".safetensors": SafetensorsTensors, ".msgpack": MsgpackTensors}
    return kinds[path.suffix](path) if path.suffix in kinds else read_torch_file(path)


def open_checkpoint(
    location: str | os.PathLike[str] | WeightFiles,
    *,
    names: Sequence[str] = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME),
    use_safetensors: bool | None = None,
    variant: str | None = None,
    options: HubOptions | None = None,
) -> TensorReader:
    """Open the weights of a model for reading (arguments and errors as for `locate_weights`)."""
    if not isinstance(location, WeightFiles):
        location = locate_weights(
            location, names=names, use_safetensors=use_safetensors, variant=variant, options=options
        )
    return TensorReader(location)


TensorSource = TensorReader | TensorDict
OnTensor = Callable[[str, torch.Tensor, str, TensorSource], bool]


def load_into(
    module: nn.Module,
    source: TensorSource | Mapping[str, torch.Tensor],
    rules: KeyRules = AS_NAMED,
    *,
    dtype: torch.dtype | Callable[[str], torch.dtype | None] | None = None,
    device: Device | Callable[[str], Device] = "cpu",
    ignore_mismatched_sizes: bool = False,
    on_tensor: OnTensor | None = None,
    key_mapping: Mapping[str, str] | None = None,
) -> LoadReport:
    """Give a module the tensors of a checkpoint, one at a time and without a second copy of the model.

    On the CPU and in the type of the file, a parameter is the memory-mapped file itself, copied page by page only where
    it is written to; the file never changes.

    Args:
        module: the model; its parameters may be on the meta device. They are replaced, not written to.
        source: an open checkpoint, or tensors by name (which are copied).
        rules: how the names in the files become those of the model.
        dtype: type to convert floating-point tensors to, or a function of the model key; as stored when None.
        device: where tensors go: one device, or a function of the model key.
        ignore_mismatched_sizes: skip tensors of other shapes instead of raising.
        on_tensor: is called first with each model key, tensor, key in the checkpoint, and checkpoint; returns True if
            it has loaded the tensor itself.
        key_mapping: see `gptrio.checkpoint.keys.renamed`.

    Raises:
        SizeMismatchError: tensors have other shapes than the model's.
    """
    reader = TensorDict(source) if isinstance(source, Mapping) else source
    targets = dict(module.state_dict(keep_vars=True))
    names = renamed(reader.keys(), key_mapping or {})
    plan = plan_keys(targets, names, rules)
    report = LoadReport(plan.missing, plan.unexpected)
    destinations = {names[key]: name for name, key in plan.sources.items()}
    for key in _in_file_order(reader):
        name = destinations.get(key)
        if name is None:
            continue
        tensor, (path, _, leaf) = reader.tensor(key), name.rpartition(".")
        if on_tensor is not None and on_tensor(name, tensor, key, reader):
            drop_mapped_pages(tensor)
        elif leaf == EXTRA_STATE:
            module.get_submodule(path).set_extra_state(tensor.clone())
        elif tensor.shape != targets[name].shape:
            report.mismatched.append((name, tuple(tensor.shape), tuple(targets[name].shape)))
        else:
            converted = _convert(
                tensor,
                dtype(name) if callable(dtype) else dtype,
                device(name) if callable(device) else device,
                copy=isinstance(reader, TensorDict),
            )
            _assign(module.get_submodule(path), leaf, converted)
            if converted.data_ptr() != tensor.data_ptr():
                drop_mapped_pages(tensor)
    if not ignore_mismatched_sizes:
        report.check_shapes()
    return report


def _in_file_order(reader: TensorSource) -> Iterator[str]:
    """Yield the keys file by file, with a progress bar over shards if standard error is a terminal."""
    if isinstance(reader, TensorDict):
        yield from reader.keys()
        return
    shards: Iterable[tuple[Path, list[str]]] = reader.keys_by_file()
    if len(reader.files.paths) > 1 and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        total = len(reader.files.paths)
        shards = track(shards, "Loading checkpoint shards", total=total, console=Console(stderr=True), transient=True)
    for _, keys in shards:
        yield from keys


def _convert(tensor: torch.Tensor, dtype: torch.dtype | None, device: Device, *, copy: bool) -> torch.Tensor:
    target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=target, copy=copy).contiguous()


def _assign(module: nn.Module, leaf: str, tensor: torch.Tensor) -> None:
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        requires_grad = module.get_parameter(leaf).requires_grad and tensor.is_floating_point()
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=requires_grad)
