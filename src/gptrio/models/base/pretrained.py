"""The methods of every model besides its forward: building, loading, saving, parts, switches."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from gptrio.config import PretrainedConfig
from gptrio.config.auto import config_for
from gptrio.config.auto_models import check_auto_class
from gptrio.errors import AbsentMethodError, OptionError, warn
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.schema import CompileConfig
from gptrio.kernels.packing import release_packs
from gptrio.memory import gc_disabled
from gptrio.models.base.adapters import AdaptersMixin, load_with_adapter
from gptrio.models.base.casting import CastingMixin
from gptrio.models.base.counting import CountingMixin
from gptrio.models.base.device_map import execution_device
from gptrio.models.base.flags import FlagsMixin
from gptrio.models.base.generation_mixin import GenerationMixin
from gptrio.models.base.initialization import InitialisingMixin
from gptrio.models.base.masking import MaskingMixin
from gptrio.models.base.pruning import prune
from gptrio.models.base.pytree import register_pytrees
from gptrio.nn.attention import check_implementation
from gptrio.nn.attention_interface import registered_function
from gptrio.nn.losses import LossMixin, loss_type_of
from gptrio.uploads import Pushable

_FLEX = "flex_attention"
_BY_SDPA = (_FLEX, "sdpa_without_vmap")  # the second is set by Transformers' functions that export a model
Model = TypeVar("Model", bound="PreTrainedModel")
register_pytrees()


class PreTrainedModel(
    AdaptersMixin,
    CastingMixin,
    InitialisingMixin,
    CountingMixin,
    MaskingMixin,
    LossMixin,
    FlagsMixin,
    Pushable,
):
    """Base of all models.

    Args:
        config: the model's configuration, of the class's `config_class`.

    Raises:
        ConfigError: the configuration is of another family.
        UnsupportedError, MissingDependencyError: there is no attention back end of the name that it gives.
    """

    has_cross_attention: ClassVar[bool] = False

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy or pickle, without the compiled call, which runs the model that it was made from."""
        left = ("_compiled_call", "_compiled_call_impl")  # ours, and torch's own
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __init__(self, config: PretrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        """Store the configuration; a family's class builds its parts and then calls `post_init`."""
        super().__init__()
        config = config_for(type(self), config)
        config._attn_implementation = self.get_correct_attn_implementation(config._attn_implementation, True)
        self.config: Any = config
        self.name_or_path = config.name_or_path
        self.loss_type = loss_type_of(type(self).__name__)
        self.warnings_issued: dict[str, bool] = {}
        self.generation_config = GenerationConfig.from_model_config(config) if self.can_generate() else None

    def __getattr__(self, name: str) -> Any:
        """Find a part or parameter; `generate` of a model without a language-model head is an AbsentMethodError."""
        if name == "generate":
            raise AbsentMethodError(
                f"{type(self).__name__!r} object has no attribute 'generate', as it has no language-model head; load "
                "the checkpoint with AutoModelForCausalLM; a class of your own with a head "
                "derives from GenerationMixin"
            )
        return super().__getattr__(name)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has a language-model head: gptrio's, or any with the base class `GenerationMixin`.

        Warns of a class that prepares inputs for `generate`, as heads did before Transformers 4.50, without that base.
        """
        if issubclass(cls, GenerationMixin):
            return True
        if hasattr(cls, "prepare_inputs_for_generation"):
            warn(
                f"{cls.__name__} has prepare_inputs_for_generation, but does not derive from GenerationMixin, and so "
                f"it cannot generate; write class {cls.__name__}(PreTrainedModel, GenerationMixin)"
            )
        return False

    # building -------------------------------------------------------------------------------------------------------

    @classmethod
    def _from_config(cls: type[Model], config: PretrainedConfig, **kwargs: Any) -> Model:
        """Build a model with new weights; `dtype`, `torch_dtype` and `attn_implementation` as in `from_pretrained`."""
        from gptrio.models.base.building import build

        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = config.dtype
        return build(cls, config, **kwargs)

    # files ----------------------------------------------------------------------------------------------------------

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        output_loading_info: Literal[False] = ...,
        **kwargs: Any,
    ) -> Model: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        output_loading_info: Literal[True],
        **kwargs: Any,
    ) -> tuple[Model, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint; see `gptrio.models.base.loading.load_model` for every argument and error.

        A saved adapter is loaded into the model that it names; `adapter_name` and `adapter_kwargs`: see `load_adapter`.
        """
        with gc_disabled():
            from gptrio.models.base.loading import load_model

            return load_with_adapter(
                lambda name: load_model(cls, name, *model_args, **kwargs), pretrained_model_name_or_path, kwargs
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write configuration and weights; see `gptrio.models.base.saving.save_model` for every argument and error."""
        from gptrio.models.base.saving import save_model

        save_model(self, save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:
        """Push configuration and weights to a hub repository; see `gptrio.uploads.Pushable.push_to_hub`."""
        if kwargs.get("tags") or self.model_tags:
            self.add_model_tags(kwargs.get("tags") or [])
            kwargs["tags"] = self.model_tags
        return super().push_to_hub(repo_id, *args, **kwargs)

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Add tags, once each, to those that `push_to_hub` writes into the repository's model card."""
        new = [tags] if isinstance(tags, str) else tags
        self.model_tags = list(dict.fromkeys([*(self.model_tags or ()), *new]))

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoModel") -> None:
        """Set the auto class that loads this class; see `gptrio.config.auto_models.check_auto_class` for the errors."""
        from gptrio.models.auto import TorchAuto

        cls._auto_class = check_auto_class(cls, auto_class, TorchAuto)

    # parts ----------------------------------------------------------------------------------------------------------

    @property
    def base_model(self) -> Any:
        """The backbone: this model itself, or the part below its head."""
        return getattr(self, self.base_model_prefix, self)

    def get_decoder(self) -> Any:
        """The part `decoder` of a class that has one, or of its part `model`; else this model itself."""
        if hasattr(self, "decoder"):
            return self.decoder
        inner = getattr(self, "model", None)
        if inner is None:
            return self
        return inner.get_decoder() if hasattr(inner, "get_decoder") and type(inner) is not type(self) else inner

    def set_decoder(self, decoder: nn.Module) -> None:
        """Replace what `get_decoder` finds; no effect on a model that is its own decoder."""
        inner: Any = getattr(self, "model", None)
        if hasattr(self, "decoder"):
            self.decoder = decoder
        elif hasattr(inner, "set_decoder"):
            inner.set_decoder(decoder)
        elif inner is not None:
            self.model = decoder

    def get_parameter_or_buffer(self, target: str) -> Any:
        """The parameter, the buffer or the extra state of a path such as "lm_head.weight".

        Raises:
            AttributeError: there is none.
        """
        path, _, leaf = target.rpartition(".")
        owner = self.get_submodule(path)
        if leaf == "_extra_state" and type(owner).get_extra_state is not nn.Module.get_extra_state:
            return owner.get_extra_state()
        for kind in (owner._parameters, owner._buffers):
            if kind.get(leaf) is not None:
                return kind[leaf]
        raise AttributeError(f"{target} is neither a parameter, a buffer nor an extra state of {type(self).__name__}")

    def dequantize(self: Model) -> Model:
        """Put layers in full precision, of the model's type, in place of the quantized ones.

        Raises:
            OptionError: nothing is quantized.
        """
        if not getattr(self, "is_quantized", False):
            raise OptionError(
                f"{type(self).__name__} has no quantized weights; load it with quantization_config=... or load_in=..."
            )
        from gptrio.quantization import dequantize

        dequantize(self, self.config.quantization_config, self.dtype)
        self.tie_weights()
        return self

    @property
    def device(self) -> torch.device:
        """Device of the first parameter; if accelerate keeps it elsewhere, the device of the computation."""
        device = next(self.parameters()).device
        return device if device.type != "meta" else execution_device(self) or device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small batch (3, 5) that any forward takes."""
        rows = [[7, 6, 0, 0, 1], [1, 2, 3, 0, 0], [0, 0, 0, 4, 5]]
        return {"input_ids": torch.tensor(rows, device=self.device) % self.config.vocab_size}

    @property
    def framework(self) -> str:
        """The tensor library: "pt"."""
        return "pt"

    def prune_heads(self, heads_to_prune: dict[int, list[int]]) -> None:
        """Remove attention heads for good.

        Args:
            heads_to_prune: {layer: [heads]}, numbered as in the unpruned model; layer -1 is the last one.

        Raises:
            InputError: no such layer or head, or no head would be left.
        """
        for layer, heads in prune(self.base_model, heads_to_prune).items():
            pruned = set(self.config.pruned_heads.get(layer, ())) | set(heads)
            self.config.pruned_heads = {**self.config.pruned_heads, layer: sorted(pruned)}

    # switches -------------------------------------------------------------------------------------------------------

    @property
    def attn_implementation(self) -> str:
        """Attention back end in use: the configuration's, or sdpa, which stands for others of Transformers too."""
        chosen = self.config._attn_implementation or "sdpa"
        return "sdpa" if chosen in _BY_SDPA and registered_function(chosen) is None else chosen

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """The back end of a name; sdpa for None.

        Raises:
            UnsupportedError: no such back end.
        """
        if requested_attention == _FLEX and self._supports_flex_attn:
            return _FLEX
        return check_implementation(requested_attention or "sdpa")

    def set_attn_implementation(self, attn_implementation: str | dict[str, str]) -> None:
        """Choose the attention back end.

        Args:
            attn_implementation: "eager", "sdpa", "flash_attention_2" or a name in `AttentionInterface`; a dictionary
                gives the model's own under the key "".

        Raises:
            UnsupportedError: no such back end.
        """
        if isinstance(attn_implementation, dict):
            attn_implementation = attn_implementation.get("", self.attn_implementation)
        self.config._attn_implementation = self.get_correct_attn_implementation(attn_implementation)

    def get_compiled_call(self, compile_config: CompileConfig | None = None) -> Callable[..., Any]:
        """The compiled model, stored until another configuration is passed."""
        chosen = compile_config or CompileConfig()
        kept = self.__dict__.get("_compiled_call")
        if kept is None or kept[0] != chosen:
            kept = self.__dict__["_compiled_call"] = (
                chosen,
                torch.compile(self.__call__, **chosen.to_dict()),
            )
        compiled: Callable[..., Any] = kept[1]
        return compiled

    def train(self: Model, mode: bool = True) -> Model:
        """Switch between training and evaluation; packed copies of the weights are freed for training."""
        if mode:
            release_packs(self)
        return super().train(mode)

    def _apply(self: Model, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        release_packs(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def _returns_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.use_return_dict if return_dict is None else return_dict)
