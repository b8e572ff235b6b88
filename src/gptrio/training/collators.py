"""Collators: functions that make a batch of a list of examples. Names and values are those of Transformers 4.56.

Each returns torch tensors ("pt") or numpy arrays ("np"); torch is imported for the former only. Those for language
models are in `gptrio.training.language_collators`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptrio.errors import InputError, UnsupportedError, import_optional
from gptrio.tokenization.tensors import kind_of, to_plain
from gptrio.utils.choices import PaddingStrategy

if TYPE_CHECKING:
    from gptrio.tokenization.base import PreTrainedTokenizerBase

IGNORE = -100

Batch = Any  # a dict or a BatchEncoding of tensors by name
DataCollator = Callable[[list[Any]], Batch]


def pad_without_fast_tokenizer_warning(tokenizer: Any, *pad_args: Any, **pad_kwargs: Any) -> Any:
    """Call `tokenizer.pad`; a tokenizer of Transformers does not say that its `__call__` would be faster.

    Args:
        tokenizer: anything with `pad`.
        *pad_args, **pad_kwargs: arguments of `pad`.
    """
    warned = getattr(tokenizer, "deprecation_warnings", None)
    if warned is None:
        return tokenizer.pad(*pad_args, **pad_kwargs)
    name = "Asking-to-pad-a-fast-tokenizer"
    before = warned.get(name, False)
    warned[name] = True
    try:
        return tokenizer.pad(*pad_args, **pad_kwargs)
    finally:
        warned[name] = before


def default_data_collator(features: list[Any], return_tensors: str = "pt") -> dict[str, Any]:
    """Stack the entries of examples that have one length; `label` or `label_ids` become `labels`.

    Args:
        features: mappings, or objects with attributes; the first shows which entries there are. Texts and None are
            left out.
        return_tensors: "pt" or "np".

    Raises:
        InputError: an entry has different lengths, or an example lacks it.
    """
    kind = known_kind(return_tensors)
    rows = [feature if isinstance(feature, Mapping) else vars(feature) for feature in features]
    first, batch = rows[0], dict[str, Any]()
    label = next((name for name in ("label", "label_ids") if first.get(name) is not None), None)
    if label is not None:
        batch["labels"] = _stacked(rows, label, kind, is_label=True)
    for name, value in first.items():
        if name not in ("label", "label_ids") and value is not None and not isinstance(value, str):
            batch[name] = _stacked(rows, name, kind)
    return batch


def _stacked(rows: list[Any], name: str, kind: str, is_label: bool = False) -> Any:
    """Entry `name` of every row as one tensor; labels are int64 or float32."""
    library = torch_or_numpy(kind)
    try:
        values = [row[name] for row in rows]
        first = values[0]
        is_single = is_label and getattr(first, "ndim", None) in (0, None) and not isinstance(first, (list, tuple))
        if is_single or (is_label and kind_of(first) != kind):
            one = to_plain(first) if is_single else to_plain(first)[0]
            dtype = library.int64 if isinstance(one, int) else library.float32
            return tensor_of([to_plain(value) for value in values], kind, dtype)
        if kind_of(first) == kind:
            return library.stack(values)
        if kind_of(first) == "np":
            return library.from_numpy(np.stack(values))
        return tensor_of(values, kind)
    except KeyError as error:
        raise InputError(f"an example of the batch has no entry {name!r}, which the first has") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"cannot make a batch of {name!r}: {error}. Examples of different lengths need a collator that pads, such "
            "as DataCollatorWithPadding"
        ) from error


def tensor_of(values: Any, kind: str, dtype: Any = None) -> Any:
    """Make a tensor or an array of nested lists."""
    return torch_or_numpy(kind).tensor(values, dtype=dtype) if kind == "pt" else np.array(values, dtype=dtype)


def torch_or_numpy(kind: str) -> Any:
    """Return the module whose tensors are of a kind, "pt" or "np"."""
    return import_optional("torch", "return_tensors='pt' needs torch: pip install torch") if kind == "pt" else np


def known_kind(return_tensors: Any) -> str:
    """Return "pt" or "np", also of an enumeration's member; raises UnsupportedError for other kinds."""
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in ("pt", "np"):
        raise UnsupportedError(f"return_tensors is {kind!r}; expected 'pt' or 'np'")
    return str(kind)


class DataCollatorMixin:
    """Calls `torch_call` or `numpy_call` by the kind of tensors that is asked for."""

    return_tensors: str = "pt"

    def __call__(self, features: list[Any], return_tensors: str | None = None) -> Batch:
        """Make a batch.

        Args:
            features: the examples.
            return_tensors: "pt" or "np"; the collator's own setting by default.
        """
        kind = known_kind(self.return_tensors if return_tensors is None else return_tensors)
        return self.torch_call(features) if kind == "pt" else self.numpy_call(features)

    def torch_call(self, features: list[Any]) -> Batch:
        """Make a batch of torch tensors."""
        return self._collate(features, "pt")

    def numpy_call(self, features: list[Any]) -> Batch:
        """Make a batch of numpy arrays."""
        return self._collate(features, "np")

    def _collate(self, features: list[Any], kind: str) -> Batch:
        raise NotImplementedError(f"{type(self).__name__} has no method _collate, which makes the batch")


@dataclass
class DefaultDataCollator(DataCollatorMixin):
    """`default_data_collator` as an object.

    Args:
        return_tensors: "pt" or "np".
    """

    return_tensors: str = "pt"

    def _collate(self, features: list[Any], kind: str) -> Batch:
        return default_data_collator(features, kind)


class _Padding:
    """What the collators that pad by a tokenizer have in common."""

    tokenizer: PreTrainedTokenizerBase
    padding: bool | str | PaddingStrategy
    max_length: int | None
    pad_to_multiple_of: int | None

    def _pad(self, features: list[Any], kind: str) -> Batch:
        return pad_without_fast_tokenizer_warning(
            self.tokenizer,
            features,
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors=kind,
        )

    def _pad_labels(self, labels: list[Any], length: int, fill: int, kind: str) -> Any:
        """Labels of each token as one tensor (B, length), padded on the tokenizer's side."""
        is_right = self.tokenizer.padding_side == "right"
        rows = [to_plain(row) for row in labels]
        extra = [[fill] * (length - len(row)) for row in rows]
        padded = [row + more if is_right else more + row for row, more in zip(rows, extra, strict=True)]
        return tensor_of(padded, kind, torch_or_numpy(kind).int64)


@dataclass
class DataCollatorWithPadding(_Padding):
    """Pads the inputs; `label` or `label_ids` become `labels`.

    Args:
        tokenizer, padding, max_length, pad_to_multiple_of: how to pad, as `tokenizer.pad` takes them.
        return_tensors: "pt" or "np".
    """

    tokenizer: PreTrainedTokenizerBase
    padding: bool | str | PaddingStrategy = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: list[dict[str, Any]]) -> Batch:
        """Make a batch of encodings."""
        batch = self._pad(features, self.return_tensors)
        for name in ("label", "label_ids"):
            if name in batch:
                batch["labels"] = batch.pop(name)
        return batch


def _split_labels(features: list[Any]) -> tuple[list[Any], list[Any] | None, str]:
    """Examples without their labels, the labels or None, and their name."""
    name = "label" if "label" in features[0] else "labels"
    labels = [feature[name] for feature in features] if name in features[0] else None
    return [{key: value for key, value in row.items() if key != name} for row in features], labels, name


@dataclass
class DataCollatorForTokenClassification(_Padding, DataCollatorMixin):
    """Pads the inputs, and the labels of the tokens to the same length.

    Args:
        tokenizer, padding, max_length, pad_to_multiple_of: how to pad, as `tokenizer.pad` takes them.
        label_pad_token_id: label of padding.
        return_tensors: "pt" or "np".
    """

    tokenizer: PreTrainedTokenizerBase
    padding: bool | str | PaddingStrategy = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    label_pad_token_id: int = IGNORE
    return_tensors: str = "pt"

    def _collate(self, features: list[Any], kind: str) -> Batch:
        inputs, labels, name = _split_labels(features)
        batch = self._pad(inputs, kind)
        if labels is not None:
            name = name if kind == "pt" else "labels"  # as the reference
            batch[name] = self._pad_labels(labels, batch["input_ids"].shape[1], self.label_pad_token_id, kind)
        return batch if kind == "pt" or labels is None else {key: np.asarray(batch[key], np.int64) for key in batch}


@dataclass
class DataCollatorForSeq2Seq(_Padding, DataCollatorMixin):
    """Pads the inputs, and the labels to their own longest row; `labels` is None if no example has any.

    Args:
        tokenizer: pads.
        model: its `prepare_decoder_input_ids_from_labels`, if there is one, makes `decoder_input_ids`.
        padding, max_length, pad_to_multiple_of: how to pad, as `tokenizer.pad` takes them.
        label_pad_token_id: label of padding.
        return_tensors: "pt" or "np".
    """

    tokenizer: PreTrainedTokenizerBase
    model: Any = None
    padding: bool | str | PaddingStrategy = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    label_pad_token_id: int = IGNORE
    return_tensors: str = "pt"

    def _collate(self, features: list[Any], kind: str) -> Batch:
        inputs, labels, _ = _split_labels(features)
        batch = self._pad(inputs, kind)
        batch["labels"] = None
        if labels is None or all(label is None for label in labels):
            return batch
        batch["labels"] = self._pad_labels(labels, self._labels_length(labels), self.label_pad_token_id, kind)
        prepare = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if prepare is not None:
            batch["decoder_input_ids"] = prepare(labels=batch["labels"])
        return batch

    def _labels_length(self, labels: list[Any]) -> int:
        if self.padding is False or self.padding == PaddingStrategy.DO_NOT_PAD:
            return 0
        is_fixed = self.padding == PaddingStrategy.MAX_LENGTH and self.max_length is not None
        length = self.max_length if is_fixed and self.max_length is not None else max(map(len, labels))
        multiple = self.pad_to_multiple_of or 1
        return -(-length // multiple) * multiple
