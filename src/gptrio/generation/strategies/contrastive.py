"""Contrastive search: among the likeliest tokens, the one whose state is least like those before it.

Source: Su et al., "A Contrastive Framework for Neural Text Generation", arXiv:2202.06417.
Shapes: `B` rows, `K` candidates, `T` length so far, `C` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.generation.loop import drain
from gptrio.generation.outputs import GenerateDecoderOnlyOutput
from gptrio.generation.state import GenerationState, SequenceStatus, StepOutput


def contrastive_search(state: GenerationState) -> Tensor | GenerateDecoderOnlyOutput:
    """Contrastive search until every row is finished; see `contrastive_steps`."""
    return drain(state, contrastive_steps(state))


def contrastive_steps(state: GenerationState) -> Iterator[StepOutput]:
    """Append the candidate of the best sum of probability and unlikeness.

    The candidates of all rows are tried together, in K rows for each; with `low_memory` one after the other.
    """
    config = state.config
    copies = state.ids.shape[0] // state.num_prompts  # K, or 1 with low_memory
    status = SequenceStatus(state, state.ids[::copies])
    is_real = None if state.prompt.attention_mask is None else state.prompt.attention_mask[::copies]
    output = state.step(state.ids, output_hidden_states=True)
    output = _rows_of(output, torch.arange(0, state.ids.shape[0], copies, device=state.ids.device))
    past = F.normalize(output.hidden_states[-1], dim=-1)  # (B, T, C)
    while True:
        ids = status.ids
        logits = output.logits[:, -1].float()  # (B, V)
        scores = state.process(ids, logits)
        status.record.add(output, logits, scores)
        likely, candidates = scores.softmax(-1).topk(config.top_k or 1)  # (B, K)
        tried = _try_in_turn(state, ids, candidates) if copies == 1 else _try_together(state, ids, candidates)
        states = F.normalize(tried.hidden_states[-1][:, -1], dim=-1).view(*candidates.shape, -1)  # (B, K, C)
        best = _least_alike(likely, states, past, is_real, config.penalty_alpha or 0.0)  # (B,)
        output = _keep(state, ids, candidates, tried, best)
        past = torch.cat([past, states[torch.arange(len(best), device=best.device), best][:, None]], dim=1)
        step = status.append(candidates.gather(1, best[:, None])[:, 0], scores)
        yield step
        if step.is_last:
            return


def _least_alike(likely: Tensor, states: Tensor, past: Tensor, is_real: Tensor | None, alpha: float) -> Tensor:
    """Index (B,) of the candidate to take.

    Args:
        likely: (B, K) probabilities.
        states: (B, K, C) of unit length.
        past: (B, T, C) of unit length.
        is_real: (B, prompt) True for real tokens, or None if all are.
        alpha: weight of unlikeness.
    """
    alike = states @ past.transpose(1, 2)  # (B, K, T)
    if is_real is not None:
        real = F.pad(is_real, (0, past.shape[1] - is_real.shape[1]), value=True)
        alike = alike.masked_fill(~real[:, None], -1.0)
    return ((1 - alpha) * likely - alpha * alike.amax(-1)).argmax(-1)


def _try_together(state: GenerationState, ids: Tensor, candidates: Tensor) -> Any:
    """The model's output (B * K rows) for each candidate at the end of its row."""
    longer = ids.repeat_interleave(candidates.shape[1], dim=0)
    return state.step(torch.cat([longer, candidates.reshape(-1, 1)], dim=1), output_hidden_states=True)


def _try_in_turn(state: GenerationState, ids: Tensor, candidates: Tensor) -> Any:
    """The same, one candidate after the other, with the memory of a single one."""
    outputs = []
    for tokens in candidates.unbind(1):
        outputs.append(state.step(torch.cat([ids, tokens[:, None]], dim=1), output_hidden_states=True))
        state.step.crop(ids.shape[1])
    last = [output.hidden_states[-1][:, -1:] for output in outputs]
    return SimpleNamespace(hidden_states=(torch.stack(last, dim=1).flatten(0, 1),))


def _keep(state: GenerationState, ids: Tensor, candidates: Tensor, tried: Any, best: Tensor) -> Any:
    """Keep the candidates at `best` (B,): return their part of the output, and reduce the cache to them."""
    if state.ids.shape[0] == ids.shape[0]:
        tokens = candidates.gather(1, best[:, None])
        return state.step(torch.cat([ids, tokens], dim=1), output_hidden_states=True)
    copies = candidates.shape[1]
    rows = torch.arange(len(best), device=best.device) * copies + best
    state.step.reorder(rows.repeat_interleave(copies))
    return _rows_of(tried, rows)


def _rows_of(output: Any, rows: Tensor) -> Any:
    """Some rows (B,) of the model's output."""
    attentions = getattr(output, "attentions", None)
    return SimpleNamespace(
        logits=output.logits[rows],
        hidden_states=tuple(layer[rows] for layer in output.hidden_states),
        attentions=attentions and tuple(layer[rows] for layer in attentions),
    )
