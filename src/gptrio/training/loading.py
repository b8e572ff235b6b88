"""The part of `Trainer` that reads data: columns, order, batches."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler, SequentialSampler

from gptrio.errors import InputError
from gptrio.training import ranks
from gptrio.training.order import (
    EpochSampler,
    RankStream,
    epoch_order,
    has_length,
    is_streamed,
    length_grouped_order,
    lengths_of,
)
from gptrio.training.parts import TrainerParts, innermost

_log = logging.getLogger(__name__)


class LoadingMixin(TrainerParts):
    """Loaders of batches; each method can be overridden."""

    def get_train_dataloader(self) -> Any:
        """The batches of training, in a new random order each epoch.

        Raises:
            InputError: there is no training set, or it has no column that the model takes.
        """
        if self.train_dataset is None:
            raise InputError("there is nothing to train on; pass Trainer(train_dataset=...)")
        return self._get_dataloader(
            self.train_dataset, "Training", self._train_batch_size, self._get_train_sampler, is_training=True
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The batches of an evaluation, in the order of the data.

        Args:
            eval_dataset: a data set, or the name of one of several; that of the trainer by default.

        Raises:
            InputError: there is none.
        """
        if eval_dataset is None and self.eval_dataset is None:
            raise InputError("there is nothing to evaluate; pass Trainer(eval_dataset=...) or evaluate(eval_dataset)")
        key = eval_dataset if isinstance(eval_dataset, str) else "eval"
        kept: dict[str, Any] = self.__dict__.setdefault("_eval_dataloaders", {})
        if self.args.dataloader_persistent_workers and key in kept:
            return kept[key]
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = self._get_dataloader(dataset, "Evaluation", self.args.eval_batch_size, self._get_eval_sampler)
        if self.args.dataloader_persistent_workers:
            kept[key] = loader
        return loader

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The batches of a prediction, in the order of the data."""
        return self._get_dataloader(test_dataset, "test", self.args.eval_batch_size, self._get_eval_sampler)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Sampler[int] | None] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """A loader of a data set without the columns that the model does not take."""
        collator = self.data_collator
        if _is_table(dataset):
            dataset = self._remove_unused_columns(dataset, description)
        else:
            collator = self._get_collator_with_removed_columns(collator, description)
        args = self.args
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "collate_fn": collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
            "persistent_workers": args.dataloader_persistent_workers,
        }
        if not is_streamed(dataset):
            options["sampler"] = None if sampler_fn is None else sampler_fn(dataset)
            options["drop_last"] = args.dataloader_drop_last
            options["prefetch_factor"] = args.dataloader_prefetch_factor
        return self.accelerator.prepare(DataLoader(dataset, **options))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        """The order of training: random, or by groups of similar length; None if the data has no length."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if dataset is None or not has_length(dataset):
            return None
        order: Callable[[int, int], list[int]] = partial(epoch_order, len(dataset))
        if self.args.group_by_length:
            names = getattr(self.processing_class, "model_input_names", None) or ["input_ids"]
            lengths = lengths_of(dataset, self.args.length_column_name, names[0])
            rows = self._train_batch_size * self.args.gradient_accumulation_steps * ranks.world_size()
            order = partial(length_grouped_order, lengths, rows)
        seed = ranks.from_first(torch.initial_seed()) if self.args.data_seed is None else self.args.data_seed
        return EpochSampler(len(dataset), order, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """The order of the data; None if it has no length."""
        return SequentialSampler(eval_dataset) if eval_dataset is not None and has_length(eval_dataset) else None

    def num_examples(self, dataloader: Any) -> int:
        """Rows of a loader's data set; where that has no length, as many as the batches can have."""
        dataset: Any = getattr(dataloader, "dataset", None)
        try:
            return len(dataset.dataset if isinstance(dataset, RankStream) else dataset)
        except (NameError, AttributeError, TypeError):
            return int(len(dataloader) * self.args.per_device_train_batch_size)

    @staticmethod
    def num_tokens(train_dl: Iterable[Any], max_steps: int | None = None) -> int:
        """Tokens of all batches of a loader; with `max_steps`, of so many batches like the first."""
        total = 0
        for batch in train_dl:
            if "input_ids" not in batch:
                return total
            total += int(batch["input_ids"].numel())
            if max_steps is not None:
                return total * max_steps
        return total

    # columns --------------------------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            names = list(inspect.signature(innermost(self.model).forward).parameters)
            packing = ["segment_ids"] if self._has_own_loss else []  # taken by name, beside what the signature shows
            self._signature_columns = [*names, *packing, *{"label", "label_ids", *self.label_names}]

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """A table without the columns that the model does not take.

        Raises:
            InputError: the column of the model's inputs is missing; the message names those that there are.
        """
        if not self.args.remove_unused_columns:
            return dataset
        unused = self._unused_columns(description)(dataset.column_names)
        return dataset.remove_columns(unused) if unused else dataset

    def _get_collator_with_removed_columns(
        self, data_collator: Callable[[list[Any]], Any], description: str | None = None
    ) -> Callable[[list[Any]], Any]:
        """A collator that drops what the model does not take from rows that are mappings."""
        if not self.args.remove_unused_columns:
            return data_collator
        return _WithoutColumns(data_collator, self._unused_columns(description))

    def _unused_columns(self, description: str | None) -> Callable[[Iterable[str]], list[str]]:
        """A function that tells which columns the model does not take; knows no more of it, as workers get it too."""
        self._set_signature_columns_if_needed()
        main_input = getattr(self.model, "main_input_name", "input_ids")
        return partial(_unused, type(self.model).__name__, self._signature_columns or [], main_input, description)


def _unused(
    model_name: str, taken: list[str], main_input: str, description: str | None, columns: Iterable[str]
) -> list[str]:
    """The columns that are not among the arguments of a model, which are logged; one of these has to be there."""
    columns = list(columns)
    unused = [name for name in columns if name not in taken]
    if main_input in taken and not {main_input, "inputs_embeds"} & set(columns):
        raise InputError(
            f"the {description or 'data'} set has no column {main_input!r}; it has {', '.join(columns) or 'none'}. "
            "Tokenize it first, or set remove_unused_columns=False if your data_collator does so"
        )
    if unused:
        _log.info(f"{description} set: {', '.join(unused)} are not arguments of {model_name}.forward, and are left out")
    return unused


class _WithoutColumns:
    """A collator that gets rows without some columns; a class, as it may be sent to workers."""

    def __init__(self, collator: Callable[[list[Any]], Any], unused: Callable[[Iterable[str]], list[str]]) -> None:
        self.collator, self.unused = collator, unused
        self.known: dict[tuple[str, ...], list[str]] = {}

    def __call__(self, features: list[Any]) -> Any:
        return self.collator([self._without(row) if isinstance(row, dict) else row for row in features])

    def _without(self, row: dict[str, Any]) -> dict[str, Any]:
        names = tuple(row)
        if names not in self.known:
            self.known[names] = self.unused(names)
        unused = self.known[names]
        return {name: value for name, value in row.items() if name not in unused} if unused else row


def _is_table(dataset: Any) -> bool:
    """Whether a data set is one of `datasets`, with columns that can be removed, and a length."""
    return hasattr(dataset, "remove_columns") and bool(getattr(dataset, "column_names", None)) and has_length(dataset)
