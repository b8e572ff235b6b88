"""Log-probabilities of tokens: packed rows through the blocks, then the head for the predicted positions in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple, SupportsIndex, cast

import torch
from torch import Tensor, nn

from gptrio.errors import InputError, TokenIdError
from gptrio.kernels.linear import packed_inference, packing_disabled
from gptrio.models.base.backbone import Backbone
from gptrio.nn.fast_call import hook_reason, skip_hook_dispatch
from gptrio.scoring.pack_contexts import pack_contexts
from gptrio.scoring.packing import Pack, Row, pack_rows

Progress = Callable[[int, int], None] | None  # called with the number of rows that are done, and of all
_TOKENS, _TOKENS_ON_CPU = 8192, 1024  # of a forward; a CPU is as fast with few of them, and needs less memory
_HEAD_VALUES = 1 << 21  # logits that exist at a time


class Wanted(NamedTuple):
    """What is computed besides log-probabilities.

    Attributes:
        ranks: the number of likelier tokens, plus 1.
        top: how many of the likeliest tokens.
        mass_of: ids (M,) whose total log-probability is computed, or None.
    """

    ranks: bool = False
    top: int = 0
    mass_of: Tensor | None = None


class Predictions(NamedTuple):
    """Of the predicted ids of one row, or of several, all on the CPU.

    Attributes:
        log_probs: (n,) float32.
        ranks: (n,), or None.
        top_ids: (n, k) the likeliest ids, likeliest first, or None.
        top_log_probs: (n, k), or None.
        mass: (n,) log-probability of all ids `Wanted.mass_of`, or None.
    """

    log_probs: Tensor
    ranks: Tensor | None = None
    top_ids: Tensor | None = None
    top_log_probs: Tensor | None = None
    mass: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Predictions:
        """Apply a function to each of the tensors."""
        log_probs, *others = self
        return Predictions(function(log_probs), *(None if part is None else function(part) for part in others))

    def split(self, sizes: list[int]) -> Iterator[Predictions]:
        """Distribute predictions over rows with so many targets each."""
        parts = [repeat(None) if part is None else torch.split(part, sizes) for part in self]
        return (Predictions(*cast(Any, part)) for part in zip(*parts, strict=False))  # `repeat` has no end

    @classmethod
    def concat(cls, parts: Sequence[Predictions]) -> Predictions:
        """Join predictions of the same kind along the targets."""
        log_probs, *others = zip(*parts, strict=True)
        return cls(torch.cat(log_probs), *(None if part[0] is None else torch.cat(part) for part in others))


def predict(
    model: Any, rows: Sequence[Row], wanted: Wanted, batch_tokens: int | None = None, share: bool = True
) -> Iterator[tuple[int, Predictions]]:
    """Compute the log-probability of the predicted ids of each row; yields (index of the row, its predictions).

    Rows of which nothing is predicted are left out. The others come in another order than they were given, as soon as
    their forward has run. The result of a row depends on the others by rounding only.

    Args:
        model: a language model of this package.
        rows: what is to be predicted, by ids inside the vocabulary and of lengths that the model reads (see `check`).
        wanted: what is computed besides log-probabilities.
        batch_tokens: most tokens of a forward; None for the default.
        share: compute beginnings that rows share once.

    Raises:
        InputError: the model has no language-model head, or `batch_tokens` is impossible.
    """
    check_model(model)
    batch_tokens = default_batch_tokens(model) if batch_tokens is None else batch_tokens
    if not isinstance(batch_tokens, SupportsIndex) or batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens!r} is impossible; expected 1 or more, or None for the default")
    for pack in pack_rows(rows, batch_tokens, share):
        yield from _predict_pack(model, pack, rows, wanted, batch_tokens)


def reported(
    found: Iterator[tuple[int, Predictions]], total: int, progress: Progress
) -> Iterator[tuple[int, Predictions]]:
    """Hand predictions on, and call `progress` after each; raises InputError if it cannot be called."""
    if progress is not None and not callable(progress):
        raise InputError(f"progress={progress!r} cannot be called; expected a function of two numbers, or None")
    for done, one in enumerate(found, start=1):
        yield one
        if progress is not None:
            progress(done, total)


def default_batch_tokens(model: Any) -> int:
    """Most tokens of a forward, unless the caller says otherwise."""
    return _TOKENS_ON_CPU if model.device.type == "cpu" else _TOKENS


def context_length(model: Any) -> int:
    """Most tokens that the model reads at once."""
    return int(model.config.max_position_embeddings)


def check_model(model: Any) -> None:
    """Raise InputError unless a model is a language model of this package."""
    if not isinstance(getattr(model, "base_model", None), Backbone) or model.get_output_embeddings() is None:
        raise InputError(
            f"model is a {type(model).__name__}; expected a language model of gptrio, as AutoModelForCausalLM loads"
        )


def check_ids(model: Any, ids: Sequence[int], name: str) -> None:
    """Raise TokenIdError, which says of what text, unless ids are in the model's vocabulary."""
    size = model.config.vocab_size
    wrong = min(ids) if min(ids) < 0 else max(ids)
    if not 0 <= wrong < size:
        raise TokenIdError(
            f"token id {wrong} of {name} is outside the vocabulary of {size}; expected 0 to {size - 1} (is the "
            "tokenizer the model's?)"
        )


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Run without gradients and dropout, by kernels that need not be loaded or prepared; modules keep their modes."""
    in_training = [module for module in model.modules() if module.training]
    try:
        for module in in_training:
            module.training = False
        with (
            torch.no_grad(),
            packed_inference(model, may_compile=False),  # which takes 100 MB, and is hardly faster here
            packing_disabled(),
            skip_hook_dispatch(unless=hook_reason(model)),
        ):
            yield
    finally:
        for module in in_training:
            module.training = True


def _predict_pack(
    model: Any, pack: Pack, rows: Sequence[Row], wanted: Wanted, most_keys: int
) -> Iterator[tuple[int, Predictions]]:
    """Run one pack: the index of each of its rows, with the predictions."""
    places = [row.path[rows[row.index].first - 1 :] for row in pack.rows]
    targets = [rows[row.index].ids[rows[row.index].first :] for row in pack.rows]
    flat = torch.tensor([place for path in places for place in path], device=model.device)
    target = torch.tensor([index for ids in targets for index in ids], device=model.device)
    with _inference(model):
        read, position_of = torch.unique(flat, return_inverse=True)
        states = _hidden_states(model.base_model, pack, read, most_keys)
        found = _predict_targets(model, states, position_of, target, wanted)
    return zip((row.index for row in pack.rows), found.split(list(map(len, targets))), strict=True)


def _hidden_states(base: Backbone, pack: Pack, read: Tensor, most_keys: int) -> Tensor:
    """Hidden states (U, C) of the tokens at the places `read` (U,)."""
    ids, positions = (torch.tensor([x], device=read.device) for x in (pack.ids, pack.positions))  # (1, N)
    x, rotary = base.embed_inputs(ids, positions)
    contexts = pack_contexts(pack, read, most_keys, base.attn_implementation, rotary)
    return base.run_blocks(x, *cast(Any, contexts))[0]


def _predict_targets(model: Any, states: Tensor, position_of: Tensor, target: Tensor, wanted: Wanted) -> Predictions:
    """Predictions of targets (n,), each by the state at `position_of` (n,) of states (U, C); they are on the CPU."""
    by_position = position_of.argsort(stable=True)
    position, target = position_of[by_position], target[by_position]
    head, size = model.get_output_embeddings(), max(_HEAD_VALUES // model.config.vocab_size, 1)
    found = []
    for start in range(0, len(states), size):
        first, last = (int(i) for i in torch.searchsorted(position, position.new_tensor([start, start + size])))
        logits = head(states[start : start + size]).float()  # (n', V)
        row, chosen = ((position[first:last] - start).to(logits.device), target[first:last].to(logits.device))
        found.append(_predict_chunk(logits, row, chosen, wanted))
    back = by_position.argsort().cpu()
    return Predictions.concat(found).map(lambda x: x.cpu()[back])


def _predict_chunk(logits: Tensor, row: Tensor, target: Tensor, wanted: Wanted) -> Predictions:
    """Predictions of targets (n,) by rows (n,) of logits (m, V)."""
    chosen = logits[row, target]
    ranks = top_ids = top_values = mass = None
    if wanted.ranks:
        rows = logits if len(row) == len(logits) else logits[row]  # every row has a target, and rows are in order
        ranks = (rows > chosen[:, None]).sum(-1) + 1
    if wanted.top == 1:
        top_values, top_ids = logits.max(-1, keepdim=True)
    elif wanted.top:
        top_values, top_ids = logits.topk(wanted.top, dim=-1)
    if wanted.mass_of is not None:
        mass = logits[:, wanted.mass_of.to(logits.device)].logsumexp(-1)
    total = logits.logsumexp(-1)
    return Predictions(
        chosen - total[row],
        ranks,
        None if top_ids is None else top_ids[row],
        None if top_values is None else (top_values - total[:, None])[row],
        None if mass is None else (mass - total)[row],
    )
