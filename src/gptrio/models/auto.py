"""Model classes chosen by the `model_type` of a checkpoint's `config.json`, over one registry."""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar, cast

from gptrio.config import AutoConfig, PretrainedConfig
from gptrio.config.auto import as_own_config
from gptrio.errors import ConfigError, OptionError, UnsupportedError
from gptrio.hub import HubOptions, refuse_remote_code
from gptrio.models.base.adapters import load_with_adapter
from gptrio.models.base.pretrained import PreTrainedModel


def _classes(prefix: str, causal_lm: str = "") -> dict[str, str]:
    """Names of a family's classes: what kind of model it is -> its class."""
    return {
        "base": f"{prefix}Model",
        "causal_lm": causal_lm or f"{prefix}ForCausalLM",
        "sequence_classification": f"{prefix}ForSequenceClassification",
        "token_classification": f"{prefix}ForTokenClassification",
        "question_answering": f"{prefix}ForQuestionAnswering",
    }


# model_type, which is also the name of the module -> classes
_FAMILIES = {
    "gpt2": _classes("GPT2", causal_lm="GPT2LMHeadModel"),
    "gpt_neo": _classes("GPTNeo"),
    "gpt_neox": _classes("GPTNeoX"),
}
# arguments that are for the model, though configurations have them too
_FOR_THE_MODEL = ("dtype", "torch_dtype", "attn_implementation", "quantization_config")


class _AutoModel:
    """Loads the class of one kind that fits a checkpoint; not to be instantiated."""

    _kind: ClassVar[str]
    _registered: ClassVar[dict[type[PretrainedConfig], type[PreTrainedModel]]]

    def __init_subclass__(cls) -> None:
        cls._registered = {}

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is not instantiated; use from_pretrained(name) or from_config(config)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint into the class of its family; arguments as for the class's own `from_pretrained`.

        Raises:
            UnsupportedError: a family that gptrio does not have, or `trust_remote_code=True`.
        """
        return load_with_adapter(
            lambda name: cls._load(name, model_args, kwargs), pretrained_model_name_or_path, kwargs
        )

    @classmethod
    def _load(cls, name_or_path: str | os.PathLike[str], model_args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        config = as_own_config(kwargs.get("config"))
        arguments = {name: value for name, value in kwargs.items() if name != "config"}
        if not isinstance(config, PretrainedConfig):
            options = HubOptions.pop_from(arguments).as_kwargs()
            of_model = {name: arguments.pop(name) for name in _FOR_THE_MODEL if name in arguments}
            config, unused = AutoConfig.from_pretrained(
                config or name_or_path, return_unused_kwargs=True, **options, **arguments
            )
            arguments = {**options, **of_model, **unused}
        model_class = cls._class_for(cast(PretrainedConfig, config))
        return model_class.from_pretrained(name_or_path, *model_args, config=config, **arguments)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """Build a model with new weights; `dtype`, `torch_dtype` and `attn_implementation` as in `from_pretrained`."""
        refuse_remote_code(kwargs)
        config = as_own_config(config)
        return cls._class_for(config)._from_config(config, **kwargs)

    @classmethod
    def register(
        cls, config_class: type[PretrainedConfig], model_class: type[PreTrainedModel], exist_ok: bool = False
    ) -> None:
        """Add the model class of a configuration class.

        Raises:
            ConfigError: the configuration class has a model already, or the model has another configuration class.
        """
        if model_class.config_class is not config_class:
            raise ConfigError(
                f"{model_class.__name__}.config_class is {model_class.config_class.__name__}, not "
                f"{config_class.__name__}"
            )
        if not exist_ok and (config_class in cls._registered or config_class.model_type in _FAMILIES):
            raise ConfigError(f"{config_class.__name__} has a model in {cls.__name__}; exist_ok=True replaces it")
        cls._registered[config_class] = model_class

    @classmethod
    def _class_for(cls, config: PretrainedConfig) -> type[PreTrainedModel]:
        if type(config) in cls._registered:
            return cls._registered[type(config)]
        classes = _FAMILIES.get(config.model_type, {})
        if cls._kind not in classes:
            raise UnsupportedError(
                f"{cls.__name__} has no class for model_type={config.model_type!r}; it has: {', '.join(_FAMILIES)} "
                f"({cls.__name__}.register adds your own)"
            )
        module = importlib.import_module(f"gptrio.models.{config.model_type}")
        model_class: type[PreTrainedModel] = getattr(module, classes[cls._kind])
        return model_class


class AutoModel(_AutoModel):
    """Backbones: hidden states without a head."""

    _kind = "base"


class AutoModelForCausalLM(_AutoModel):
    """Models that predict the next token."""

    _kind = "causal_lm"


class AutoModelForSequenceClassification(_AutoModel):
    """Models that classify sequences."""

    _kind = "sequence_classification"


class AutoModelForTokenClassification(_AutoModel):
    """Models that classify tokens."""

    _kind = "token_classification"


class AutoModelForQuestionAnswering(_AutoModel):
    """Models that find the span of an answer."""

    _kind = "question_answering"


def check_auto_class(model_class: type[PreTrainedModel], auto_class: str | type) -> str:
    """The name of an auto class that loads a model class wherever gptrio is installed.

    Args:
        model_class: the class.
        auto_class: an auto class or its name.

    Raises:
        OptionError: there is no such auto class.
        UnsupportedError: the model class is not gptrio's own: code is never written beside weights, nor loaded.
    """
    name = auto_class if isinstance(auto_class, str) else auto_class.__name__
    kinds = {kind.__name__: kind for kind in _AutoModel.__subclasses__()}
    if name not in kinds:
        raise OptionError(f"{name} is not an auto class; expected one of {', '.join(kinds)}")
    config = model_class.config_class
    if kinds[name]._kind not in _FAMILIES.get(config.model_type, {}) or (
        kinds[name]._class_for(config()) is not model_class
    ):
        raise UnsupportedError(
            f"{model_class.__name__} cannot be saved for {name}, because gptrio neither writes code beside weights nor "
            f"runs it; where its module is imported, {name}.register({config.__name__}, {model_class.__name__}) lets "
            f"{name} load it"
        )
    return name
