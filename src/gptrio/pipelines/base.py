"""`Pipeline`, the base of all pipelines: preprocess, run the model, postprocess, over one input or many."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from numbers import Integral
from operator import length_hint
from types import GeneratorType
from typing import Any, ClassVar, cast

import torch
from torch.utils.data import Dataset, IterableDataset

from gptrio.errors import GptrioError, InputError, OptionError
from gptrio.errors import PipelineException as PipelineException
from gptrio.generation.options.config import GenerationConfig
from gptrio.hub import folder_to_write
from gptrio.kernels.linear import packed_inference
from gptrio.pipelines.batching import Row, by_length, collate, in_order, length_of, row_of, without_padding
from gptrio.pipelines.devices import choose_device, on_device
from gptrio.pipelines.flax_models import FlaxModelForPipelines, framework_of, is_flax
from gptrio.pipelines.formats import CsvPipelineDataFormat as CsvPipelineDataFormat
from gptrio.pipelines.formats import JsonPipelineDataFormat as JsonPipelineDataFormat
from gptrio.pipelines.formats import PipedPipelineDataFormat as PipedPipelineDataFormat
from gptrio.pipelines.formats import PipelineDataFormat as PipelineDataFormat
from gptrio.pipelines.generating import load_assistant, pipeline_options
from gptrio.pipelines.pt_utils import KeyDataset as KeyDataset
from gptrio.pipelines.pt_utils import PipelineChunkIterator as PipelineChunkIterator
from gptrio.pipelines.pt_utils import PipelineDataset as PipelineDataset
from gptrio.pipelines.pt_utils import PipelineIterator as PipelineIterator
from gptrio.pipelines.pt_utils import PipelinePackIterator as PipelinePackIterator
from gptrio.pipelines.registry import PipelineRegistry as PipelineRegistry
from gptrio.pipelines.results import Report, Results, ignore, is_column, part_of, progress
from gptrio.tokenization.encoding import short
from gptrio.uploads import Pushable, Upload
from gptrio.utils import logging

_log = logging.get_logger(__name__)

Parameters = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # of preprocess, _forward and postprocess

_WINDOW = 512  # inputs that are sorted by length together


def without_none(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are not None."""
    return {name: value for name, value in parameters.items() if value is not None}


class ArgumentHandler(ABC):
    """Base of classes that sort the arguments of a pipeline's call."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The inputs, and what else the class finds in the arguments."""


class Pipeline(ABC, Pushable):
    """Base class: a subclass has `preprocess`, `_forward`, `postprocess` and `_sanitize_parameters`.

    Lists, generators and datasets give one result for each input, in order: lists a list, the others an iterator. On
    a CPU the inputs of lists and datasets run in batches of similar length, whose results are those of single calls up
    to rounding; generators run input by input, because their next input may depend on the last result. `batch_size`
    replaces that by batches of neighbours.

    Args:
        model: a model of this package.
        tokenizer: its tokenizer.
        framework: "pt", or "flax" for a Flax model; that of the model by default.
        task: name of the task.
        device: see `gptrio.pipelines.devices.choose_device`; the model is moved there.
        args_parser: the `ArgumentHandler` of calls, for pipelines that have one.
        binary_output, feature_extractor, image_processor, processor, modelcard: kept as attributes.
        batch_size: rows of a batch; None to choose by length.
        num_workers: accepted and ignored: inputs are prepared in this process.
        kwargs: defaults for the arguments of calls.

    Raises:
        InputError: `model` is not a model, such as the name of one.

    Attributes:
        default_input_names: kept for code that reads it; None.
    """

    default_input_names: ClassVar[Any] = None
    _load_tokenizer: ClassVar[bool | None] = None
    _load_feature_extractor: ClassVar[bool | None] = None
    _load_image_processor: ClassVar[bool | None] = None
    _load_processor: ClassVar[bool | None] = None
    _pipeline_calls_generate: ClassVar[bool] = False
    _args_parser: Any = None

    # whether inputs may run in batches unasked; entries of the outputs with one value for each token; sizes of batches
    _batches_by_length: ClassVar[bool] = False
    _outputs_by_token: ClassVar[tuple[str, ...]] = ()
    _max_rows: ClassVar[int] = 32
    _max_tokens: ClassVar[int] = 2048

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        feature_extractor: Any = None,
        image_processor: Any = None,
        processor: Any = None,
        modelcard: Any = None,
        framework: str | None = None,
        task: str = "",
        device: int | str | torch.device | None = None,
        binary_output: bool = False,
        **kwargs: Any,
    ) -> None:
        for name in ("torch_dtype", "dtype"):
            kwargs.pop(name, None)
        self._args_parser = kwargs.pop("args_parser", None) or self._args_parser
        framework = framework_of(model, framework)
        model = FlaxModelForPipelines(model) if is_flax(model) else model
        if isinstance(model, type) or not hasattr(model, "device"):
            raise InputError(
                f"model is {short(model)}; expected a loaded model. pipeline(task, name) loads one by its name"
            )
        self.task, self.model, self.tokenizer, self.framework = task, model, tokenizer, framework
        self.feature_extractor, self.image_processor, self.processor = feature_extractor, image_processor, processor
        self.modelcard, self.binary_output, self.call_count = modelcard, binary_output, 0
        self.device = choose_device(model, device)
        _log.info("device set to use %s", self.device)
        if model.device != self.device and getattr(model, "hf_device_map", None) is None:
            model.to(self.device)
        self._batch_size: int | None = kwargs.pop("batch_size", None)
        self._num_workers: int | None = kwargs.pop("num_workers", None)
        self._prepare_generation(kwargs)
        self._preprocess_params, self._forward_params, self._postprocess_params = self._sanitize_parameters(**kwargs)

    def _prepare_generation(self, kwargs: dict[str, Any]) -> None:
        """Take the options of `generate` out of the arguments, for pipelines that call it."""
        self.assistant_model = self.assistant_tokenizer = self.prefix = None
        self._kept_options: set[str] = set()
        if self._pipeline_calls_generate and self.model.can_generate():
            assistant = (kwargs.pop("assistant_model", None), kwargs.pop("assistant_tokenizer", None))
            self.assistant_model, self.assistant_tokenizer = load_assistant(self.model, *assistant)
            default = getattr(self, "_default_generation_config", None) or GenerationConfig()
            self.generation_config, self.prefix, self._kept_options = pipeline_options(
                self.model, self.tokenizer, self.task, default, kwargs
            )

    @abstractmethod
    def _sanitize_parameters(self, **pipeline_parameters: Any) -> Parameters:
        """Sort the arguments of the constructor or of a call into those of `preprocess`, `_forward`, `postprocess`."""

    @abstractmethod
    def preprocess(self, *args: Any, **kwargs: Any) -> Any:
        """Turn one input into a dictionary for `_forward`: tensors (1, ...) and other values."""

    @abstractmethod
    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on the dictionary of one row, or of a batch of rows."""

    @abstractmethod
    def postprocess(self, *args: Any, **kwargs: Any) -> Any:
        """Turn the outputs of one input into its result."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Results of one input, or of each input of a list (a list), a generator or a dataset (an iterator).

        Args:
            args: the inputs, also by the name `inputs`; see the class.
            kwargs: arguments of this call; the constructor's are its defaults. `batch_size` is the number of rows of a
                batch, `num_workers` has no effect.

        Raises:
            InputError: there is no input.
        """
        if not args and "inputs" not in kwargs:
            raise InputError("the call has no input; pass one, or a list, a generator or a dataset of several")
        inputs, *others = args or [kwargs.pop("inputs")]
        if others:
            _log.warning("ignoring arguments without a name: %s", others)
        batch_size, workers = kwargs.pop("batch_size", None), kwargs.pop("num_workers", None)
        given = self._sanitize_parameters(**kwargs)
        kept = (self._preprocess_params, self._forward_params, self._postprocess_params)
        preprocess, forward, postprocess = ({**old, **new} for old, new in zip(kept, given, strict=True))
        parameters = (preprocess, forward, postprocess)
        self.call_count += 1
        if isinstance(inputs, (list, Dataset, GeneratorType)) or is_column(inputs):
            results = self.get_iterator(inputs, workers, batch_size, *parameters)
            return list(results) if isinstance(inputs, list) else results
        if isinstance(self, ChunkPipeline):
            return next(self.get_iterator([inputs], workers, batch_size, *parameters))
        return self.run_single(inputs, *parameters)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int | None,
        batch_size: int | None,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Results of many inputs, in order, computed as they are asked for; see the class for `batch_size`."""
        size = self._size_of_batches(batch_size)
        count = length_hint(inputs, -1)
        if size is None and count < 0 and isinstance(inputs, (GeneratorType, Results)):
            size = 1
        is_table = count >= 0 and not isinstance(inputs, IterableDataset)
        items = (inputs[i] for i in range(count)) if is_table else iter(inputs)
        parameters = (preprocess_params, forward_params, postprocess_params)

        def run(window: list[Any], report: Report) -> list[Any]:
            return self._run_window(window, size, parameters, report)

        return Results(run, items, size or _WINDOW, count if count >= 0 else None)

    def run_multi(
        self,
        inputs: Iterable[Any],
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> list[Any]:
        """Results of several inputs, each computed alone."""
        return list(self.iterate(inputs, preprocess_params, forward_params, postprocess_params))

    def iterate(
        self,
        inputs: Iterable[Any],
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Results of several inputs, each computed alone when it is asked for."""
        for item in inputs:
            yield self.run_single(item, preprocess_params, forward_params, postprocess_params)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        """Result of one input."""
        parameters = (preprocess_params, forward_params, postprocess_params)
        with progress(1) if self._pipeline_calls_generate else nullcontext(ignore) as report:
            return self._run_window([inputs], self._size_of_batches(None), parameters, report)[0]

    def _size_of_batches(self, batch_size: int | None) -> int | None:
        """Rows of a batch; None to choose by length. Raises OptionError for what is no number of rows."""
        size = batch_size or self._batch_size
        if size is not None and not (isinstance(cast(Any, size), Integral) and size >= 1):
            raise OptionError(f"batch_size={size!r} is no number of rows; give one from 1 on, or leave it out")
        return 1 if size is None and self.device.type != "cpu" else size

    def _run_window(
        self, inputs: Sequence[Any], batch_size: int | None, parameters: Parameters, report: Report
    ) -> list[Any]:
        """Results of inputs that are in memory together; their rows run in any order."""
        preprocess, forward, postprocess = parameters
        prepared = list[list[Row]]()
        for item in inputs:
            try:
                prepared.append(self._rows(self.preprocess(item, **preprocess)))
            except GptrioError as error:
                error.index = len(prepared)
                raise
        rows = [row for group in prepared for row in group]
        outputs: dict[int, Any] = {}
        with packed_inference(self.model) if len(rows) > 1 and self.device.type == "cpu" else nullcontext():
            for batch in self._batches(rows, batch_size, forward):
                part = part_of(report, len(outputs) / len(rows), len(batch) / len(rows))
                outputs.update(zip(batch, self._run_batch([rows[i] for i in batch], forward, part), strict=True))
                part(1.0)
        in_turn = iter([outputs[i] for i in range(len(rows))])
        return [self.postprocess(self._gathered(list(islice(in_turn, len(g)))), **postprocess) for g in prepared]

    def _rows(self, prepared: Any) -> list[Row]:
        """The rows of one input."""
        return [prepared]

    def _gathered(self, outputs: list[Any]) -> Any:
        """What `postprocess` gets for the outputs of one input's rows."""
        return outputs[0]

    def _batches(self, rows: Sequence[Row], batch_size: int | None, forward_params: dict[str, Any]) -> list[list[int]]:
        """Indices of rows that run together."""
        if batch_size is None and len(rows) > 1 and self._may_batch(forward_params):
            return by_length([length_of(row) for row in rows], self._max_rows, self._max_tokens)
        return in_order(len(rows), batch_size or 1)

    def _may_batch(self, forward_params: dict[str, Any]) -> bool:
        """Whether rows may run together unasked: not in code of others, which may expect one row."""
        own = (type(self)._forward, type(self).preprocess)
        return self._batches_by_length and all(method.__module__.startswith("gptrio.") for method in own)

    def _run_batch(self, rows: Sequence[Row], forward_params: dict[str, Any], report: Report) -> list[Any]:
        """Outputs of rows that run together."""
        if len(rows) == 1:
            return [self.forward(dict(rows[0]), **forward_params)]
        side = "right" if self._batches_by_length else getattr(self.tokenizer, "padding_side", "right")
        batch = collate(rows, self._pad_token_id(), side)
        padded_length, names = length_of(batch), {*batch, *self._outputs_by_token}
        outputs = self.forward(batch, **forward_params)
        split = (row_of(outputs, i) for i in range(len(rows)))
        lengths = map(length_of, rows)
        return [without_padding(*pair, names, padded_length, side) for pair in zip(split, lengths, strict=True)]

    def _pad_token_id(self) -> int:
        """The id that fills rows up; no result depends on it if the model and the tokenizer have none."""
        known = (getattr(self.model.config, "pad_token_id", None), getattr(self.tokenizer, "pad_token_id", None))
        return next((number for number in known if number is not None), 0)

    def forward(self, model_inputs: dict[str, Any], **forward_params: Any) -> Any:
        """Run `_forward` without gradients, on the device of the pipeline; tensors come back on the CPU."""
        with self.device_placement(), self.get_inference_context()():
            inputs = self._ensure_tensor_on_device(model_inputs, device=self.device)
            outputs = self._forward(inputs, **forward_params)
            return self._ensure_tensor_on_device(outputs, device=torch.device("cpu"))

    def get_inference_context(self) -> Callable[[], AbstractContextManager[Any]]:
        """What `forward` runs the model in: `torch.no_grad`."""
        return torch.no_grad

    def device_placement(self) -> AbstractContextManager[Any]:
        """A context in which new tensors of a GPU pipeline are placed on its GPU."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def ensure_tensor_on_device(self, **inputs: Any) -> dict[str, Any]:
        """The arguments with all tensors on the device of the pipeline."""
        moved: dict[str, Any] = self._ensure_tensor_on_device(inputs, self.device)
        return moved

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        return on_device(inputs, device)

    def check_model_type(self, supported_models: Iterable[str] | Mapping[Any, Any]) -> None:
        """Log an error if the model's class is not among the names of classes, or the values of a mapping."""
        values = supported_models.values() if isinstance(supported_models, Mapping) else supported_models
        names = [name for value in values for name in (value if isinstance(value, tuple) else (value,))]
        if type(self.model).__name__ not in names:
            _log.error("%s is not supported for %s; supported are %s", type(self.model).__name__, self.task, names)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the model and the tokenizer in a folder, from which `pipeline(task, folder)` loads them.

        Args:
            save_directory: the folder, made if need be.
            safe_serialization: write safetensors rather than a torch file.
            push_to_hub: also upload the files.
            kwargs: of the `save_pretrained` of the model and of the tokenizer.

        Raises:
            CheckpointError: there is a file in the folder's place.
        """
        folder_to_write(save_directory, "to save the pipeline in")
        upload = Upload.of_save(save_directory, kwargs) if push_to_hub else None
        self.model.save_pretrained(save_directory, safe_serialization=safe_serialization, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        if upload is not None:
            upload.finish(self)

    def transform(self, X: Any) -> Any:  # the name of scikit-learn
        """The same as a call."""
        return self(X)

    predict = transform

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the model."""
        return getattr(self.model, "dtype", None)

    torch_dtype = dtype


class ChunkPipeline(Pipeline):
    """A pipeline whose `preprocess` yields several rows for one input; `postprocess` gets the list of their outputs."""

    def _rows(self, prepared: Any) -> list[Row]:
        return list(prepared)

    def _gathered(self, outputs: list[Any]) -> Any:
        for output in outputs:
            if type(output) is dict:
                output.pop("is_last", None)
        return outputs
