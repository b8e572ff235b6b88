"""Beam search and beam sampling, for all prompts at once, in tensors.

`group_beam` is a second beam search, because Transformers has two that return different numbers: this one adds and
compares scores in float32 on the device, fills a fixed number of slots with finished beams and divides by lengths that
count the end token; the other one keeps Python lists of hypotheses and decides when to stop by other rules.

Shapes: `P` prompts, `K` beams, `N` candidates kept for each prompt, `T` length so far, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.generation.loop import await_others
from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.outputs import GenerateBeamDecoderOnlyOutput
from gptrio.generation.sampling import draw
from gptrio.generation.state import GenerationState, OutputRecorder
from gptrio.generation.stopping import sequence_finish_reason
from gptrio.nn.fast_call import for_the_caller

BEAM_PENALTY = -1.0e9  # added to scores of beams that must not be chosen


@dataclass
class Beams:
    """Sequences with their scores.

    Attributes:
        ids: (P, K, T).
        scores: (P, K) sums of log-probabilities; of finished beams divided by their length's power.
        origins: (P, K, new tokens) row of the scores that each token was taken from; -1 after the end.
        finished: (P, K) whether a beam is finished; in `ended` the others are empty entries.
    """

    ids: Tensor
    scores: Tensor
    origins: Tensor
    finished: Tensor

    def select(self, indices: Tensor) -> Beams:
        """The beams at `indices` (P, n)."""
        return Beams(
            self.ids.gather(1, indices[..., None].expand(-1, -1, self.ids.shape[-1])),
            self.scores.gather(1, indices),
            self.origins.gather(1, indices[..., None].expand(-1, -1, self.origins.shape[-1])),
            self.finished.gather(1, indices),
        )

    def as_long_as(self, other: Beams, fill: int) -> Beams:
        """The beams with as many columns as another's."""
        columns = other.origins.shape[-1] - self.origins.shape[-1]
        ids = F.pad(self.ids, (0, columns), value=fill)
        return Beams(ids, self.scores, F.pad(self.origins, (0, columns), value=-1), self.finished)


def beam_search(state: GenerationState) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Keep the `num_beams` likeliest sequences of each prompt, or a sample, and return the best finished ones."""
    config, record = state.config, OutputRecorder(state.config)
    count, prompt = config.num_beams, state.ids.shape[1]
    fill = _fill(state)
    running, ended = _start(state), _start(state)
    ended.scores.fill_(BEAM_PENALTY)
    running.scores[:, 1:] = BEAM_PENALTY  # the beams of a prompt are still equal: continue the first only
    improvable = running.finished.new_ones(state.num_prompts, 1)
    some_ended = False
    while True:
        flat = running.ids.flatten(0, 1)
        output = state.step(flat)
        logits = output.logits[:, -1].float()  # (P * K, V)
        with state.step.on_one_thread():
            likelihoods = logits.log_softmax(-1)
        scores = state.process(flat, likelihoods)
        record.add(output, logits, scores)
        with state.step.on_one_thread():
            candidates = _candidates(state, running, scores)
        stops = state.criteria(candidates.ids.flatten(0, 1), record.scores).view(state.num_prompts, -1)  # (P, N)
        alive = candidates.scores + stops.float() * BEAM_PENALTY
        chosen = alive.topk(count).indices
        length = candidates.ids.shape[-1] - prompt
        if bool(stops.any()):  # until then there is nothing to compare with
            some_ended = True
            ended = _merge(config, ended.as_long_as(candidates, fill), candidates, stops, improvable, length)
        running = candidates.select(chosen)
        running.scores = alive.gather(1, chosen)
        state.step.reorder(running.origins[..., -1].flatten().long())
        finished = False
        if some_ended:
            improvable = improvable & _can_improve(config, running.scores, ended, length, prompt)
            full = config.early_stopping is True and bool(ended.finished.all())
            finished = full or not bool(improvable.any()) or bool(stops.all())
        if state.synced_gpus:
            await_others(state.model, flat, finished)
        if finished:
            return finish(state, record, *_best(state, ended))


def _fill(state: GenerationState) -> int:
    """Token after the end of a beam; a `pad_token_id` of 0 counts as not set, as in Transformers."""
    ends = eos_ids(state.config)
    if not ends:
        return -1 if state.pad is None else state.pad
    return state.pad or ends[0]


def _start(state: GenerationState) -> Beams:
    ids = state.ids.view(state.num_prompts, state.config.num_beams, -1)
    shape = ids.shape[:2]
    none = torch.zeros(shape, dtype=torch.bool, device=ids.device)
    return Beams(
        ids,
        torch.zeros(shape, dtype=torch.float32, device=ids.device),
        ids.new_empty(*shape, 0, dtype=torch.int32),
        none,
    )


def _candidates(state: GenerationState, running: Beams, scores: Tensor) -> Beams:
    """The N likeliest continuations by one token (or a sample of them), best first; at least K do not end.

    Args:
        running: the K unfinished beams.
        scores: (P * K, V) log-probabilities of the next token.
    """
    vocabulary, count = scores.shape[-1], state.config.num_beams
    number = max(2, 1 + len(eos_ids(state.config))) * count
    sums = (scores.view(state.num_prompts, count, -1) + running.scores[..., None]).flatten(1)  # (P, K * V)
    if state.config.do_sample:
        chosen = draw(sums.softmax(-1), number, state.generators)
        best = sums.gather(1, chosen)
    else:
        best, chosen = sums.topk(number)
    beams, tokens = chosen // vocabulary, chosen % vocabulary  # (P, N)
    result = running.select(beams)
    first = torch.arange(state.num_prompts, device=sums.device)[:, None] * count
    rows = (beams + first).to(result.origins.dtype)
    result.ids = torch.cat([result.ids, tokens[..., None]], dim=-1)
    result.origins = torch.cat([result.origins, rows[..., None]], dim=-1)
    result.scores = best
    return result


def _merge(
    config: GenerationConfig, ended: Beams, candidates: Beams, stops: Tensor, improvable: Tensor, length: int
) -> Beams:
    """The K best of the beams that ended before and the candidates that end now.

    Args:
        stops: (P, N) candidates that end.
        improvable: (P, 1) prompts whose beams may still get better.
        length: new tokens of a candidate.
    """
    count = config.num_beams
    ends_now = stops & (torch.arange(stops.shape[1], device=stops.device) < count)  # the others are reserves
    scores = candidates.scores / length ** _exponent(config)
    full = ended.finished.all(-1, keepdim=True) & (config.early_stopping is True)
    scores = scores + (full.float() + (~improvable).float() + (~ends_now).float()) * BEAM_PENALTY
    merged = Beams(
        torch.cat([ended.ids, candidates.ids], dim=1),
        torch.cat([ended.scores, scores], dim=1),
        torch.cat([ended.origins, candidates.origins], dim=1),
        torch.cat([ended.finished, ends_now], dim=1),
    )
    return merged.select(merged.scores.topk(count).indices)


def _can_improve(config: GenerationConfig, running: Tensor, ended: Beams, length: int, prompt: int) -> Tensor:
    """(P, 1) whether the best running beam could still beat the worst that ended, at the length assumed for it."""
    exponent = _exponent(config)
    longest = config.early_stopping == "never" and exponent > 0 and config.max_length is not None
    assumed = config.max_length - prompt if longest and config.max_length is not None else length
    best: Tensor = running[:, :1] / assumed**exponent
    worst: Tensor = ended.scores.min(dim=1, keepdim=True).values.where(ended.finished, BEAM_PENALTY)
    return (best > worst).any(-1, keepdim=True)


def _exponent(config: GenerationConfig) -> float:
    return 1.0 if config.length_penalty is None else config.length_penalty


def _best(state: GenerationState, ended: Beams) -> tuple[Tensor, Tensor, Tensor]:
    """The best beams of each prompt, as long as the longest: ids, scores and origins, as `finish` takes them."""
    number = state.config.num_return_sequences
    ids, origins = ended.ids[:, :number].flatten(0, 1), ended.origins[:, :number].flatten(0, 1)
    length = int((origins >= 0).sum(-1).max())
    return ids[:, : state.ids.shape[1] + length], ended.scores[:, :number].flatten(), origins[:, :length]


def finish(
    state: GenerationState, record: OutputRecorder, ids: Tensor, scores: Tensor, origins: Tensor
) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Report why each sequence ends, and return the result that the caller requested.

    Args:
        state: the call.
        record: the requested outputs of every step.
        ids: (rows, T).
        scores: (rows,).
        origins: (rows, new tokens) row of the scores that each token was taken from.
    """
    if state.on_finish is not None:
        for row, new in enumerate((origins >= 0).sum(-1).tolist()):
            reason = sequence_finish_reason(state.criteria, ids[row, : state.ids.shape[1] + new])
            with for_the_caller():
                state.on_finish(row, reason, new)
    if not record.is_active:
        return ids
    return GenerateBeamDecoderOnlyOutput(
        ids,
        sequences_scores=scores if state.config.output_scores else None,
        beam_indices=origins,
        past_key_values=state.step.cache,
        **record.tuples(),
    )
