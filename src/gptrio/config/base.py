"""The configuration class that all families derive from: its fields, their names and aliases, and their validation."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from gptrio.config import labels
from gptrio.config.fields import Rule, choice, default_of, flag, ruled, token_id
from gptrio.config.serialization import SerializableConfig
from gptrio.errors import ConfigError

if TYPE_CHECKING:
    import torch

Config = TypeVar("Config", bound="PretrainedConfig")

_SWITCHES = dict.fromkeys(("true", "1", "y", "yes"), True) | dict.fromkeys(("false", "0", "n", "no"), False)
_BACKEND = Rule(lambda value: value is None or isinstance(value, str), "the name of an attention back end or None")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
_DTYPES = {name: name for name in ("float32", "float16", "bfloat16", "float64")}
_DTYPES |= {"float": "float32", "half": "float16", "double": "float64"}
_ALWAYS_IN_FILES = ("model_type", "transformers_version")


def _is_names(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


@dataclass(init=False, eq=False, repr=False, kw_only=True)
class PretrainedConfig(SerializableConfig):
    """The description of a model in its checkpoint; the families add their own fields.

    Every field is also an attribute under each of its aliases (`attribute_map`). Other keys become attributes and are
    written back. Values are checked at construction and by `validate`.

    Args:
        return_dict: forward returns a `ModelOutput` rather than a tuple.
        output_hidden_states, output_attentions: forward returns them unless the call sets it otherwise.
        torchscript: for tracing: forward returns tuples.
        dtype: type of the weights, as a name ("bfloat16") or `torch.dtype`; `torch_dtype` is its older name.
        pruned_heads: {layer: [heads]} removed from attention.
        tie_word_embeddings: output and input embeddings are one tensor.
        is_decoder, is_encoder_decoder, add_cross_attention, cross_attention_hidden_size: the use with an encoder.
        architectures: class names that the weights were saved from.
        num_labels, id2label, label2id: classes of a classification head; each may be given alone.
        problem_type: "regression", "single_label_classification" or "multi_label_classification".
        bos_token_id, pad_token_id, eos_token_id, sep_token_id, decoder_start_token_id: special tokens.
        attn_implementation: "eager", "sdpa", "flash_attention_2" or a name in `AttentionInterface`, which models
            check when they are built; not saved.
        name_or_path: where the configuration came from; not saved.
        tokenizer_class, prefix, finetuning_task, task_specific_params, chunk_size_feed_forward, tie_encoder_decoder,
            tf_legacy_loss, use_bfloat16: kept because some checkpoints have them.

    Raises:
        ConfigError: a value is impossible; the message names field, value and what is accepted.
    """

    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {}  # configurations inside this one: none
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    has_no_defaults_at_init: ClassVar[bool] = False  # True for a constructor with required arguments
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
    architectures: list[str] | None = ruled(None, _is_names, "a list of names of classes", optional=True)
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
    tf_legacy_loss: bool = flag(False)
    use_bfloat16: bool = flag(False)

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
        if name == "_attn_implementation" and isinstance(value, dict):
            value = value.get("", getattr(self, name, None))  # the other keys are parts of models of other families
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
        """Number of classes, the length of `id2label`; setting another number gives them default names."""
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
        """Whether forward returns a `ModelOutput`: `return_dict`, unless for tracing."""
        return self.return_dict and not self.torchscript

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """Return the configuration of the text model: this one."""
        return self

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds: the family's fields, and of the common ones those that were changed."""
        common = PretrainedConfig().to_dict()
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

    def update_from_string(self, update_str: str) -> None:
        """Set fields from text such as "n_embd=10,resid_pdrop=0.2,scale_attn_weights=false", in the types they have.

        Raises:
            ConfigError: the configuration lacks a name, or a text is not a possible value of the field.
        """
        values = {}
        for pair in update_str.split(","):
            name, _, text = pair.partition("=")
            if not hasattr(self, name):
                raise ConfigError(f"{type(self).__name__} has no field {name!r}; expected name=value pairs with commas")
            values[name] = _value_like(getattr(self, name), name, text)
        self.update(values)

    def __eq__(self, other: object) -> bool:
        """Whether class and values are equal; the origin does not matter."""
        if not isinstance(other, PretrainedConfig):
            return NotImplemented
        origin = {"_name_or_path": "", "transformers_version": ""}
        mine, theirs = self.to_dict() | origin, other.to_dict() | origin
        return type(self) is type(other) and mine == theirs

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    # Arguments

    def _is_attribute(self, name: str) -> bool:
        return hasattr(self, name) and not self._is_reserved(name)

    @classmethod
    def _is_reserved(cls, name: str) -> bool:
        attribute = getattr(cls, name, None)
        if isinstance(attribute, property):
            return attribute.fset is None
        return callable(attribute) or hasattr(PretrainedConfig, name) or name.startswith("__") or name == "_dtype_name"

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


def _value_like(old: object, name: str, text: str) -> bool | int | float | str:
    """Read `text` as a value of the type that `old` has."""
    if isinstance(old, bool):
        if text.lower() not in _SWITCHES:
            raise ConfigError(f"{name}={text!r} is not possible; expected one of {', '.join(_SWITCHES)}")
        return _SWITCHES[text.lower()]
    for kind in (int, float, str):
        if isinstance(old, kind):
            try:
                return kind(text)
            except ValueError as error:
                raise ConfigError(f"{name}={text!r} is not possible; expected {kind.__name__}") from error
    raise ConfigError(f"{name} is a {type(old).__name__}, which text cannot set; assign the field itself")


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
