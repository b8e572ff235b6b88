"""The ways from ids to logits that a model has, each as a function of a model and prompts.

Each returns what it computed as samples, or the reason why the model has no such way here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptrio.cache import DynamicCache, StaticCache
from gptrio.kernels.cpu_decode import Reason
from gptrio.kernels.linear import packed_inference
from gptrio.scoring.forward import Wanted, predict
from gptrio.scoring.packing import Row

NEW_TOKENS = 6  # that `generated` adds to a prompt
Prompts = Sequence[Sequence[int]]


class Sample(NamedTuple):
    """Logits, or log-probabilities, of the positions of one row.

    Attributes:
        ids: (T,) the row.
        start: first position that was computed.
        logits: (T - start, V).
    """

    ids: list[int]
    start: int
    logits: Tensor


Path = Callable[[Any, Prompts], list[Sample] | Reason]


def forward(model: Any, prompts: Prompts) -> list[Sample]:
    """The model's own forward, a prompt at a time, without a cache."""
    return [Sample(list(ids), 0, model(_row(model, ids), use_cache=False).logits[0]) for ids in prompts]


def packed_weights(model: Any, prompts: Prompts) -> list[Sample]:
    """The forward over packed copies of the weights and compiled kernels, as in `generate`."""
    with packed_inference(model):
        return forward(model, prompts)


def cached(model: Any, prompts: Prompts) -> list[Sample]:
    """Half of a prompt, and then a token at a time, over a growing cache."""
    return [_stepwise(model, ids, DynamicCache(config=model.config)) for ids in prompts]


def static_cache(model: Any, prompts: Prompts) -> list[Sample]:
    """The same over a cache of fixed size."""
    return [_stepwise(model, ids, StaticCache(model.config, len(ids) + 1)) for ids in prompts]


def batched(model: Any, prompts: Prompts) -> list[Sample]:
    """Prompts cut to one length in one batch, without a mask."""
    length = min(map(len, prompts))
    rows = [list(ids[:length]) for ids in prompts]
    logits = model(torch.tensor(rows, device=model.device), use_cache=False).logits
    return [Sample(ids, 0, logits[i]) for i, ids in enumerate(rows)]


def padded_left(model: Any, prompts: Prompts) -> list[Sample]:
    """A batch with padding before the shorter prompts."""
    return _padded(model, prompts, on_left=True)


def padded_right(model: Any, prompts: Prompts) -> list[Sample]:
    """A batch with padding after the shorter prompts."""
    return _padded(model, prompts, on_left=False)


def packed_rows(model: Any, prompts: Prompts) -> list[Sample]:
    """Prompts end to end in one row, with the beginnings that they share computed once, as in `score`."""
    size = model.config.vocab_size
    rows = [Row([*ids, ids[0]], 1) for ids in prompts]  # the last token is predicted only
    found: dict[int, Tensor] = {}
    for index, predictions in predict(model, rows, Wanted(top=size)):
        ids, values = predictions.top_ids, predictions.top_log_probs
        assert ids is not None and values is not None
        found[index] = torch.empty_like(values).scatter_(-1, ids, values)
    return [Sample(list(ids), 0, found[i]) for i, ids in enumerate(prompts)]


def compiled_step(model: Any, prompts: Prompts) -> list[Sample] | Reason:
    """Half of a prompt by modules, and then a token at a time by one compiled call."""
    step = model.compiled_step(1)
    if isinstance(step, Reason):
        return step
    samples = []
    for ids in prompts:
        cache, start = DynamicCache(config=model.config), len(ids) // 2
        model(_row(model, ids[:start]), past_key_values=cache, use_cache=True)
        if not step.supports(_row(model, ids[start : start + 1]), cache):
            return Reason("it does not take this model's cache")
        steps = [step(_row(model, [index]), cache)[0] for index in ids[start:]]
        samples.append(Sample(list(ids), start, torch.cat(steps)))
    return samples


def generated(model: Any, prompts: Prompts) -> list[Sample]:
    """Greedy `generate` over a batch padded on the left: the logits that each new token was chosen by."""
    ids, mask = _pad(model, prompts, on_left=True)
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(out.logits, 1)  # (B, NEW_TOKENS, V)
    samples = []
    for row, prompt in enumerate(prompts):
        read = [*prompt, *out.sequences[row, ids.shape[1] :].tolist()[:-1]]
        samples.append(Sample(read, len(prompt) - 1, logits[row]))
    return samples


def _row(model: Any, ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)], device=model.device)


def _stepwise(model: Any, ids: Sequence[int], cache: Any) -> Sample:
    start = len(ids) // 2
    parts = [model(_row(model, ids[:start]), past_key_values=cache, use_cache=True).logits[0]]
    parts += [model(_row(model, [index]), past_key_values=cache, use_cache=True).logits[0] for index in ids[start:]]
    return Sample(list(ids), 0, torch.cat(parts))


def _pad(model: Any, prompts: Prompts, on_left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, S) of prompts padded to one length with token 0."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if on_left else slice(0, len(prompt))
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    return ids.to(model.device), mask.to(model.device)


def _padded(model: Any, prompts: Prompts, on_left: bool) -> list[Sample]:
    ids, mask = _pad(model, prompts, on_left)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return [Sample(list(prompt), 0, logits[row][mask[row].bool()]) for row, prompt in enumerate(prompts)]
