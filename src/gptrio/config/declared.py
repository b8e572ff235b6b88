"""The fields that all families share, how they are set under each of their names, and how they become a dictionary."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, overload

from gptrio.config import labels
from gptrio.config.fields import Rule, choice, default_of, flag, token_id
from gptrio.config.generation_keys import GenerationKeys
from gptrio.errors import ConfigError

if TYPE_CHECKING:
    import torch

Config = TypeVar("Config", bound="DeclaredConfig")

ATTENTION_BACKENDS = ("eager", "sdpa", "flash_attention_2")
_BACKEND = Rule(lambda value: value in (None, *ATTENTION_BACKENDS), f"one of {', '.join(ATTENTION_BACKENDS)} or None")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
FORMAT_VERSION = "4.56.2"  # the Transformers release whose config.json this package writes
_DTYPES = {name: name for name in ("float32", "float16", "bfloat16", "float64")}
_DTYPES |= {"float": "float32", "half": "float16", "double": "float64"}
_SPELLINGS = {"torch_dtype": "dtype", "name_or_path": "_name_or_path", "attn_implementation": "_attn_implementation"}
_NOT_IN_FILES = ("_attn_implementation", "_commit_hash", "_dtype_name")
_ALWAYS_IN_FILES = ("model_type", "transformers_version")


@dataclass(init=False, eq=False, repr=False, kw_only=True)
class DeclaredConfig(GenerationKeys):
    """Fields, aliases and dictionaries of a configuration; documented at `PretrainedConfig`, which adds files."""

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[Mapping[str, str]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    has_no_defaults_at_init: ClassVar[bool] = False  # of a subclass whose constructor has arguments without default
    positional_fields: ClassVar[tuple[str, ...]] = ()
    __signature__: ClassVar[inspect.Signature]

    return_dict: bool = flag(True)
    output_hidden_states: bool = flag(False)
    output_attentions: bool = flag(False)
    torchscript: bool = flag(False)
    pruned_heads: dict[int, list[int]] = field(default_factory=dict)
    tie_word_embeddings: bool = flag(True)
    chunk_size_feed_forward: int = 0
    is_encoder_decoder: bool = flag(False)
    is_decoder: bool = flag(False)
    cross_attention_hidden_size: int | None = None
    add_cross_attention: bool = flag(False)
    tie_encoder_decoder: bool = flag(False)
    architectures: list[str] | None = None
    finetuning_task: str | None = None
    id2label: dict[int, str] = field(default_factory=dict)
    label2id: dict[str, int] = field(default_factory=dict)
    task_specific_params: dict[str, Any] | None = None
    problem_type: str | None = choice(None, PROBLEM_TYPES, optional=True)
    tokenizer_class: str | None = None
    prefix: str | None = None
    bos_token_id: int | None = token_id(None)
    pad_token_id: int | None = token_id(None)
    eos_token_id: int | Sequence[int] | None = token_id(None)
    sep_token_id: int | None = token_id(None)
    decoder_start_token_id: int | None = token_id(None)

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        """Set every field from the arguments or its default, keep unknown keywords, and validate."""
        given = labels.reconcile(self._bind(args, kwargs))
        self._dtype_name: str | None = None
        self._attn_implementation: str | None = given.pop("_attn_implementation", None)
        self._name_or_path = str(given.pop("_name_or_path", None) or "")
        self._commit_hash: str | None = given.pop("_commit_hash", None)  # of the hub repository it was read from
        self.transformers_version: str | None = None
        for row in fields(self):
            setattr(self, row.name, given.pop(row.name) if row.name in given else default_of(row))
        for name, value in given.items():
            if self._is_reserved(name):
                raise ConfigError(f"{type(self).__name__}: no key can be named {name!r}, which the class uses itself")
            setattr(self, name, value)
        self.validate()

    def validate(self) -> None:
        """Check every field against its rule, and fields against each other; raises ConfigError."""
        for name, rule in self._rules().items():
            rule.check(type(self).__name__, name, getattr(self, name))
        _BACKEND.check(type(self).__name__, "attn_implementation", self._attn_implementation)

    @classmethod
    @functools.cache
    def _rules(cls) -> dict[str, Rule]:
        """Rules of the fields, by name."""
        return {row.name: row.metadata["rule"] for row in fields(cls) if "rule" in row.metadata}

    # Names and aliases

    def __getattr__(self, name: str) -> Any:
        """Look an alias up under its canonical name (called only for names that are not set)."""
        canonical = type(self).attribute_map.get(name)
        if canonical is None:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        return getattr(self, canonical)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field under its canonical name; `id2label` brings `label2id` along."""
        name = type(self).attribute_map.get(name, name)
        if name in ("id2label", "pruned_heads"):
            value = labels.integer_keys(name, value or {})
        rule = self._rules().get(name)
        if rule is not None:
            value = rule.convert(value)
            rule.check(type(self).__name__, name, value)
        super().__setattr__(name, value)
        if name == "id2label":
            super().__setattr__("label2id", labels.inverse(value))

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the weights as a `torch.dtype` (reading it loads torch; `dtype_name` does not)."""
        if self._dtype_name is None:
            return None
        import torch

        dtype: torch.dtype = getattr(torch, self._dtype_name)
        return dtype

    @dtype.setter
    def dtype(self, value: str | torch.dtype | None) -> None:
        name = None if value is None else _DTYPES.get(str(value).removeprefix("torch."))
        if value is not None and name is None:
            accepted = ", ".join(_DTYPES)
            raise ConfigError(f"{type(self).__name__}: dtype={value!r} is not possible; expected one of {accepted}")
        self._dtype_name = name

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """Older name of `dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: str | torch.dtype | None) -> None:
        self.dtype = value

    @property
    def dtype_name(self) -> str | None:
        """Type of the weights as a name such as "bfloat16"."""
        return self._dtype_name

    @property
    def num_labels(self) -> int:
        """Number of classes, the length of `id2label`; setting it names them anew if it differs."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        if value != self.num_labels:
            self.id2label = labels.names(value)

    @property
    def name_or_path(self) -> str:
        """Where the configuration came from."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: str | os.PathLike[str]) -> None:
        self._name_or_path = os.fspath(value)

    @property
    def use_return_dict(self) -> bool:
        """Whether forward returns a `ModelOutput`: asked for, and not tracing."""
        return self.return_dict and not self.torchscript

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> DeclaredConfig:
        """Return the configuration of the text model: this one."""
        return self

    # Dictionaries

    @overload
    @classmethod
    def from_dict(
        cls: type[Config], config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[False] = ..., **kwargs: Any
    ) -> Config: ...
    @overload
    @classmethod
    def from_dict(
        cls: type[Config], config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[Config, dict[str, Any]]: ...
    @classmethod
    def from_dict(
        cls: type[Config], config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Config | tuple[Config, dict[str, Any]]:
        """Build a configuration from a dictionary, overridden by keyword arguments.

        Args:
            config_dict: names (or aliases) and values, as in `config.json`.
            return_unused_kwargs: also return the keywords that are no configuration attributes.
            kwargs: overrides; those that name no attribute are ignored or, if asked for, returned.
        """
        values = cls._canonical(config_dict)
        values.pop("_attn_implementation", None)  # chosen by the caller, never by a file
        known = {row.name for row in fields(cls)} | set(values) | set(_SPELLINGS.values())
        overrides = cls._canonical(kwargs)
        known |= {name for name in overrides if isinstance(getattr(cls, name, None), property)}
        used = {name: value for name, value in overrides.items() if name in known}
        config = cls(**cls._override(values, used))
        own = {name for name in overrides.keys() - known if config._is_attribute(name)}  # of a subclass's own
        for name in own:
            setattr(config, name, overrides[name])
        if not return_unused_kwargs:
            return config
        known = known - {"dtype"} | own
        return config, {name: value for name, value in overrides.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """Return every attribute, with plain values that JSON can hold."""
        attributes = {name: _plain(value) for name, value in vars(self).items() if name not in _NOT_IN_FILES}
        return attributes | {
            "dtype": self._dtype_name,
            "model_type": self.model_type,
            "transformers_version": FORMAT_VERSION,
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds: the family's fields, and of the common ones those that were changed."""
        common = DeclaredConfig().to_dict()
        family = common if self.has_no_defaults_at_init else type(self)().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name != "_name_or_path"
            and (name not in common or name in _ALWAYS_IN_FILES or not value == common[name] == family.get(name))
        }

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set attributes from a dictionary, then validate."""
        for name, value in config_dict.items():
            setattr(self, name, value)
        self.validate()

    def __eq__(self, other: object) -> bool:
        """Equal when of one class and of equal values, wherever they came from."""
        if not isinstance(other, DeclaredConfig):
            return NotImplemented
        origin = {"_name_or_path": "", "transformers_version": ""}
        mine, theirs = self.to_dict() | origin, other.to_dict() | origin
        return type(self) is type(other) and mine == theirs

    def __iter__(self) -> Iterator[str]:
        """Names of the attributes."""
        return iter(vars(self))

    # Arguments

    def _is_attribute(self, name: str) -> bool:
        return hasattr(self, name) and not self._is_reserved(name)

    @classmethod
    def _is_reserved(cls, name: str) -> bool:
        attribute = getattr(cls, name, None)
        if isinstance(attribute, property):
            return attribute.fset is None
        return callable(attribute) or hasattr(DeclaredConfig, name) or name.startswith("__") or name == "_dtype_name"

    @classmethod
    def _override(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        return labels.override(values, overrides)

    @classmethod
    def _bind(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) > len(cls.positional_fields):
            limit = len(cls.positional_fields)
            raise TypeError(f"{cls.__name__} takes at most {limit} arguments by position, got {len(args)}")
        by_position = dict(zip(cls.positional_fields, args, strict=False))
        given = cls._canonical(kwargs)
        if twice := by_position.keys() & given.keys():
            raise TypeError(f"{cls.__name__} got {sorted(twice)} both by position and by keyword")
        return by_position | given

    @classmethod
    def _canonical(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace aliases by the names of their fields; refuse two spellings of one field that disagree."""
        renamed: dict[str, Any] = {}
        for key, value in values.items():
            name = cls.attribute_map.get(key) or _SPELLINGS.get(key, key)
            if key == "torch_dtype" and values.get("dtype") is not None:
                continue  # the newer name wins
            if renamed.get(name) is not None and value is not None and renamed[name] != value:
                both = f"{name}={renamed[name]!r} and {key}={value!r}"
                raise ConfigError(f"{cls.__name__}: {both} disagree; give one of them")
            if value is not None or name not in renamed:
                renamed[name] = value
        model_type = renamed.pop("model_type", None) or cls.model_type
        if cls.model_type and model_type not in [getattr(base, "model_type", "") for base in cls.__mro__]:
            raise ConfigError(
                f"{cls.__name__} is for model_type={cls.model_type!r}, but the configuration says {model_type!r}; "
                "use that family's class or AutoConfig"
            )
        return renamed


def _plain(value: Any) -> Any:
    """Return a copy of `value` made of what JSON can hold, as far as its types are known."""
    if hasattr(value, "to_dict"):  # nested configurations
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if type(value).__module__ == "torch":  # torch.dtype
        return str(value).removeprefix("torch.")
    return copy.deepcopy(value)


def config_class(cls: type[Config]) -> type[Config]:
    """Make a configuration class a dataclass over the base's constructor, and show its fields in `help`.

    Fields of a family may be given by position, in the order of their declaration; those of the base may not.
    """
    cls = dataclass(init=False, eq=False, repr=False)(cls)
    rows = {row.name: row for row in fields(cls)}
    own = [name for name in inspect.get_annotations(cls) if name in rows]
    cls.positional_fields = tuple(dict.fromkeys([*cls.positional_fields, *own]))
    parameters = []
    for name in dict.fromkeys([*cls.positional_fields, *rows]):
        positional = name in cls.positional_fields
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default_of(rows[name])))
    cls.__signature__ = inspect.Signature([*parameters, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
    return cls
