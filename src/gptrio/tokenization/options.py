"""Arguments of a tokenizer call: declared and documented once, then resolved into plain strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from gptrio.errors import TokenizationError, UnknownArgumentError, nearest
from gptrio.utils.choices import ExplicitEnum, PaddingStrategy

VERY_LARGE_INTEGER = int(1e30)  # `model_max_length` of a tokenizer without a limit
LARGE_INTEGER = int(1e20)  # a `model_max_length` above this counts as no limit


class TruncationStrategy(ExplicitEnum):
    """Values of `truncation`."""

    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    LONGEST_FIRST = "longest_first"
    DO_NOT_TRUNCATE = "do_not_truncate"


Strategy = TypeVar("Strategy", PaddingStrategy, TruncationStrategy)
Warn = Callable[[str, str], None]


@dataclass(frozen=True)
class EncodeOptions:
    """Options that `__call__`, `encode`, `encode_plus`, `batch_encode_plus` and `prepare_for_model` share.

    Args:
        add_special_tokens: add the model's special tokens (for these families bos / eos, when switched on).
        padding: True or "longest", "max_length", False or "do_not_pad".
        truncation: True or "longest_first", "only_first", "only_second", False or "do_not_truncate".
        max_length: length for truncation and "max_length" padding; the tokenizer's `model_max_length` when None.
        stride: tokens that an overflowing part repeats from the part before it.
        is_split_into_words: the text comes as a list of words.
        pad_to_multiple_of: round padded lengths up to a multiple.
        padding_side: "left" or "right" for this call.
        return_tensors: "pt", "np" or "jax" instead of lists.
        return_token_type_ids: add 0 / 1 for the first / second text.
        return_attention_mask: add 1 for tokens and 0 for padding (by default if the model takes it).
        return_overflowing_tokens: also return what truncation cut off.
        return_special_tokens_mask: add 1 for special tokens.
        return_offsets_mapping: add (start, end) in characters of each token; fast tokenizers only.
        return_length: add the number of tokens.
        verbose: warn about texts that are too long for the model.
        split_special_tokens: treat special tokens in the text as ordinary text (the tokenizer's setting when None).
        add_prefix_space: for this call; Python tokenizers only.
        others: further arguments, which tokenizers in Python pass to their `prepare_for_tokenization`.
    """

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    verbose: bool = True
    split_special_tokens: bool | None = None
    add_prefix_space: bool | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EncodeOptions:
        """Build from arguments by name; those that are not options go to `others`."""
        others = {name: value for name, value in options.items() if name not in _NAMES}
        return cls(**{name: value for name, value in options.items() if name in _NAMES}, others=others)

    def resolve(self, model_max_length: int, pad_token_id: int | None, warn: Warn) -> EncodeOptions:
        """Return the options with strategies for `padding` and `truncation`, and the `max_length` they work with.

        Args:
            model_max_length: the tokenizer's limit, for when `max_length` is None.
            pad_token_id: the tokenizer's padding token.
            warn: called with a key and a message for each combination that is probably a mistake.

        Raises:
            TokenizationError: an unknown strategy, padding without a padding token, or lengths that contradict.
        """
        if self.padding_side not in (None, "left", "right"):
            raise TokenizationError(f"padding_side is {self.padding_side!r}; expected 'left' or 'right'")
        padding, truncation, max_length = self._padding(), self._truncation(warn), self.max_length
        cut = truncation != TruncationStrategy.DO_NOT_TRUNCATE
        if self.padding is True and max_length is not None and not cut:
            warn(
                "max_length ignored",
                "max_length is ignored with padding=True and no truncation; to pad to it, use padding='max_length'",
            )
        if max_length is None and (cut or padding == PaddingStrategy.MAX_LENGTH):
            if model_max_length <= LARGE_INTEGER:
                max_length = model_max_length
            else:
                warn(
                    "no max_length",
                    "the tokenizer has no model_max_length and no max_length was given: texts are "
                    "neither cut nor padded to one; give max_length=...",
                )
                truncation = TruncationStrategy.DO_NOT_TRUNCATE
                padding = PaddingStrategy.DO_NOT_PAD if padding == PaddingStrategy.MAX_LENGTH else padding
        filled = padding != PaddingStrategy.DO_NOT_PAD
        if filled and pad_token_id is None:
            raise TokenizationError(
                "cannot pad: the tokenizer has no pad_token; set one, e.g. tokenizer.pad_token = tokenizer.eos_token"
            )
        if cut and filled and max_length is not None and max_length % (self.pad_to_multiple_of or 1):
            raise TokenizationError(
                f"max_length {max_length} of the truncation is not a multiple of pad_to_multiple_of "
                f"{self.pad_to_multiple_of}; pass a multiple"
            )
        return replace(self, padding=padding, truncation=truncation, max_length=max_length)

    def _padding(self) -> PaddingStrategy:
        if isinstance(self.padding, bool):
            return PaddingStrategy.LONGEST if self.padding else PaddingStrategy.DO_NOT_PAD
        return _choose(PaddingStrategy, self.padding, "padding")

    def _truncation(self, warn: Warn) -> TruncationStrategy:
        if self.truncation is None and self.max_length is not None and self.padding is False:
            warn(
                "truncation implied",
                "max_length was given without truncation: cutting with 'longest_first'; pass truncation=True if so",
            )
            return TruncationStrategy.LONGEST_FIRST
        if self.truncation is None or isinstance(self.truncation, bool):
            return TruncationStrategy.LONGEST_FIRST if self.truncation else TruncationStrategy.DO_NOT_TRUNCATE
        return _choose(TruncationStrategy, self.truncation, "truncation")


_NAMES = tuple(item.name for item in fields(EncodeOptions) if item.name != "others")
CALL_ORDER = _NAMES[: _NAMES.index("verbose") + 1]  # of arguments without a name, in `__call__` and `encode_plus`
ENCODE_ORDER = ("add_special_tokens", "padding", "truncation", "max_length", "stride", "padding_side", "return_tensors")
PREPARE_ORDER = (*(name for name in CALL_ORDER if name != "is_split_into_words"), "prepend_batch_axis")


def by_name(order: Sequence[str], values: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by name, from positional and named arguments.

    Raises:
        UnknownArgumentError: too many positional arguments, or one given twice.
    """
    named = dict(zip(order, values, strict=False))
    twice = sorted(named.keys() & options.keys())
    if twice or len(values) > len(order):
        what = f"{twice[0]!r} was given twice" if twice else f"at most {len(order)} options can be positional"
        raise UnknownArgumentError(f"{what}; give them by name")
    return {**named, **options}


def unknown_arguments(names: Iterable[str]) -> str:
    """Return a message that names unknown arguments and the nearest known ones."""
    hints = {name: nearest(name, _NAMES) for name in names}
    named = [f"{name!r} ({hint})" if hint else repr(name) for name, hint in hints.items()]
    return f"the tokenizer does not know {', '.join(named)}"


def _choose(strategies: type[Strategy], value: object, name: str) -> Strategy:
    try:
        return strategies(value)
    except ValueError:
        accepted = ", ".join(repr(strategy.value) for strategy in strategies)
        raise TokenizationError(f"{name} is {value!r}; expected True, False or one of {accepted}") from None
