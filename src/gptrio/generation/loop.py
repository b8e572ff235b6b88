"""Greedy search and sampling: one token after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptrio.generation.outputs import GenerateDecoderOnlyOutput
from gptrio.generation.state import GenerationState, Generators, SequenceStatus


def decode(
    call: GenerationState, refine: Callable[[Any, Tensor], Tensor] | None = None, **flags: Any
) -> Tensor | GenerateDecoderOnlyOutput:
    """Append the most likely token, or one drawn from the distribution, until every row is finished.

    Args:
        call: the call.
        refine: maps the model's output and its logits (B, V) to the logits to go on with.
        **flags: further arguments of the model's forward.
    """
    ids, record = call.ids, call.record
    rows = SequenceStatus(call, ids.shape[0])
    while True:
        output = call.step(ids, **flags)
        logits = output.logits[:, -1].float()  # (B, V)
        scores = call.process(ids, logits if refine is None else refine(output, logits))
        record.add(output, logits, scores)
        with call.step.on_one_thread():
            tokens = rows.fill(choose(scores, call.config.do_sample, call.generators))
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        call.put(tokens)
        finished = rows.all_finished(ids, record.scores)
        if call.synced_gpus:
            await_others(call.model, ids, finished)
        if finished:
            return call.finish(ids)


def choose(scores: Tensor, do_sample: bool, generators: Generators = None) -> Tensor:
    """The most likely token of each row of scores (B, V), or one drawn from their softmax: (B,)."""
    return draw(scores.softmax(-1), 1, generators)[:, 0] if do_sample else most_likely(scores)


def most_likely(scores: Tensor) -> Tensor:
    """The first largest of each row of scores (B, V): (B,). On a CPU numpy finds it in a tenth of torch's time."""
    if type(scores) is Tensor and scores.is_cpu and scores.dtype is torch.float32:
        return torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)


def draw(probabilities: Tensor, number: int, generators: Generators) -> Tensor:
    """Draw tokens (B, number) without replacement from probabilities (B, V)."""
    if generators is None or isinstance(generators, torch.Generator):
        return torch.multinomial(probabilities, number, generator=generators)
    rows = zip(probabilities, generators, strict=True)
    return torch.stack([torch.multinomial(row, number, generator=own) for row, own in rows])


def await_others(model: Any, ids: Tensor, finished: bool) -> None:
    """Tell the processes of a sharded model whether this one has finished; if so, run along until all have."""
    import torch.distributed as dist

    while True:
        running = torch.tensor(0.0 if finished else 1.0, dtype=torch.float32, device=ids.device)
        dist.all_reduce(running)
        if not finished or not running:
            return
        model(input_ids=ids[:, -1:], use_cache=False)
