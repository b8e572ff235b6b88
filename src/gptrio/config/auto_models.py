"""Model classes chosen by the `model_type` of a checkpoint's `config.json`, over one registry, for either framework."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from gptrio.config.auto import OWN_CONFIGS, AutoConfig, as_own_config
from gptrio.config.base import PretrainedConfig
from gptrio.errors import ConfigError, OptionError, UnsupportedError
from gptrio.hub import HubOptions, refuse_code


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
FAMILIES = {
    "gpt2": {**_classes("GPT2", causal_lm="GPT2LMHeadModel"), "pretraining": "GPT2LMHeadModel"},
    "gpt_neo": _classes("GPTNeo"),
    "gpt_neox": _classes("GPTNeoX"),
}


def families_of(auto: type[AutoModelBase]) -> list[str]:
    """The model types of which an auto class has gptrio's own classes."""
    return [family for family, classes in FAMILIES.items() if auto._kind in classes]


class AutoModelBase:
    """Loads the class of one kind that fits a checkpoint; not to be instantiated.

    Attributes:
        _kind: "base", "causal_lm" or another key of a family's classes.
        _package: where the families' modules are, each named like its `model_type`.
        _prefix: of the classes' names.
        _for_the_model: arguments that are for the model, though configurations have them too.
        _registered: further classes.
    """

    _kind: ClassVar[str]
    _package: ClassVar[str]
    _prefix: ClassVar[str] = ""
    _for_the_model: ClassVar[tuple[str, ...]]
    _registered: ClassVar[dict[type[PretrainedConfig], type]]

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
            UnsupportedError: a family that gptrio does not have, or trust in code that the checkpoint has.
        """
        return cls._load(pretrained_model_name_or_path, model_args, kwargs)

    @classmethod
    def _load(cls, name_or_path: str | os.PathLike[str], model_args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        config = as_own_config(kwargs.get("config"))
        arguments = {name: value for name, value in kwargs.items() if name != "config"}
        if not isinstance(config, PretrainedConfig):
            options = HubOptions.pop_from(arguments).as_kwargs()
            of_model = {name: arguments.pop(name) for name in cls._for_the_model if name in arguments}
            config, unused = AutoConfig.from_pretrained(
                config or name_or_path, return_unused_kwargs=True, **options, **arguments
            )
            arguments = {**options, **of_model, **unused}
        refuse_code(kwargs.get("trust_remote_code"), vars(config), type(config).__name__)
        model_class: Any = cls._class_for(type(config))
        return model_class.from_pretrained(name_or_path, *model_args, config=config, **arguments)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """Build a model with new weights; `dtype`, `torch_dtype` and `attn_implementation` as in `from_pretrained`.

        Raises:
            ConfigError: `config` is no configuration, such as the name of one.
            UnsupportedError: as `from_pretrained`.
        """
        config = as_own_config(config)
        if not isinstance(config, PretrainedConfig):
            raise ConfigError(
                f"config={config!r} is a {type(config).__name__}, not a configuration; pass "
                f"AutoConfig.from_pretrained(name), or load weights with {cls.__name__}.from_pretrained(name)"
            )
        refuse_code(kwargs.pop("trust_remote_code", None), vars(config), type(config).__name__)
        model_class: Any = cls._class_for(type(config))
        return model_class._from_config(config, **kwargs)

    @classmethod
    def register(cls, config_class: type[PretrainedConfig], model_class: type, exist_ok: bool = False) -> None:
        """Add the model class of a configuration class, in place of one that was added before.

        Raises:
            ConfigError: the configuration class is gptrio's own (unless `exist_ok`), or the model has another one.
        """
        own: type[PretrainedConfig] = getattr(model_class, "config_class", PretrainedConfig)
        if own is not config_class:
            raise ConfigError(f"{model_class.__name__}.config_class is {own.__name__}, not {config_class.__name__}")
        if not exist_ok and config_class in OWN_CONFIGS.values():
            raise ConfigError(f"{config_class.__name__} has a model in {cls.__name__}; exist_ok=True replaces it")
        cls._registered[config_class] = model_class

    @classmethod
    def _class_for(cls, config_class: type[PretrainedConfig]) -> type:
        if config_class in cls._registered:
            return cls._registered[config_class]
        model_type = config_class.model_type
        classes = FAMILIES.get(model_type, {})
        if cls._kind not in classes:
            raise UnsupportedError(
                f"{cls.__name__} has no class for model_type={model_type!r}; it has: {', '.join(families_of(cls))} "
                f"({cls.__name__}.register adds your own)"
            )
        module = importlib.import_module(f"{cls._package}.{model_type}")
        model_class: type = getattr(module, cls._prefix + classes[cls._kind])
        return model_class


class ModelMapping(Mapping[type[PretrainedConfig], type]):
    """The model class of each configuration class, as an auto class chooses it; those registered are included.

    Args:
        auto: the auto class.
    """

    def __init__(self, auto: type[AutoModelBase]) -> None:
        self._auto = auto

    def __getitem__(self, config_class: type[PretrainedConfig]) -> type:
        if config_class not in [*self]:
            raise KeyError(config_class)
        return self._auto._class_for(config_class)

    def __iter__(self) -> Iterator[type[PretrainedConfig]]:
        own = [OWN_CONFIGS[family] for family in families_of(self._auto)]
        return iter(dict.fromkeys([*own, *self._auto._registered]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def names(self) -> dict[str, str]:
        """Name of the model class by model type, for gptrio's own families."""
        auto = self._auto
        return {family: auto._prefix + FAMILIES[family][auto._kind] for family in families_of(auto)}

    def register(self, key: type[PretrainedConfig], value: type, exist_ok: bool = False) -> None:
        """Add a model class; see `AutoModelBase.register`."""
        self._auto.register(key, value, exist_ok)


def get_values(model_mapping: Mapping[type[PretrainedConfig], type | tuple[type, ...]]) -> list[type]:
    """The model classes of a table such as `MODEL_FOR_CAUSAL_LM_MAPPING`, those that stand in tuples included."""
    values = [value if isinstance(value, (list, tuple)) else (value,) for value in model_mapping.values()]
    return [model_class for classes in values for model_class in classes]


def check_auto_class(model_class: Any, auto_class: str | type, base: type[AutoModelBase]) -> str:
    """The name of an auto class that loads a model class wherever gptrio is installed.

    Args:
        model_class: the class.
        auto_class: an auto class or its name.
        base: of the auto classes.

    Raises:
        OptionError: there is no such auto class.
        UnsupportedError: the model class is not gptrio's own: code is never written beside weights, nor loaded.
    """
    name = auto_class if isinstance(auto_class, str) else auto_class.__name__
    kinds = {kind.__name__: kind for kind in base.__subclasses__()}
    if name not in kinds:
        raise OptionError(f"{name} is not an auto class; expected one of {', '.join(kinds)}")
    config = model_class.config_class
    if kinds[name]._kind not in FAMILIES.get(config.model_type, {}) or (
        kinds[name]._class_for(config) is not model_class
    ):
        raise UnsupportedError(
            f"{model_class.__name__} cannot be saved for {name}, because gptrio neither writes code beside weights nor "
            f"runs it; where its module is imported, {name}.register({config.__name__}, {model_class.__name__}) lets "
            f"{name} load it"
        )
    return name
