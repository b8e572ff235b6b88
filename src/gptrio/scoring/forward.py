"""Log-probabilities of tokens: packed rows through the blocks, then the head for the predicted positions in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gptrio.errors import InputError, TokenIdError, UnsupportedError
from gptrio.kernels.linear import packed_inference, packing_disabled
from gptrio.models.base.backbone import Backbone
from gptrio.nn.attention import AttentionOptions, attention
from gptrio.nn.masks import AttentionMask
from gptrio.nn.rotary import RotaryTables
from gptrio.scoring.packing import Pack, PackedRow, Row, pack_rows

_TOKENS, _TOKENS_ON_CPU = 8192, 2048  # of a forward; a CPU is as fast with few of them, and needs less memory
Progress = Callable[[int, int], None] | None  # called with the number of rows that are done, and of all
Found = Iterator[tuple[int, "Predictions"]]
_HEAD_VALUES = 1 << 22  # logits that exist at a time


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

    @classmethod
    def concat(cls, parts: Sequence[Predictions]) -> Predictions:
        """Join predictions of the same kind along the targets."""
        log_probs, *others = zip(*parts, strict=True)
        return cls(torch.cat(log_probs), *(None if part[0] is None else torch.cat(part) for part in others))


@dataclass
class PackedContext:
    """The `AttentionContext` of packed rows: one row of tokens (1, N), of which each attends to those of its own row.

    Attributes:
        parts: rows whose attention is one call.
        order: (N',) place of each selected token in the results of all parts.
        implementation: attention back end.
        rotary: cosine and sine tables, or None.
        selected: (N',) tokens whose output is needed; None for all.
    """

    parts: list[Part]
    order: Tensor
    implementation: str
    rotary: RotaryTables | None = None
    selected: Tensor | None = None
    cache: None = None
    need_weights: bool = False
    cross: None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer_idx: int, options: AttentionOptions) -> tuple[Tensor, None]:
        """See `AttentionContext.attend`; shapes are (1, H, N, D)."""
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (N, H, D)
        results = [part.attend(q, k, v, options, self.implementation) for part in self.parts]
        return torch.cat(results).index_select(0, self.order).unsqueeze(0), None

    def attend_to_encoder(self, *_: Any) -> tuple[Tensor, None]:
        """Refuse: texts are scored without an encoder."""
        raise UnsupportedError("texts are scored without an encoder's states; call the model's forward with them")

    def select(self, x: Tensor) -> Tensor:
        """See `AttentionContext.select`."""
        return x if self.selected is None else x.index_select(1, self.selected)


class Part(NamedTuple):
    """Rows of a pack that attend in one call: tables of places, padded on the right, where no real query looks.

    Attributes:
        queries: (B, T) places of the new tokens.
        keys: (B, S) places of all tokens; the first S - T are shared.
    """

    queries: Tensor
    keys: Tensor

    @classmethod
    def of(cls, rows: list[PackedRow], device: torch.device) -> Part:
        """Tables of rows with as many shared tokens each, the longest first."""
        length = len(rows[0].path)
        paths = [row.path + row.path[-1:] * (length - len(row.path)) for row in rows]
        keys = torch.tensor(paths, device=device)
        return cls(keys[:, rows[0].shared :], keys)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, implementation: str) -> Tensor:
        """Results (B * T, H * D) of queries, keys and values (N, H, D)."""
        q, k, v = _gathered(q, self.queries), _gathered(k, self.keys), _gathered(v, self.keys)
        queries, keys = self.queries.shape[1], self.keys.shape[1]
        mask = AttentionMask(queries, keys, q.device, query_start=keys - queries)
        if options.window is not None:
            mask = mask.for_layer(keys, 0, options.window)
            k, v = k[:, :, -mask.key_length :], v[:, :, -mask.key_length :]
        return attention(q, k, v, mask, options, implementation=implementation)[0].flatten(0, 1)


def _gathered(x: Tensor, places: Tensor) -> Tensor:
    """(N, H, D) and places (B, T) to (B, H, T, D)."""
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:]).transpose(1, 2)


def predict(
    model: Any, rows: Sequence[Row], wanted: Wanted, batch_tokens: int | None = None, share: bool = True
) -> Iterator[tuple[int, Predictions]]:
    """Compute the log-probability of the predicted ids of each row; yields (index of the row, its predictions).

    Rows of which nothing is predicted are left out. The others come in another order than they were given, as soon as
    their forward has run. The result of a row depends on the others by rounding only.

    Args:
        model: a language model of this package.
        rows: what is to be predicted.
        wanted: what is computed besides log-probabilities.
        batch_tokens: most tokens of a forward; None for the default.
        share: compute beginnings that rows share once.

    Raises:
        InputError: the model has no language-model head, or a row is longer than its context.
        TokenIdError: an id outside the vocabulary.
    """
    batch_tokens = default_batch_tokens(model) if batch_tokens is None else batch_tokens
    _check(model, rows, batch_tokens)
    with _evaluating(model):
        for pack in pack_rows(rows, batch_tokens, share):
            yield from _predict_pack(model, pack, rows, wanted, batch_tokens)


def reported(found: Found, total: int, progress: Progress) -> Found:
    """Hand predictions on, and call `progress` after each."""
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


def _check(model: Any, rows: Sequence[Row], batch_tokens: int) -> None:
    check_model(model)
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} is too few; expected 1 or more, or None for the default")
    context, size = context_length(model), model.config.vocab_size
    for i, row in enumerate(rows):
        if len(row.ids) - 1 > context:
            raise InputError(
                f"texts[{i}] takes {len(row.ids) - 1} tokens, but the model reads {context} at once; "
                "perplexity(stride=) scores longer texts, or split the text"
            )
        wrong = min(row.ids) if min(row.ids) < 0 else max(row.ids)
        if not 0 <= wrong < size:
            raise TokenIdError(
                f"token id {wrong} of texts[{i}] is outside the vocabulary of {size}; expected 0 to {size - 1} "
                "(is the tokenizer the model's?)"
            )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run without dropout, and put the model back into training afterwards if it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _predict_pack(
    model: Any, pack: Pack, rows: Sequence[Row], wanted: Wanted, batch_tokens: int
) -> Iterator[tuple[int, Predictions]]:
    """Run one pack, and yield the predictions of each of its rows."""
    places = [row.path[rows[row.index].first - 1 :] for row in pack.rows]
    targets = [rows[row.index].ids[rows[row.index].first :] for row in pack.rows]
    flat = torch.tensor([place for path in places for place in path], device=model.device)
    read, position_of = torch.unique(flat, return_inverse=True)
    target = torch.tensor([index for ids in targets for index in ids], device=model.device)
    with torch.no_grad(), packed_inference(model), packing_disabled():
        states = _hidden_states(model.base_model, pack, read, batch_tokens)
        found = _predict_targets(model, states, position_of, target, wanted)
    start = 0
    for row, ids in zip(pack.rows, targets, strict=True):
        part = slice(start, start + len(ids))
        yield row.index, found.map(lambda x, part=part: x[part])  # type: ignore[misc]  # the default is the loop's
        start += len(ids)


def _hidden_states(base: Backbone, pack: Pack, read: Tensor, batch_tokens: int) -> Tensor:
    """Hidden states (U, C) of the tokens at the places `read` (U,)."""
    device = read.device
    ids, positions = (torch.tensor([x], device=device) for x in (pack.ids, pack.positions))  # (1, N)
    x, rotary = base.embed_inputs(ids, positions)
    chunks: list[list[PackedRow]] = []
    for rows in pack.parts():
        size = max(batch_tokens // len(rows[0].path), 1)  # so that keys take no more memory than the tokens
        chunks += [rows[i : i + size] for i in range(0, len(rows), size)]
    parts = [Part.of(rows, device) for rows in chunks]
    order = torch.tensor(_order(chunks, len(pack.ids)), device=device)
    context = PackedContext(parts, order, base.attn_implementation, rotary)
    last = PackedContext(parts, order[read], base.attn_implementation, rotary, selected=read)
    return base.run_blocks(x, cast(Any, context), cast(Any, last))[0]


def _order(parts: list[list[PackedRow]], tokens: int) -> list[int]:
    """Where each of the tokens (N,) lies among the queries of all parts, padding included."""
    order, offset = [0] * tokens, 0
    for rows in parts:
        for row in rows:
            new = row.path[row.shared :]  # places that follow each other
            order[new[0] : new[-1] + 1] = range(offset, offset + len(new))
            offset += len(rows[0].path) - row.shared
    return order


def _predict_targets(model: Any, states: Tensor, position_of: Tensor, target: Tensor, wanted: Wanted) -> Predictions:
    """Predictions of targets (n,), each by the state at `position_of` (n,) of states (U, C)."""
    by_position = position_of.argsort(stable=True)
    position, target = position_of[by_position], target[by_position]
    head, size = model.get_output_embeddings(), max(_HEAD_VALUES // model.config.vocab_size, 1)
    found = []
    for start in range(0, len(states), size):
        first, last = (int(i) for i in torch.searchsorted(position, position.new_tensor([start, start + size])))
        logits = head(states[start : start + size]).float()  # (n', V)
        found.append(_predict_chunk(logits, position[first:last] - start, target[first:last], wanted))
    back = by_position.argsort()
    return Predictions.concat(found).map(lambda x: x[back].cpu())


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
        mass = logits[:, wanted.mass_of].logsumexp(-1)
    total = logits.logsumexp(-1)
    return Predictions(
        chosen - total[row],
        ranks,
        None if top_ids is None else top_ids[row],
        None if top_values is None else (top_values - total[:, None])[row],
        None if mass is None else (mass - total)[row],
    )
