"""Result objects of the models: attribute, mapping and tuple access over the fields that are not None.

Names and field order are those of Transformers 4.56. Shapes: `B` batch, `T` query length, `S` key length, `H` heads,
`D` head width, `C` hidden size, `V` vocabulary, `L` layers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from gptrio.errors import InputError

if TYPE_CHECKING:
    import torch

    from gptrio.cache import Cache


class ModelOutput(OrderedDict[str, Any]):
    """An ordered mapping of a dataclass's fields that are not None, which is also readable as a tuple.

    `out.logits`, `out["logits"]`, `out[0]`, `out[:2]` and `out.to_tuple()` all work; None fields are absent from the
    mapping and the tuple but readable as attributes. Keys cannot be deleted.

    A mapping, or pairs of name and value, as the only argument sets the fields: `type(out)(dict(out))` equals `out`.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # every subclass is a dataclass
    when_subclassed: ClassVar[Callable[[type[ModelOutput]], None] | None] = None  # set once torch is in use

    def __init_subclass__(cls) -> None:
        """Register the class with torch as a pytree, if torch is in use."""
        if ModelOutput.when_subclassed is not None:
            ModelOutput.when_subclassed(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build a mapping without fields; a dataclass has its own constructor.

        Raises:
            TypeError: the class is none.
        """
        if type(self) is not ModelOutput and not is_dataclass(self):
            raise TypeError(f"{type(self).__name__} is not a dataclass; results are: decorate it with @dataclass")
        super().__init__(*args, **kwargs)

    def __post_init__(self) -> None:
        """Copy the fields that are set into the mapping."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        first = next(iter(values))
        given = _as_pairs(values[first]) if _is_only(first, values) else None
        if given is not None:
            vars(self).update({first: None, **given})
            values = given
        for name, value in values.items():
            if value is not None:
                super().__setitem__(name, value)

    def __getitem__(self, key: Any) -> Any:
        """Value of a field by name, or the item / slice of the tuple of set fields."""
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field, keeping attribute and mapping equal."""
        if value is not None and name in self:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __delitem__(self, key: Any) -> None:
        raise TypeError(f"{type(self).__name__} does not support deleting {key!r}")

    def pop(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: fields of a result cannot be removed."""
        raise TypeError(f"{type(self).__name__} does not support pop; read the field instead")

    def setdefault(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: every field has a value, which may be None."""
        raise TypeError(f"{type(self).__name__} does not support setdefault; assign the field instead")

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: fields are assigned one by one."""
        raise TypeError(f"{type(self).__name__} does not support update; assign the fields instead")

    def __reduce__(self) -> tuple[Any, ...]:
        fields = tuple(getattr(self, name) for name in self.__dataclass_fields__)
        return (type(self), fields, *super().__reduce__()[2:])

    def __iter__(self) -> Iterator[str]:
        """Names of the set fields."""
        return super().__iter__()

    def to_tuple(self) -> tuple[Any, ...]:
        """All set fields in order."""
        return tuple(super(ModelOutput, self).__getitem__(key) for key in self)


def _is_only(first: str, values: Mapping[str, Any]) -> bool:
    """Whether the first field may contain all fields: it is not a tensor, and the other fields are not set."""
    value = values[first]
    if value is None or hasattr(value, "shape"):
        return False
    return all(other is None for name, other in values.items() if name != first)


def _as_pairs(value: Any) -> dict[str, Any] | None:
    """Return fields by name from a mapping or from pairs of name and value; None if the value is a field itself.

    Raises:
        InputError: not all items are pairs.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None
    items = iter(value)
    first = next(items, None)
    if not _is_pair(first):
        return None
    fields = [first, *items]
    wrong = [item for item in fields if not _is_pair(item)]
    if wrong:
        raise InputError(f"{wrong[0]!r:.80} is not a pair of a field's name and its value; pass only such pairs")
    return dict(fields)


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], str)


@dataclass
class BaseModelOutput(ModelOutput):
    """As BaseModelOutputWithPast, for models of one's own that have no cache."""

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """Result of a backbone.

    last_hidden_state (B, T, C); past_key_values: cache; hidden_states: L + 1 tensors (B, T, C); attentions: L tensors
    (B, H, T, S), after softmax.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPastAndCrossAttentions(BaseModelOutputWithPast):
    """As BaseModelOutputWithPast; cross_attentions: L tensors (B, H, T, S of the encoder)."""

    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class CausalLMOutput(ModelOutput):
    """As CausalLMOutputWithPast, for models of one's own that have no cache."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """Result of a language model: loss (); logits (B, T, V)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithCrossAttentions(CausalLMOutputWithPast):
    """As CausalLMOutputWithPast; cross_attentions: L tensors (B, H, T, S of the encoder)."""

    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """As SequenceClassifierOutputWithPast, for models of one's own that have no cache."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """Result of a sequence classifier: loss (); logits (B, num_labels)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """Result of a token classifier: loss (); logits (B, T, num_labels)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Result of a span head: loss (); start_logits and end_logits (B, T)."""

    loss: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class GPT2DoubleHeadsModelOutput(ModelOutput):
    """Result of the double-heads model: loss, mc_loss (); logits (B, choices, T, V); mc_logits (B, choices)."""

    loss: torch.Tensor | None = None
    mc_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mc_logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
