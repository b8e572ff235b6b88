"""Makes the inputs of a model from ids: special tokens, truncation and padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptrio.errors import TokenizationError
from gptrio.tokenization.batch_encoding import BatchEncoding
from gptrio.tokenization.encoding import EncodingMixin, short
from gptrio.tokenization.options import PREPARE_ORDER, EncodeOptions, TruncationStrategy, by_name
from gptrio.tokenization.tensors import kind_of, to_plain
from gptrio.utils.choices import PaddingStrategy

Ids = list[int]


class PrepareMixin(EncodingMixin):
    """Special tokens, truncation and padding of ids."""

    padding_side: str = "right"
    truncation_side: str = "right"

    # Special tokens around texts

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Add the model's special tokens to one or two texts."""
        return token_ids_0 + (token_ids_1 or [])

    def create_token_type_ids_from_sequences(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Return 0 for each token of the first text and 1 for each of the second, special tokens as in BERT."""
        ends = int(self.sep_token_id is not None)
        first = int(self.cls_token_id is not None) + len(token_ids_0) + ends
        return [0] * first + ([] if token_ids_1 is None else [1] * (len(token_ids_1) + ends))

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for special tokens and 0 for others, for ids that already include special tokens."""
        if not already_has_special_tokens or token_ids_1 is not None:
            raise TokenizationError(
                "get_special_tokens_mask of this tokenizer takes one list of ids with already_has_special_tokens=True; "
                "for the tokens that a call adds, use return_special_tokens_mask=True"
            )
        special = set(self.all_special_ids)
        return [int(index in special) for index in token_ids_0]

    @property
    def max_len_single_sentence(self) -> int:
        """Most tokens of one text, special ones not counted."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Most tokens of a pair, special ones not counted."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    # Truncation and padding

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encoded texts: `input_ids`, `attention_mask`, `token_type_ids` and `special_tokens_mask`.

        Args:
            encoded_inputs: an encoding, a batch of them, or a list of encodings of single texts.
            padding, max_length, pad_to_multiple_of, padding_side, return_attention_mask, return_tensors, verbose:
                see `EncodeOptions`.
        """
        if isinstance(encoded_inputs, (list, tuple)) and encoded_inputs and isinstance(encoded_inputs[0], Mapping):
            encoded_inputs = {key: [example[key] for example in encoded_inputs] for key in encoded_inputs[0]}
        main = self.model_input_names[0]
        if not isinstance(encoded_inputs, Mapping) or main not in encoded_inputs:
            raise TokenizationError(f"cannot pad {short(encoded_inputs)}: expected encodings with an entry {main!r}")
        first = encoded_inputs[main]
        inputs = {key: to_plain(value) for key, value in encoded_inputs.items()}
        if not inputs[main]:
            return BatchEncoding(inputs | ({"attention_mask": []} if return_attention_mask else {}))
        return_tensors = return_tensors or kind_of(first) or kind_of(first[0])
        options = self._resolve(
            EncodeOptions(
                padding=padding,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_attention_mask=return_attention_mask,
                verbose=verbose,
            )
        )
        if not isinstance(inputs[main][0], list):
            return BatchEncoding(self._pad_rows([inputs], options)[0], tensor_type=return_tensors)
        batch = len(inputs[main])
        uneven = {key: len(value) for key, value in inputs.items() if len(value) != batch}
        if uneven:
            raise TokenizationError(f"cannot pad: {main} has {batch} rows, but {uneven}")
        rows = self._pad_rows([{key: value[i] for key, value in inputs.items()} for i in range(batch)], options)
        return BatchEncoding({key: [row[key] for row in rows] for key in rows[0]}, tensor_type=return_tensors)

    def _pad_rows(self, rows: list[dict[str, Any]], options: EncodeOptions) -> list[dict[str, Any]]:
        """Add attention masks and pad, by the resolved options."""
        main = self.model_input_names[0]
        fill = {"token_type_ids": self.pad_token_type_id, "special_tokens_mask": 1}
        if self._is_returned("attention_mask", options.return_attention_mask):
            fill["attention_mask"] = 0
            rows = [row if "attention_mask" in row else {**row, "attention_mask": [1] * len(row[main])} for row in rows]
        if options.padding == PaddingStrategy.DO_NOT_PAD:
            return rows
        if options.padding == PaddingStrategy.LONGEST or options.max_length is None:
            length = max(len(row[main]) for row in rows)
        else:
            length = options.max_length
        multiple = options.pad_to_multiple_of or 1
        length = -(-length // multiple) * multiple
        pad_id = self.pad_token_id
        assert pad_id is not None, "checked when the options were resolved"
        return [
            pad_example(row, length, options.padding_side or self.padding_side, {main: pad_id, **fill}) for row in rows
        ]

    def truncate_sequences(
        self,
        ids: Ids,
        pair_ids: Ids | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[Ids, Ids | None, Ids]:
        """Cut tokens from one or two texts; return both and the overflow (see `EncodeOptions`)."""
        strategy = TruncationStrategy(truncation_strategy)
        return truncate(ids, pair_ids, num_tokens_to_remove, strategy, stride, self.truncation_side)

    def prepare_for_model(self, ids: Ids, pair_ids: Ids | None = None, *args: Any, **options: Any) -> BatchEncoding:
        """Add special tokens to ids, cut and pad them.

        Args:
            ids, pair_ids: tokens of the first and of the second text.
            *args, **options: see `EncodeOptions`; and `prepend_batch_axis`, for tensors of shape (1, T).
        """
        options = by_name(PREPARE_ORDER, args, options)
        prepend_batch_axis = bool(options.pop("prepend_batch_axis", False))
        resolved = self._resolve(EncodeOptions.of(options))
        row = self._finish_row(self._prepare(ids, pair_ids, resolved), resolved)
        return BatchEncoding(row, tensor_type=resolved.return_tensors, prepend_batch_axis=prepend_batch_axis)

    def _finish_row(self, row: dict[str, Any], options: EncodeOptions) -> dict[str, Any]:
        [row] = self._pad_rows([row], options)
        return {**row, "length": len(row["input_ids"])} if options.return_length else row

    def _prepare(self, ids: Ids, pair_ids: Ids | None, options: EncodeOptions) -> dict[str, Any]:
        """Cut, add special tokens, and make the entries of the (resolved) options, unpadded."""
        with_special = options.add_special_tokens
        if options.return_token_type_ids and not with_special:
            raise TokenizationError("return_token_type_ids needs add_special_tokens=True")
        ids, pair_ids, row = self._cut_to_length(ids, pair_ids, options)
        build = self.build_inputs_with_special_tokens
        row["input_ids"] = build(ids, pair_ids) if with_special else ids + (pair_ids or [])
        none_special = [0] * len(row["input_ids"])
        if self._is_returned("token_type_ids", options.return_token_type_ids):
            types = self.create_token_type_ids_from_sequences
            row["token_type_ids"] = types(ids, pair_ids) if with_special else none_special
        if options.return_special_tokens_mask:
            mask = self.get_special_tokens_mask
            row["special_tokens_mask"] = mask(ids, pair_ids) if with_special else none_special
        self._warn_if_too_long(len(row["input_ids"]), options)
        return row

    def _cut_to_length(
        self, ids: Ids, pair_ids: Ids | None, options: EncodeOptions
    ) -> tuple[Ids, Ids | None, dict[str, Any]]:
        """Cut so that the special tokens fit; return the texts and the entries about the overflow."""
        evens_out = options.truncation == TruncationStrategy.LONGEST_FIRST and pair_ids is not None
        if options.return_overflowing_tokens and evens_out:
            raise TokenizationError(
                "return_overflowing_tokens of a pair needs truncation='only_first' or 'only_second': 'longest_first' "
                "cuts both texts"
            )
        special = self.num_special_tokens_to_add(pair_ids is not None) if options.add_special_tokens else 0
        total = len(ids) + len(pair_ids or []) + special
        excess = 0 if options.max_length is None else total - options.max_length
        strategy, overflow = TruncationStrategy(options.truncation), list[int]()
        if strategy != TruncationStrategy.DO_NOT_TRUNCATE and excess > 0:
            ids, pair_ids, overflow = self.truncate_sequences(ids, pair_ids, excess, strategy, options.stride)
            if len(ids) + len(pair_ids or []) + special == total:
                self._warn_once("not cut", f"truncation {strategy.value!r} cannot remove {excess} tokens: too short")
        entries = {"overflowing_tokens": overflow, "num_truncated_tokens": excess}
        return ids, pair_ids, entries if options.return_overflowing_tokens else {}


def pad_example(example: dict[str, Any], length: int, side: str, fill: Mapping[str, int]) -> dict[str, Any]:
    """Pad the entries of one text that are named in `fill` (to its values) up to a length; longer ones stay.

    Args:
        example: lists by name.
        length: number of tokens to pad to.
        side: "left" or "right".
        fill: padding value by entry name.
    """
    padded = dict(example)
    for name, value in fill.items():
        if name in example:
            extra = [value] * (length - len(example[name]))
            padded[name] = extra + example[name] if side == "left" else example[name] + extra
    return padded


def truncate(
    ids: Ids, pair_ids: Ids | None, remove: int, strategy: str, stride: int, side: str
) -> tuple[Ids, Ids | None, Ids]:
    """Cut `remove` tokens from one or two texts.

    Args:
        ids, pair_ids: tokens of the first and of the second text.
        remove: number of tokens too many.
        strategy: a `TruncationStrategy`; "longest_first" evens out a pair and returns no overflow for it.
        stride: number of remaining tokens that the overflow repeats.
        side: "left" or "right", where to cut.

    Returns:
        First text, second text, overflow. All are unchanged if the text to cut is too short.
    """
    if remove <= 0:
        return ids, pair_ids, []
    if strategy == TruncationStrategy.ONLY_SECOND and pair_ids is not None:
        pair_ids, overflow = _cut_with_overflow(pair_ids, remove, stride, side)
        return ids, pair_ids, overflow
    if strategy == TruncationStrategy.ONLY_FIRST or (strategy == TruncationStrategy.LONGEST_FIRST and pair_ids is None):
        ids, overflow = _cut_with_overflow(ids, remove, stride, side)
        return ids, pair_ids, overflow
    if strategy == TruncationStrategy.LONGEST_FIRST and pair_ids is not None:
        from_longer = min(abs(len(ids) - len(pair_ids)), remove)
        rest = remove - from_longer
        from_first, from_second = rest // 2, rest - rest // 2
        if len(ids) > len(pair_ids):
            from_first += from_longer
        else:
            from_second += from_longer
        return _cut(ids, from_first, side), _cut(pair_ids, from_second, side), []
    return ids, pair_ids, []


def _cut(ids: Ids, count: int, side: str) -> Ids:
    return ids[count:] if side == "left" else ids[: max(len(ids) - count, 0)]


def _cut_with_overflow(ids: Ids, remove: int, stride: int, side: str) -> tuple[Ids, Ids]:
    if len(ids) <= remove:
        return ids, []
    window = min(len(ids), stride + remove)
    return _cut(ids, remove, side), ids[:window] if side == "left" else ids[-window:]
