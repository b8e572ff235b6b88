"""The call of every tokenizer class: one text, pairs, batches and lists of words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gptrio.errors import TextTypeError, TokenizationError, warn
from gptrio.tokenization.batch_encoding import BatchEncoding
from gptrio.tokenization.options import CALL_ORDER, ENCODE_ORDER, EncodeOptions, by_name
from gptrio.tokenization.special_tokens import SpecialTokensMixin

Text = str | Sequence[str] | Sequence[int]
Sample = tuple[Text, Text | None]


class EncodingMixin(SpecialTokensMixin):
    """The methods that encode; a subclass implements `_encode_one` and `_encode_many`."""

    model_input_names: Sequence[str] = ("input_ids", "token_type_ids", "attention_mask")
    model_max_length: int
    _warned: set[str]

    @abstractmethod
    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens encoding a text (or a pair) adds."""

    @abstractmethod
    def _encode_one(self, sample: Sample, options: EncodeOptions) -> BatchEncoding:
        """Encode one text or pair, by resolved options; lists without a batch axis, tensors with one."""

    @abstractmethod
    def _encode_many(self, samples: list[Sample], options: EncodeOptions) -> BatchEncoding:
        """Encode several texts or pairs, by resolved options."""

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        *args: Any,
        **options: Any,
    ) -> BatchEncoding:
        """Encode a text, a batch of texts, or (with `is_split_into_words`) lists of words.

        Args:
            text: string, list of strings, or lists of words.
            text_pair: second text of a pair, in the same form.
            text_target, text_pair_target: texts whose ids become the entry `labels`.
            *args, **options: see `EncodeOptions`, positional in its order, or by name.

        Returns:
            Lists (or tensors) by name: `input_ids`, `attention_mask` and the other entries that the options name.

        Raises:
            TokenizationError: input of another form, or options that do not fit.
        """
        options = by_name(CALL_ORDER, args, options)
        if text is None and text_target is None:
            raise TokenizationError("nothing to encode: give text or text_target")
        if text is None:
            return self._call_target(text_target, text_pair_target, options)
        encodings = self._call_one(text, text_pair, options)
        if text_target is not None:
            encodings["labels"] = self._call_target(text_target, text_pair_target, options)["input_ids"]
        return encodings

    @contextmanager
    def as_target_tokenizer(self) -> Iterator[None]:
        """Encode targets inside this block; the older form of `text_target`."""
        warn("as_target_tokenizer is deprecated: pass the targets as text_target, in a call of the tokenizer")
        with self._target_mode():
            yield

    @contextmanager
    def _target_mode(self) -> Iterator[None]:
        self._switch_to_target_mode()
        try:
            yield
        finally:
            self._switch_to_input_mode()

    def _switch_to_target_mode(self) -> None:
        """Prepare for targets; for subclasses that treat them otherwise than inputs."""

    def _switch_to_input_mode(self) -> None:
        """Prepare for inputs again, see `_switch_to_target_mode`."""

    def _call_target(self, text: Any, text_pair: Any, options: dict[str, Any]) -> BatchEncoding:
        with self._target_mode():
            return self._call_one(text, text_pair, options)

    def _call_one(self, text: Any, text_pair: Any, options: dict[str, Any]) -> BatchEncoding:
        split = bool(options.get("is_split_into_words"))
        for given in (text,) if text_pair is None else (text, text_pair):
            if not _is_text(given):
                raise TextTypeError(
                    f"text is {short(given)}; expected a string, a list of strings, or with is_split_into_words=True "
                    "lists of words"
                )
        is_batch = isinstance(text, (list, tuple)) and (not split or bool(text and isinstance(text[0], (list, tuple))))
        if not is_batch:
            return self.encode_plus(text, text_pair, **options)
        if text_pair is None:
            return self.batch_encode_plus(text, **options)
        if isinstance(text_pair, str) or len(text) != len(text_pair):
            count = "one string" if isinstance(text_pair, str) else f"{len(text_pair)} texts"
            raise TokenizationError(f"text is a batch of {len(text)} and text_pair {count}; expected as many of both")
        return self.batch_encode_plus(list(zip(text, text_pair, strict=True)), **options)

    def encode(self, text: Text, text_pair: Text | None = None, *args: Any, **options: Any) -> Any:
        """Return the ids of one text or pair (`args`: in `ENCODE_ORDER`, `options`: see `EncodeOptions`)."""
        return self.encode_plus(text, text_pair, **by_name(ENCODE_ORDER, args, options))["input_ids"]

    def encode_plus(self, text: Text, text_pair: Text | None = None, *args: Any, **options: Any) -> BatchEncoding:
        """Encode one text or pair (`options`: see `EncodeOptions`)."""
        resolved = self._resolve(EncodeOptions.of(by_name(CALL_ORDER, args, options)))
        return self._encode_one((text, text_pair), resolved)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], *args: Any, **options: Any) -> BatchEncoding:
        """Encode a batch of texts, or of pairs as tuples (`options`: see `EncodeOptions`)."""
        if not isinstance(batch_text_or_text_pairs, (list, tuple)) or not batch_text_or_text_pairs:
            raise TextTypeError(f"the batch is {short(batch_text_or_text_pairs)}; expected a list of at least one text")
        resolved = self._resolve(EncodeOptions.of(by_name(CALL_ORDER, args, options)))
        samples = [as_pair(item, resolved.is_split_into_words) for item in batch_text_or_text_pairs]
        return self._encode_many(samples, resolved)

    def _resolve(self, options: EncodeOptions) -> EncodeOptions:
        pad_id = self.pad_token_id
        return options.resolve(self.model_max_length, pad_id, self._warn_once if options.verbose else lambda *_: None)

    def _is_returned(self, entry: str, asked: bool | None) -> bool:
        """Whether a call returns an entry: as `asked`, or if that is None, whether the model uses it."""
        return entry in self.model_input_names if asked is None else asked

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warn(message)

    def _warn_if_too_long(self, length: int, options: EncodeOptions) -> None:
        if options.verbose and options.max_length is None and length > self.model_max_length > 0:
            self._warn_once(
                "too long",
                f"the text has {length} tokens, the model takes {self.model_max_length}; cut it with truncation=True",
            )


def as_pair(item: Any, is_split_into_words: bool) -> Sample:
    """Return the text, or the pair of texts, of an item of a batch.

    Raises:
        TokenizationError: a tuple or list of other than two texts.
    """
    if not isinstance(item, (list, tuple)) or (item and isinstance(item[0], int)):
        return item, None
    if is_split_into_words and not (item and isinstance(item[0], (list, tuple))):
        return item, None
    if len(item) != 2:
        raise TextTypeError(
            f"{short(item)} in the batch is neither a text nor a pair; for lists of words set is_split_into_words=True"
        )
    return item[0], item[1]


def _is_text(value: Any) -> bool:
    """Whether the first elements look like a text, a batch of texts, or (batches of) lists of words."""
    for _ in range(3):
        if isinstance(value, str):
            return True
        if not isinstance(value, (list, tuple)):
            return False
        if not value:
            return True
        value = value[0]
    return False


def short(value: Any) -> str:
    """Return a value as text for an error, cut to a line."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
