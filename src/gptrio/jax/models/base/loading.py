"""Loads models: each parameter goes from the memory-mapped file straight to its place. No format needs torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import Array
from jax.sharding import Mesh

from gptrio.checkpoint.flax_names import is_transposed, torch_name
from gptrio.checkpoint.keys import KeyRules, plan_keys
from gptrio.checkpoint.locate import WeightFiles, locate_weights
from gptrio.checkpoint.msgpack_files import MsgpackFile
from gptrio.checkpoint.pickled_files import TorchFile
from gptrio.checkpoint.reader import CheckpointReader, MappedFile, SafetensorsFile
from gptrio.checkpoint.report import LoadReport
from gptrio.config import PretrainedConfig
from gptrio.config.arguments import drop_arguments_without_effect, refuse_unknown
from gptrio.config.reading import pinned, read_config
from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError
from gptrio.generation.options.config import GenerationConfig
from gptrio.hub import HubOptions
from gptrio.jax.models.base.pretrained import FlaxPreTrainedModel, Params, ParamsPath
from gptrio.jax.nn.linear import Dtype
from gptrio.jax.sharding import placer, shard
from gptrio.utils.file_names import FLAX_WEIGHTS_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

Model = TypeVar("Model", bound=FlaxPreTrainedModel)
Place = Callable[[ParamsPath, np.ndarray[Any, Any]], Array]  # puts an array, which may be a view of a file, on devices

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class ArrayReader(CheckpointReader[MappedFile]):
    """All tensors of a checkpoint of any format, as numpy arrays that share the memory of the mapped files."""

    def __init__(self, files: WeightFiles) -> None:
        super().__init__(files, _open_file)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The tensor, in PyTorch's layout; raises CheckpointFormatError for a type that numpy lacks."""
        file, stored, is_exchanged = self.find(name)
        code, shape, _, _ = file.info(stored)
        if code not in _DTYPES:
            raise CheckpointFormatError(
                f"{file.path}: tensor {stored} has type {code}; expected one of {list(_DTYPES)}"
            )
        array = np.frombuffer(file.buffer(stored), _DTYPES[code]).reshape(shape)
        return array.T if is_exchanged else array

    def release(self) -> None:
        """Let go of the memory that reading took; arrays stay valid."""
        if self._open is not None:
            self._open[1].release()


def _open_file(path: Path) -> MappedFile:
    kinds: dict[str, type[MappedFile]] = {".safetensors": SafetensorsFile, ".msgpack": MsgpackFile}
    return kinds.get(path.suffix, TorchFile)(path)


def load_model(
    cls: type[Model],
    name_or_path: str | os.PathLike[str],
    dtype: Dtype = jnp.float32,
    *model_args: Any,
    config: PretrainedConfig | str | os.PathLike[str] | None = None,
    from_pt: bool = False,
    ignore_mismatched_sizes: bool = False,
    _do_init: bool = True,
    place: Place | None = None,
    mesh: Mesh | None = None,
    specs: Params | None = None,
    **kwargs: Any,
) -> Model | tuple[Model, Params]:
    """Load a model from `flax_model.msgpack`, or else safetensors (of either framework), or else a torch file.

    Parameters keep the type of the file; `dtype` is that of the computation. Parameters that the checkpoint lacks are
    drawn at random, with a warning.

    Args:
        cls: class of the model.
        name_or_path: folder, packaged name, hub id or a single weight file.
        dtype: of the computation.
        model_args: further positional arguments of the class.
        config: configuration, or where to read it; from the folder of the weights if None.
        from_pt: read files of a PyTorch model even where there are Flax's.
        ignore_mismatched_sizes: draw parameters of other shapes at random instead of raising.
        _do_init: False returns (model, params), without what the checkpoint lacks: `model.init_weights` adds that.
        place: puts each parameter on its devices: called with its path and an array, a view of the file where possible;
            on the default device if None, or in the host's memory if `_do_init` is False.
        mesh: divide the parameters among its devices, each part straight from the file; in place of `place`.
        specs: how they are divided; by default `gptrio.jax.sharding.partition_specs`.
        kwargs: lookup options (see `gptrio.hub.HubOptions`), overrides of the configuration, further arguments of the
            class, and arguments of Transformers that change nothing here.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError, UnsafeCheckpointError, SizeMismatchError: see `gptrio.errors`.
        OptionError: an argument is unknown.
        InputError: the mesh or the specs do not fit the model.
        UnsupportedError: an argument of Transformers that needs something that gptrio lacks.
    """
    options = HubOptions.pop_from(kwargs)
    drop_arguments_without_effect(cls.__name__, kwargs)
    config, arguments = read_config(cls.config_class, config, name_or_path, options, kwargs)
    known = {"input_shape", "seed", *(field.name for field in fields(cls.module_class))} - {"config", "dtype"}
    refuse_unknown(cls, arguments, known)
    options = pinned(options, config, name_or_path)
    names = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME) if from_pt else (FLAX_WEIGHTS_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME)
    reader = ArrayReader(locate_weights(name_or_path, names=names, options=options))
    model = cls(config, *model_args, **{"dtype": dtype, "_do_init": False, **arguments})
    if mesh is not None:
        place = placer(model, mesh, specs, after_part=reader.release)
    place = place or (_put if _do_init else _put_on_host)
    flat, report = read_params(model, reader, place)
    if not ignore_mismatched_sizes:
        report.check_shapes()
    report.warn(f"{cls.__name__} from {os.fspath(name_or_path)}")
    model.name_or_path = str(name_or_path)
    _read_generation_config(model, name_or_path, options)
    model._missing_keys = model.required_params - set(flat)
    if not _do_init:
        return model, unflatten_dict(flat)
    model._is_initialized = True
    model.params = model.init_weights(model.key, model.input_shape, unflatten_dict(flat))
    if mesh is not None:  # also those that the checkpoint lacks
        shard(model, mesh, specs)
    return model


def read_params(
    model: FlaxPreTrainedModel, reader: ArrayReader, place: Place
) -> tuple[dict[ParamsPath, Array], LoadReport]:
    """The parameters that a checkpoint has for a model, by path, and a report of the others.

    Args:
        model: need not hold parameters.
        reader: the open checkpoint.
        place: see `load_model`.
    """
    shapes = model.flat_shapes
    paths = {torch_name("/".join(path)): path for path in shapes}
    plan = plan_keys(paths, reader.keys(), _key_rules(model))
    report = LoadReport(plan.missing, plan.unexpected)
    names = {key: name for name, key in plan.sources.items()}
    flat = {}
    for _, keys in reader.keys_by_file():
        for key in keys:
            name = names.get(key)
            if name is None:
                continue
            path, array = paths[name], reader.array(key)
            array = array.T if is_transposed(path[-1]) else array
            if array.shape == shapes[path].shape:
                flat[path] = place(path, array)
            else:
                report.mismatched.append(("/".join(path), array.shape, shapes[path].shape))
    return flat, report


def _key_rules(model: FlaxPreTrainedModel) -> KeyRules:
    """A tied output layer has no parameters of its own, but stands in for the token table where files lack that."""
    known, prefix = model.weight_names, model.base_model_prefix
    aliases, ignored = dict(known.key_aliases), list(known.computed_buffers)
    if model.config.tie_word_embeddings:
        aliases[rf"^{known.output}\."] = f"{prefix}.{known.token_table}."
        ignored.append(rf"^{known.output}\.weight$")
    return KeyRules(prefix, aliases, ignored)


def _put(path: ParamsPath, array: np.ndarray[Any, Any]) -> Array:
    return jnp.asarray(np.ascontiguousarray(array))


def _put_on_host(path: ParamsPath, array: np.ndarray[Any, Any]) -> Array:
    return jax.device_put(np.ascontiguousarray(array), jax.local_devices(backend="cpu")[0])


def _read_generation_config(
    model: FlaxPreTrainedModel, name_or_path: str | os.PathLike[str], options: HubOptions
) -> None:
    if model.can_generate() and not os.path.isfile(name_or_path):
        with contextlib.suppress(CheckpointNotFoundError):
            model.generation_config = GenerationConfig.from_pretrained(name_or_path, **options.as_kwargs())
