"""Contrastive search: among the likeliest tokens, the one that is least like what stands before it.

Source: Su et al., "A Contrastive Framework for Neural Text Generation", arXiv:2202.06417.
Shapes: `B` rows, `K` candidates, `T` length so far, `C` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.generation.loop import await_others
from gptrio.generation.outputs import GenerateDecoderOnlyOutput
from gptrio.generation.state import GenerationState, SequenceStatus


def contrastive_search(call: GenerationState) -> Tensor | GenerateDecoderOnlyOutput:
    """Append the candidate of the best sum of probability and unlikeness.

    The candidates of all rows are tried together, in K rows for each; with `low_memory` one after the other.
    """
    config, record = call.config, call.record
    copies = call.ids.shape[0] // call.prompts  # K, or 1 with low_memory
    ids = call.ids[::copies]
    is_real = None if call.prompt.attention_mask is None else call.prompt.attention_mask[::copies]
    rows = SequenceStatus(call, ids.shape[0])
    output = call.step(call.ids, output_hidden_states=True)
    output = _rows_of(output, torch.arange(0, call.ids.shape[0], copies, device=ids.device))
    past = F.normalize(output.hidden_states[-1], dim=-1)  # (B, T, C)
    while True:
        logits = output.logits[:, -1].float()  # (B, V)
        scores = call.process(ids, logits)
        record.add(output, logits, scores)
        likely, candidates = scores.softmax(-1).topk(config.top_k or 1)  # (B, K)
        tried = _try_in_turn(call, ids, candidates) if copies == 1 else _try_together(call, ids, candidates)
        states = F.normalize(tried.hidden_states[-1][:, -1], dim=-1).view(*candidates.shape, -1)  # (B, K, C)
        best = _least_alike(likely, states, past, is_real, config.penalty_alpha or 0.0)  # (B,)
        output = _keep(call, ids, candidates, tried, best)
        tokens = rows.fill(candidates.gather(1, best[:, None])[:, 0])
        past = torch.cat([past, states[torch.arange(len(best), device=best.device), best][:, None]], dim=1)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        call.put(tokens)
        finished = rows.all_finished(ids, record.scores)
        if call.synced_gpus:
            await_others(call.model, ids, finished)
        if finished:
            return call.finish(ids)


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


def _try_together(call: GenerationState, ids: Tensor, candidates: Tensor) -> Any:
    """The model's output (B * K rows) for each candidate at the end of its row."""
    longer = ids.repeat_interleave(candidates.shape[1], dim=0)
    return call.step(torch.cat([longer, candidates.reshape(-1, 1)], dim=1), output_hidden_states=True)


def _try_in_turn(call: GenerationState, ids: Tensor, candidates: Tensor) -> Any:
    """The same, a candidate at a time, with no more memory than one takes."""
    outputs = []
    for tokens in candidates.unbind(1):
        outputs.append(call.step(torch.cat([ids, tokens[:, None]], dim=1), output_hidden_states=True))
        call.step.crop(ids.shape[1])
    last = [output.hidden_states[-1][:, -1:] for output in outputs]
    return SimpleNamespace(hidden_states=(torch.stack(last, dim=1).flatten(0, 1),))


def _keep(call: GenerationState, ids: Tensor, candidates: Tensor, tried: Any, best: Tensor) -> Any:
    """Go on from the candidates at `best` (B,): their part of the output, and a cache that holds them."""
    if call.ids.shape[0] == ids.shape[0]:
        tokens = candidates.gather(1, best[:, None])
        return call.step(torch.cat([ids, tokens], dim=1), output_hidden_states=True)
    copies = candidates.shape[1]
    rows = torch.arange(len(best), device=best.device) * copies + best
    call.step.reorder(rows.repeat_interleave(copies))
    return _rows_of(tried, rows)


def _rows_of(output: Any, rows: Tensor) -> Any:
    """SequenceStatus of the model's output."""
    attentions = getattr(output, "attentions", None)
    return SimpleNamespace(
        logits=output.logits[rows],
        hidden_states=tuple(layer[rows] for layer in output.hidden_states),
        attentions=attentions and tuple(layer[rows] for layer in attentions),
    )
