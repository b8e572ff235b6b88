"""Greedy search and sampling: one token after the other, as a generator of steps, and the consumers of the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gptrio.generation.outputs import GenerateDecoderOnlyOutput
from gptrio.generation.protocol import CausalLM
from gptrio.generation.sampling import choose
from gptrio.generation.state import GenerationState, SequenceStatus, StepOutput
from gptrio.nn.fast_call import for_the_caller

Refine = Callable[[Any, Tensor], Tensor]


def decode(state: GenerationState, refine: Refine | None = None, **flags: Any) -> Tensor | GenerateDecoderOnlyOutput:
    """Greedy search or sampling until every row is finished; see `decode_steps`."""
    return drain(state, decode_steps(state, refine, **flags))


def decode_steps(state: GenerationState, refine: Refine | None = None, **flags: Any) -> Iterator[StepOutput]:
    """Append the most likely token of each row, or one drawn from the distribution, until every row is finished.

    Args:
        state: the call.
        refine: maps the model's output and its logits (B, V) to the logits to go on with.
        **flags: further arguments of the model's forward.
    """
    status = SequenceStatus(state, state.ids)
    while True:
        output = state.step(status.ids, **flags)
        logits = output.logits[:, -1].float()  # (B, V)
        scores = state.process(status.ids, logits if refine is None else refine(output, logits))
        status.record.add(output, logits, scores)
        with state.step.on_one_thread():
            tokens = choose(scores, state.config.do_sample, state.generators)
            step = status.append(tokens, scores)
        yield step
        if step.is_last:
            return


def drain(state: GenerationState, steps: Iterable[StepOutput]) -> Tensor | GenerateDecoderOnlyOutput:
    """Run all steps, pass each to the streamer and the caller, and return the result that the caller requested."""
    for step in steps:
        stream(state, step.tokens)
        if step.finished and (state.on_finish or state.streamer) is not None:
            report_finished(state, step)
        if state.synced_gpus:
            await_others(state.model, step.ids, step.is_last)
    if state.streamer is not None:
        with for_the_caller():
            state.streamer.end()
    record = step.status.record
    if not record.is_active:
        return step.ids
    return GenerateDecoderOnlyOutput(step.ids, past_key_values=state.step.cache, **record.tuples())


def stream(state: GenerationState, tokens: Tensor) -> None:
    """Pass tokens (B,) or (B, n) to the streamer, if there is one."""
    if state.streamer is not None:
        with for_the_caller():
            state.streamer.put(tokens.clone().cpu())  # a clone can be trained on


def report_finished(state: GenerationState, step: StepOutput) -> None:
    """Report the rows that a step finishes to `on_finish`, and to the streamer if other rows continue."""
    end_row = None if step.is_last else getattr(state.streamer, "end_row", None)
    number = step.ids.shape[1] - state.ids.shape[1]
    with for_the_caller():
        for row, reason in step.finished.items():
            if state.on_finish is not None:
                state.on_finish(row, reason, number)
            if end_row is not None:
                end_row(row)


def await_others(model: CausalLM, ids: Tensor, finished: bool) -> None:
    """Exchange with the other processes of a sharded model who has finished; run on, when finished, until all have."""
    import torch.distributed as dist

    while True:
        running = torch.tensor(0.0 if finished else 1.0, dtype=torch.float32, device=ids.device)
        dist.all_reduce(running)
        if not finished or not running:
            return
        model(input_ids=ids[:, -1:], use_cache=False)
