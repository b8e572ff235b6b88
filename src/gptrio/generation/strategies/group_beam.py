"""Diverse beam search, in groups that are kept different, and constrained beam search, which has a single group.

Shapes: `P` prompts, `K` beams, `G` beams of a group, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptrio.generation.loop import await_others
from gptrio.generation.options.config import eos_ids
from gptrio.generation.outputs import GenerateBeamDecoderOnlyOutput
from gptrio.generation.state import GenerationState
from gptrio.generation.strategies.beam import BEAM_PENALTY, finish
from gptrio.generation.strategies.hypotheses import Hypotheses, Hypothesis

Rerank = Callable[["Group", list["BeamCandidate"], Tensor], list["BeamCandidate"]]
Accept = Callable[[list[int]], bool]


@dataclass
class BeamCandidate:
    """A beam and the token that continues it: score with the token, token, index of the beam in its group."""

    score: float
    token: int
    beam: int


@dataclass
class Group:
    """Some beams of one prompt.

    Attributes:
        first: row of the first of them.
        ids: tokens of each.
        scores: sum of log-probabilities of each.
        origins: row of the scores that each new token of each was taken from.
        ended: the sequences that have ended.
        done: whether no beam can improve on those.
    """

    first: int
    ids: list[list[int]]
    scores: list[float]
    ended: Hypotheses
    origins: list[list[int]] = field(default_factory=list)
    done: bool = False

    def __post_init__(self) -> None:
        """Start without new tokens."""
        self.origins = [[] for _ in self.ids]

    @property
    def size(self) -> int:
        """G: number of beams."""
        return len(self.ids)

    @property
    def new_tokens(self) -> int:
        """Number of new tokens of each beam."""
        return len(self.origins[0])

    def advance(self, steps: list[BeamCandidate]) -> None:
        """Continue beams by tokens."""
        self.ids = [[*self.ids[step.beam], step.token] for step in steps]
        self.origins = [[*self.origins[step.beam], self.first + step.beam] for step in steps]
        self.scores = [step.score for step in steps]


def grouped_beam_search(
    call: GenerationState, rerank: Rerank | None = None, accept: Accept | None = None
) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Search in groups, one after the other in every step, so that processors can keep a group off the others' tokens.

    Args:
        call: the call.
        rerank: replaces the beams that a group would go on with, given the scores (G, V) of all its continuations.
        accept: whether a sequence may end where it wants to.
    """
    config, record = call.config, call.record
    size = config.num_beams // config.num_beam_groups
    groups = _start(call, size)  # of all prompts, the groups of a prompt side by side
    ids = call.ids
    while True:
        output = call.step(ids)
        logits = output.logits[:, -1].float()  # (P * K, V)
        with call.step.on_one_thread():
            processed = logits.log_softmax(-1)
        parents, tokens = torch.arange(len(ids), device=ids.device), torch.zeros_like(ids[:, -1])
        for number in range(config.num_beam_groups):
            members = groups[number :: config.num_beam_groups]
            rows = torch.tensor([group.first + i for group in members for i in range(size)], device=ids.device)
            with call.processing():
                scores = call.processors(ids[rows], processed[rows], current_tokens=tokens, beam_group_idx=number)
                processed[rows] = scores
            steps = _advance(call, members, scores, rerank, accept)
            first = torch.tensor([group.first for group in members for _ in range(size)], device=ids.device)
            parents[rows] = first + torch.tensor([step.beam for step in steps], device=ids.device)
            tokens[rows] = torch.tensor([step.token for step in steps], device=ids.device)
        record.add(output, logits, processed)
        call.step.reorder(parents)
        ids = torch.cat([ids[parents], tokens[:, None]], dim=1)
        finished = all(group.done for group in groups) or bool(call.criteria(ids, record.scores).all())
        if call.synced_gpus:
            await_others(call.model, ids, finished)
        if finished:
            return _finish(call, groups, accept)


def _start(call: GenerationState, size: int) -> list[Group]:
    rows = call.ids.tolist()
    scores = [0.0] + [BEAM_PENALTY] * (size - 1)  # the beams of a group are still the same: go on with the first
    config, prompt = call.config, call.ids.shape[1]
    return [
        Group(first, rows[first : first + size], list(scores), Hypotheses(size, config, prompt))
        for first in range(0, len(rows), size)
    ]


def _advance(
    call: GenerationState, members: list[Group], scores: Tensor, rerank: Rerank | None, accept: Accept | None
) -> list[BeamCandidate]:
    """Take one step in a group of every prompt, given its processed scores (P * G, V), and return the beams' steps."""
    ends, size, vocabulary = eos_ids(call.config), members[0].size, scores.shape[-1]
    before = torch.tensor([group.scores for group in members], dtype=torch.float32, device=scores.device)  # (P, G)
    with call.step.on_one_thread():
        totals = scores.view(len(members), size, -1) + before[..., None]  # (P, G, V)
        best, chosen = totals.flatten(1).topk(max(2, 1 + len(ends)) * size)
    result = []
    for group, own, sums, places in zip(members, totals, best.tolist(), chosen.tolist(), strict=True):
        if group.done:
            steps = [BeamCandidate(0.0, call.pad or 0, beam) for beam in range(size)]
        else:
            candidates = [BeamCandidate(s, p % vocabulary, p // vocabulary) for s, p in zip(sums, places, strict=True)]
            steps = _next_steps(group, candidates, ends, accept)
            if rerank is not None:
                steps = rerank(group, steps, own)
            group.done = group.ended.is_done(sums[0], group.new_tokens + 1)
        group.advance(steps)
        result += steps
    return result


def _next_steps(
    group: Group, candidates: list[BeamCandidate], ends: list[int], accept: Accept | None
) -> list[BeamCandidate]:
    """The best steps that go on; good ones that end are kept with the sequences that have ended."""
    steps: list[BeamCandidate] = []
    for rank, step in enumerate(candidates):
        if step.token not in ends:
            steps.append(step)
        elif rank < group.size and (accept is None or accept(group.ids[step.beam])):
            origins = [*group.origins[step.beam], group.first + step.beam]
            group.ended.add(group.ids[step.beam], step.score, origins, group.new_tokens + 1)
        if len(steps) == group.size:
            break
    return steps


def _finish(
    call: GenerationState, groups: list[Group], accept: Accept | None
) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """The best sequences of each prompt; beams that still run count as ended."""
    wanted, per_prompt = call.config.num_return_sequences, call.config.num_beam_groups
    for group in groups:
        if not group.done:
            _close(group, wanted, accept)
    best: list[Hypothesis] = []
    for first in range(0, len(groups), per_prompt):
        members = groups[first : first + per_prompt]
        kept = [item for group in members for item in group.ended.kept]
        best += sorted(kept, key=lambda item: item.score)[::-1][:wanted]
    return _as_tensors(call, best)


def _close(group: Group, wanted: int, accept: Accept | None) -> None:
    """Count running beams as ended: those that may end, and if they are too few the others too."""
    beams = list(zip(group.ids, group.scores, group.origins, strict=True))
    accepted = [beam for beam in beams if accept is None or accept(beam[0])]
    others = [beam for beam in beams if beam not in accepted] if len(accepted) < wanted else []
    for ids, score, origins in accepted + others:
        group.ended.add(ids, score, origins, group.new_tokens)


def _as_tensors(call: GenerationState, best: list[Hypothesis]) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Sequences with an end token where it fits, padded."""
    ends, limit = eos_ids(call.config), call.criteria.max_length
    longest = max(len(item.ids) for item in best)
    width = longest + bool(ends) if limit is None else min(longest + bool(ends), limit)
    pad = -1 if call.pad is None else call.pad
    rows = [[*item.ids, *ends[:1]][:width] for item in best]
    device = call.ids.device
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    new = max(len(item.origins) for item in best)
    origins = torch.tensor([item.origins + [-1] * (new - len(item.origins)) for item in best], device=device)
    scores = torch.tensor([item.score for item in best], dtype=torch.float32, device=device)
    return finish(call, ids, scores, origins)
