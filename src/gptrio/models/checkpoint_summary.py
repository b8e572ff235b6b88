"""What a checkpoint has, from the headers of its files: parameters by part of a model, types, sizes. Loads no torch."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gptrio.checkpoint.locate import WeightFiles, locate_weights
from gptrio.checkpoint.reader import CheckpointReader, SafetensorsFile, header_end, read_header
from gptrio.downloads import file_sizes, offline_reason, read_part
from gptrio.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError
from gptrio.hub import HubOptions, local_folder

# part of a model -> pattern of the names of its tensors, the first that is found; None for what no parameter is
_PARTS: tuple[tuple[str | None, str], ...] = (
    (None, r"(^|\.)(attn|attention)\.(masked_)?bias$|\.inv_freq$"),  # causal masks and rotary tables of older files
    (None, r"\.weight(_scale|_format|\..+)$|\.SCB$"),  # beside the codes of quantized weights
    ("head", r"(^|\.)(lm_head|embed_out|score|classifier|qa_outputs|multiple_choice_head)\."),
    ("embeddings", r"(^|\.)(wte|wpe|embed_in)\."),
    ("norms", r"(^|\.)(ln_\w+|\w*layer_?norm)\."),
    ("attention", r"(attn|attention)\."),
    ("MLP", r"(^|\.)mlp\."),
    ("other", ""),
)
_KINDS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint"}  # in the codes of safetensors
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CODES = {"int8": 1.0, "int4": 0.5 + 2 / 32}  # bytes of a weight, with its share of a group's scale
_FIRST_PART = 100_000  # bytes of a file that have its header in most cases
_OUTPUT = r"(^|\.)(lm_head|embed_out)\.weight$"
_TOKEN_TABLE = r"(^|\.)(wte|embed_in)\.weight$"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: in the files.
        dtype: its type as torch names it, such as "bfloat16".
        shape: its shape.
        part: of the model that it belongs to; None for a buffer, which is no parameter.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    part: str | None

    @property
    def size(self) -> int:
        """Number of elements; a byte of a quantized weight holds two."""
        return math.prod(self.shape) * (2 if self.dtype == "uint8" else 1)

    @property
    def is_matrix_of_a_product(self) -> bool:
        """Whether it is the weight of a linear layer of a block or of the language model's head."""
        is_output = re.search(_OUTPUT, self.name) is not None
        return len(self.shape) == 2 and (self.part in ("attention", "MLP") or is_output)


@dataclass(frozen=True)
class CheckpointSummary:
    """What a checkpoint holds.

    Attributes:
        files: path and size in bytes of each weight file; a name where the file is on the hub only.
        tensors: all of them, without a copy of the token table as a tied head; none of a torch file on the hub.
        is_tied: whether the head is the token table.
        is_local: whether the files are on this machine.
    """

    files: list[tuple[Path, int]]
    tensors: list[StoredTensor]
    is_tied: bool
    is_local: bool = True

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each part of the model."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            if tensor.part is not None:
                counts[tensor.part] += tensor.size
        return {part: counts[part] for part, _ in _PARTS if part in counts and part is not None}

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of parameters of each type as stored."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            if tensor.part is not None:
                counts[tensor.dtype] += tensor.size
        return dict(counts.most_common())

    def memory(self) -> dict[str, int]:
        """Bytes of the weights at each precision; of int8 and int4, a tied token table takes 8 bits."""
        total = sum(self.parameters.values())
        matrices = sum(tensor.size for tensor in self.tensors if tensor.is_matrix_of_a_product)
        table = sum(tensor.size for tensor in self.tensors if self.is_tied and re.search(_TOKEN_TABLE, tensor.name))
        rest = 4 * (total - matrices - table)
        codes = {name: int(rest + matrices * size) + table for name, size in _CODES.items()}
        return {name: total * size for name, size in _BYTES.items()} | codes


def summarize(location: str | os.PathLike[str], is_tied: bool, options: HubOptions | None = None) -> CheckpointSummary:
    """Read what the files of a model hold; safetensors files without torch, others through memory maps.

    Of a model on the hub that is not in its cache, the headers of safetensors files are read there, and nothing else of
    the weights; a torch file has no header, so that only its size is known.

    Args:
        location: folder, packaged name, hub id, or one weight file.
        is_tied: whether the head is the token embedding, so that a copy of it in the files is not counted.
        options: lookup options.

    Raises:
        CheckpointError: there are no weights, or a file is damaged.
    """
    options = options or HubOptions()
    is_on_hub = local_folder(location) is None and not Path(location).is_file()
    try:
        known = replace(options, local_files_only=True) if is_on_hub else options
        files, sizes = locate_weights(location, options=known), None
    except CheckpointNotFoundError as error:
        if not is_on_hub:
            raise
        if reason := offline_reason(options):
            raise CheckpointNotFoundError(
                f"the weights of {os.fspath(location)!r} are not in the hub's cache and {reason}"
            ) from error
        sizes = file_sizes(os.fspath(location), options)
        files = locate_weights(location, options=_Listed(**options.as_kwargs(), names=frozenset(sizes)))
    rows = _headers(files) if sizes is None else _remote_headers(os.fspath(location), files, sizes, options)
    tensors = [
        StoredTensor(name, dtype, shape, _part_of(name))
        for name, dtype, shape in rows
        if not (is_tied and re.search(_OUTPUT, name))
    ]
    found = [(path, path.stat().st_size if sizes is None else sizes[path.name]) for path in sorted(files.paths)]
    return CheckpointSummary(found, tensors, is_tied, sizes is None)


@dataclass(frozen=True)
class _Listed(HubOptions):
    """Lookup options that download JSON files only: other files have their names for paths.

    Args:
        names: of the files of the repository.
    """

    names: frozenset[str] = frozenset()

    def find(self, name_or_path: str | os.PathLike[str], filename: str) -> Path | None:
        """The path of a JSON file, the name of another one, or None if the repository lacks it."""
        if filename not in self.names:
            return None
        return super().find(name_or_path, filename) if filename.endswith(".json") else Path(filename)


def _remote_headers(
    name: str, files: WeightFiles, sizes: Mapping[str, int], options: HubOptions
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each tensor of safetensors files of a hub repository; none of torch files."""
    for file in (path.name for path in files.paths if path.suffix == ".safetensors"):
        size = sizes[file]
        try:
            start = read_part(name, file, 0, min(size, _FIRST_PART), options)
            end = header_end(start, size)
            start += read_part(name, file, len(start), end, options) if end > len(start) else b""
            infos = read_header(start, size)
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointFormatError(f"{file} of {name!r} is not a whole safetensors file: {error}") from error
        for tensor, info in infos.items():
            yield tensor, _dtype_name(info.dtype), info.shape


def _part_of(name: str) -> str | None:
    return next(part for part, pattern in _PARTS if re.search(pattern, name))


def _headers(files: WeightFiles) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each tensor."""
    if files.paths[0].suffix == ".safetensors":
        headers = CheckpointReader(files, SafetensorsFile)
        for _, names in headers.keys_by_file():
            for name in names:
                file, stored, _ = headers.find(name)
                info = file.info(stored)
                yield name, _dtype_name(info.dtype), info.shape
        return
    from gptrio.checkpoint.load import TensorReader

    tensors = TensorReader(files)
    for _, names in tensors.keys_by_file():
        for name in names:
            tensor = tensors.tensor(name)
            yield name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _dtype_name(code: str) -> str:
    """The name of a type in torch, such as "bfloat16" for the code BF16; rare codes as they are."""
    found = re.fullmatch(r"(BF|F|I|U)(\d+)", code)
    return code if found is None else _KINDS[found[1]] + found[2]
