"""Attributes of model classes that other libraries read."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from gptrio.config import PretrainedConfig
from gptrio.config.weight_names import LAYER_NORM_ALIASES

if TYPE_CHECKING:
    from gptrio.quantization import Quantizer


class FlagsMixin(nn.Module):
    """Attributes that Trainer, accelerate, PEFT and others read from a model class.

    Values are those of Transformers if they are true here too. They differ where gptrio does more (GPT-Neo has an sdpa
    back end, takes attention functions that a caller registers, and its steps compile whole) or less (a model does not
    spread itself over devices).

    Attributes:
        is_parallelizable: whether the model can spread itself over devices; pass `device_map` instead.
        model_parallel: whether it has done so.
        model_tags: see `add_model_tags`.
        hf_device_map: {name of a module: device}; only on models that were loaded with a `device_map`.
        key_aliases: {pattern of a name in a checkpoint: replacement}, for names that the model lacks.
        computed_buffers: patterns of names in checkpoints that hold what the model computes itself.
        full_precision_modules: names of modules that are never quantized: small heads, which are trained anew.
    """

    config: Any
    config_class: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    is_parallelizable: ClassVar[bool] = False
    model_parallel: bool = False
    model_tags: list[str] | None = None
    hf_device_map: dict[str, Any]
    key_aliases: ClassVar[Mapping[str, str]] = LAYER_NORM_ALIASES
    computed_buffers: ClassVar[Sequence[str]] = ()
    full_precision_modules: ClassVar[Sequence[str]] = ("score", "classifier", "qa_outputs")

    _auto_class: ClassVar[str | None] = None
    _no_split_modules: ClassVar[list[str]] = []
    _skip_keys_device_placement: ClassVar[str | list[str] | None] = "past_key_values"
    _tied_weights_keys: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_load_missing: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_save: ClassVar[list[str] | None] = None
    _keep_in_fp32_modules: ClassVar[list[str] | None] = None
    _keep_in_fp32_modules_strict: ClassVar[list[str] | None] = None
    _checkpoint_conversion_mapping: ClassVar[dict[str, str]] = {}

    _is_stateful: ClassVar[bool] = False
    _can_compile_fullgraph: ClassVar[bool] = True
    _supports_sdpa: ClassVar[bool] = True
    _supports_flash_attn: ClassVar[bool] = True
    _supports_flex_attn: ClassVar[bool] = False
    _supports_attention_backend: ClassVar[bool] = True
    _can_record_outputs: ClassVar[dict[str, Any] | None] = None
    _tp_size: ClassVar[int | None] = None
    _tp_plan: ClassVar[dict[str, str]] = {}
    _pp_plan: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the configuration class from the annotation of `config` where a class names none."""
        super().__init_subclass__(**kwargs)
        if "config_class" not in vars(cls):
            annotated = _evaluated(inspect.get_annotations(cls).get("config"), cls.__module__)
            if isinstance(annotated, type) and issubclass(annotated, PretrainedConfig):
                cls.config_class = annotated

    @property
    def hf_quantizer(self) -> Quantizer:
        """The quantizer of the model; `Trainer` reads from it whether adapters can be trained on the model.

        Raises:
            AttributeError: nothing is quantized.
        """
        if not getattr(self, "is_quantized", False):
            raise AttributeError(f"{type(self).__name__} is not quantized")
        from gptrio.quantization import get_quantizer

        return get_quantizer(self.config.quantization_config)

    @classmethod
    def is_backend_compatible(cls) -> bool:
        """Whether attention functions that a caller registers are looked up: they are."""
        return cls._supports_attention_backend

    @property
    def can_record_outputs(self) -> dict[str, Any]:
        """Which modules have their outputs recorded: none, blocks return them."""
        return self._can_record_outputs or {}

    # as there is no plan of parallelism, and the model is not split
    tp_size = property(attrgetter("_tp_size"), doc="Number of devices of tensor parallelism: None.")
    tp_plan = property(attrgetter("_tp_plan"), doc="How tensor parallelism splits layers: none.")
    pp_plan = property(attrgetter("_pp_plan"), doc="How pipeline parallelism cuts the model: not.")

    @property
    def supports_tp_plan(self) -> bool:
        """Whether there is a plan for tensor parallelism."""
        return bool(self._tp_plan)

    @property
    def supports_pp_plan(self) -> bool:
        """Whether there is a plan for pipeline parallelism."""
        return bool(self._pp_plan)


def _evaluated(annotation: Any, module: str) -> Any:
    """An annotation, looked up in its module if it is the text of a name."""
    return vars(sys.modules[module]).get(annotation) if isinstance(annotation, str) else annotation
