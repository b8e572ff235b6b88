"""Collators for language models: labels of the next token or of masked ones, and examples laid end to end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptrio.errors import OptionError, TokenizationError, UnsupportedError, warn
from gptrio.tokenization.tensors import kind_of
from gptrio.training.collators import (
    IGNORE,
    Batch,
    DataCollatorMixin,
    DefaultDataCollator,
    known_kind,
    pad_without_fast_tokenizer_warning,
    tensor_of,
    torch_or_numpy,
)

if TYPE_CHECKING:
    from gptrio.tokenization.base import PreTrainedTokenizerBase


@dataclass
class DataCollatorForLanguageModeling(DataCollatorMixin):
    """Pads the inputs and makes labels: the inputs themselves (`mlm=False`), or tokens that it masks.

    The models shift the labels. Where the padding token is a real token too (as GPT-2's end of text often is), its
    labels do not count anywhere, as in Transformers; `keep_eos=True` ignores only those of padding.

    Args:
        tokenizer: pads, and knows the mask token.
        mlm: mask tokens and predict them; for GPT models, pass False.
        mlm_probability: share of tokens to predict.
        mask_replace_prob, random_replace_prob: shares of these that become the mask token, or a random one.
        pad_to_multiple_of: round lengths up.
        tf_experimental_compile: False.
        return_tensors: "pt" or "np".
        seed: of the collator's own generator (plus the number of the loader's worker); the global one by default.
        keep_eos: ignore the labels of padding only, by the attention mask, not every label that equals the padding
            token.

    Raises:
        OptionError: the tokenizer has no mask token (with `mlm`), or a share is not one.
        UnsupportedError: `tf_experimental_compile`.
    """

    tokenizer: PreTrainedTokenizerBase
    mlm: bool = True
    mlm_probability: float | None = 0.15
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    pad_to_multiple_of: int | None = None
    tf_experimental_compile: bool = False
    return_tensors: str = "pt"
    seed: int | None = None
    keep_eos: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.tf_experimental_compile:
            raise UnsupportedError("tf_experimental_compile=True needs TensorFlow; use return_tensors='pt' or 'np'")
        if self.mlm and self.tokenizer.mask_token is None:
            raise OptionError(
                f"mlm=True needs a mask token, and {type(self.tokenizer).__name__} has none; pass mlm=False to train "
                "on the next token, or set tokenizer.mask_token"
            )
        for name in ("mlm_probability", "mask_replace_prob", "random_replace_prob"):
            share = getattr(self, name)
            if name == "mlm_probability" and not self.mlm:
                continue
            if share is None or not 0 <= share <= 1:
                raise OptionError(f"{name} is {share!r}; expected a number from 0 to 1")
            setattr(self, name, float(share))
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise OptionError(
                f"mask_replace_prob {self.mask_replace_prob} and random_replace_prob {self.random_replace_prob} are "
                "more than 1 together"
            )
        self.generator: Any = None
        self._has_warned = False

    def _collate(self, features: list[Any], kind: str) -> Batch:
        if self.seed is not None and self.generator is None:
            self.create_rng()
        batch, is_real = self._padded(features, kind)
        special_tokens_mask = batch.pop("special_tokens_mask", None)
        if self.mlm:
            mask = self.torch_mask_tokens if kind == "pt" else self.numpy_mask_tokens
            batch["input_ids"], batch["labels"] = mask(batch["input_ids"], special_tokens_mask=special_tokens_mask)
        else:
            batch["labels"] = self._next_token_labels(batch["input_ids"], is_real)
        return batch

    def _padded(self, features: list[Any], kind: str) -> tuple[Batch, Any]:
        """Return the padded inputs, and (B, T) True where a token is no padding (None if unknown)."""
        if isinstance(features[0], Mapping):
            multiple = self.pad_to_multiple_of
            batch = pad_without_fast_tokenizer_warning(
                self.tokenizer, features, return_tensors=kind, pad_to_multiple_of=multiple
            )
            mask = batch.get("attention_mask")
            return batch, None if mask is None else mask != 0
        ids, is_real = self._stack_ids(features, kind)
        if kind == "np":
            return {"input_ids": ids}, is_real
        from_numpy = torch_or_numpy("pt").from_numpy
        return {"input_ids": from_numpy(ids)}, from_numpy(is_real)

    def _stack_ids(self, rows: list[Any], kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Pad rows of ids; return them and where they are real, both (B, T)."""
        keeps_dtype = kind_of(rows[0]) == kind
        arrays = [np.asarray(row, dtype=None if keeps_dtype else np.int64) for row in rows]
        multiple = self.pad_to_multiple_of or 1
        length = -(-max(map(len, arrays)) // multiple) * multiple
        is_padded = any(len(row) != length for row in arrays)
        if is_padded and self.tokenizer.pad_token is None:
            raise TokenizationError(
                f"examples of different lengths cannot be padded: {type(self.tokenizer).__name__} has no padding "
                "token; set tokenizer.pad_token = tokenizer.eos_token"
            )
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id if is_padded else 0, dtype=arrays[0].dtype)
        is_real = np.zeros(ids.shape, dtype=bool)
        for i, row in enumerate(arrays):
            places = slice(0, len(row)) if self.tokenizer.padding_side == "right" else slice(length - len(row), None)
            ids[i, places] = row
            is_real[i, places] = True
        return ids, is_real

    def _next_token_labels(self, ids: Any, is_real: Any) -> Any:
        """Copy the ids (B, T); padding, and by default every token like it, is ignored."""
        labels = ids.copy() if isinstance(ids, np.ndarray) else ids.clone()
        pad = self.tokenizer.pad_token_id
        if self.keep_eos and is_real is not None:
            labels[~is_real] = IGNORE
        elif pad is not None:
            labels[ids == pad] = IGNORE
            if is_real is not None and pad == self.tokenizer.eos_token_id:
                self._warn_of_ignored_eos(bool(((ids == pad) & is_real).any()))
        return labels

    def _warn_of_ignored_eos(self, is_ignored: bool) -> None:
        if is_ignored and not self._has_warned:
            self._has_warned = True
            warn(
                f"the padding token is also the end of text ({self.tokenizer.eos_token!r}), so the ends of the texts "
                "are not learned either, as in Transformers; DataCollatorForLanguageModeling(..., keep_eos=True) keeps "
                "their labels"
            )

    # Masked language modelling

    def get_generator(self, seed: int) -> Any:
        """Return a generator of torch or numpy, by `return_tensors`."""
        if known_kind(self.return_tensors) == "pt":
            return torch_or_numpy("pt").Generator().manual_seed(seed)
        return np.random.default_rng(seed)

    def create_rng(self) -> None:
        """Set the generator, to another one in each worker of a torch DataLoader."""
        if self.seed is None:
            return
        loaders: Any = sys.modules.get("torch.utils.data")
        worker = None if loaders is None else loaders.get_worker_info()
        self.generator = self.get_generator(self.seed + (worker.id if worker is not None else 0))

    def torch_mask_tokens(self, inputs: Any, special_tokens_mask: Any = None) -> tuple[Any, Any]:
        """Mask tokens of a torch tensor in place.

        Args:
            inputs: (B, T) ids.
            special_tokens_mask: (B, T) 1 where a token is not to be masked; found by the tokenizer if None.

        Returns:
            The inputs, and labels that are -100 but at the masked tokens.
        """
        torch = torch_or_numpy("pt")

        def flip(share: Any) -> Any:
            shares = share if isinstance(share, torch.Tensor) else torch.full(inputs.shape, share)
            return torch.bernoulli(shares, generator=self.generator).bool()

        shares = torch.full(inputs.shape, self.mlm_probability)
        shares.masked_fill_(self._special(inputs, special_tokens_mask, "pt").bool(), 0.0)
        labels = inputs.clone()
        is_random = self._mask(inputs, labels, shares, flip)
        if is_random is not None:
            words = torch.randint(len(self.tokenizer), inputs.shape, dtype=torch.long, generator=self.generator)
            inputs[is_random] = words[is_random]
        return inputs, labels

    def numpy_mask_tokens(self, inputs: Any, special_tokens_mask: Any = None) -> tuple[Any, Any]:
        """Mask tokens of a numpy array in place; see `torch_mask_tokens`."""
        generator = self.generator or np.random

        def flip(share: Any) -> Any:
            return generator.binomial(1, share, size=inputs.shape).astype(bool)

        shares = np.full(inputs.shape, self.mlm_probability)
        shares[self._special(inputs, special_tokens_mask, "np").astype(bool)] = 0
        labels = inputs.copy()
        is_random = self._mask(inputs, labels, shares, flip)
        if is_random is not None:
            draw = generator.integers if self.generator else generator.randint
            size = np.count_nonzero(is_random)
            inputs[is_random] = draw(low=0, high=len(self.tokenizer), size=size, dtype=np.int64)
        return inputs, labels

    def _special(self, inputs: Any, given: Any, kind: str) -> Any:
        if given is not None:
            return given
        mask = self.tokenizer.get_special_tokens_mask
        return tensor_of([mask(row, already_has_special_tokens=True) for row in inputs.tolist()], kind)

    def _mask(self, inputs: Any, labels: Any, shares: Any, flip: Any) -> Any:
        """Choose tokens by their shares (B, T) and mask some; return where random ones go, None for nowhere."""
        chosen = flip(shares)
        labels[~chosen] = IGNORE
        is_masked = flip(self.mask_replace_prob) & chosen
        inputs[is_masked] = self.tokenizer.mask_token_id
        if self.mask_replace_prob == 1 or self.random_replace_prob == 0:
            return None
        return flip(self.random_replace_prob / (1 - self.mask_replace_prob)) & chosen & ~is_masked


class DataCollatorWithFlattening(DefaultDataCollator):
    """Lays the examples end to end in one row, without padding: `input_ids`, `labels`, `position_ids` (1, tokens).

    Pass `packed=True` to the model with such a batch, so that no example attends to those before it.

    Args:
        return_tensors: "pt" or "np".
        return_position_ids: positions, which start anew with each example.
        separator_id: label of each example's first token, which nothing of its own predicts.
        return_flash_attn_kwargs: `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`.
        return_seq_idx: number of the example of each token (1, tokens), int32.
    """

    def __init__(
        self,
        return_tensors: str = "pt",
        *,
        return_position_ids: bool = True,
        separator_id: int = IGNORE,
        return_flash_attn_kwargs: bool = False,
        return_seq_idx: bool = False,
    ) -> None:
        super().__init__(return_tensors)
        self.return_position_ids = return_position_ids
        self.separator_id = separator_id
        self.return_flash_attn_kwargs = return_flash_attn_kwargs
        self.return_seq_idx = return_seq_idx

    def __call__(
        self, features: list[Any], return_tensors: str | None = None, separator_id: int | None = None
    ) -> dict[str, Any]:
        """Make a batch of one row.

        Args:
            features: examples with `input_ids` and perhaps `labels`, as lists.
            return_tensors, separator_id: replace the collator's settings.
        """
        kind = known_kind(self.return_tensors if return_tensors is None else return_tensors)
        separator = self.separator_id if separator_id is None else separator_id
        library = torch_or_numpy(kind)
        label_name = "labels" if "labels" in features[0] else "input_ids"
        lengths = [len(row["input_ids"]) for row in features]
        columns = {
            "input_ids": [token for row in features for token in row["input_ids"]],
            "labels": [label for row in features for label in (separator, *row[label_name][1:])],
        }
        if self.return_position_ids:
            columns["position_ids"] = [position for length in lengths for position in range(length)]
        batch = {name: tensor_of([column], kind, library.int64) for name, column in columns.items()}
        if self.return_seq_idx:
            batch["seq_idx"] = tensor_of([np.repeat(np.arange(len(lengths)), lengths)], kind, library.int32)
        if self.return_flash_attn_kwargs:
            ends = tensor_of(np.cumsum([0, *lengths]), kind, library.int32)
            batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            batch |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
        return batch
