"""Diverse beam search, in groups that are penalised for equal tokens, and constrained beam search, in one group.

It works on Python lists, prompt by prompt, as Transformers' older beam search does. It keeps other sequences than
`beam` does and stops at other times, so that neither can replace the other.

Shapes: `P` prompts, `K` beams, `G` beams of a group, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptrio.generation.loop import await_others
from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.outputs import GenerateBeamDecoderOnlyOutput
from gptrio.generation.state import GenerationState, OutputRecorder
from gptrio.generation.strategies.beam import BEAM_PENALTY, finish

Rerank = Callable[["Group", list["BeamCandidate"], Tensor], list["BeamCandidate"]]
Accept = Callable[[list[int]], bool]


@dataclass
class Hypothesis:
    """A finished sequence.

    Attributes:
        score: sum of log-probabilities over a power of the length.
        ids: the tokens, the end left out.
        origins: row of the scores that each new token was taken from, the end included.
    """

    score: float
    ids: list[int]
    origins: list[int]


class Hypotheses:
    """The best `size` finished sequences.

    Args:
        size: how many.
        config: its length penalty and early stopping are used.
        prompt: length of the prompt.
    """

    def __init__(self, size: int, config: GenerationConfig, prompt: int) -> None:
        self.size = size
        self.kept: list[Hypothesis] = []
        self._early_stopping = config.early_stopping
        self._exponent = 1.0 if config.length_penalty is None else config.length_penalty
        self._longest = None if config.max_length is None else config.max_length - prompt

    def add(self, ids: list[int], total: float, origins: list[int], length: int) -> None:
        """Keep a sequence if there are fewer than `size`, or in place of a worse one.

        Args:
            ids: its tokens.
            total: sum of log-probabilities.
            origins: see `Hypothesis`.
            length: number of new tokens that the score is divided by.
        """
        new = Hypothesis(total / length**self._exponent, ids, origins)
        if len(self.kept) == self.size:
            worst = min(self.kept, key=lambda item: item.score)
            if new.score <= worst.score:
                return
            self.kept.remove(worst)
        self.kept.append(new)

    def is_done(self, best: float, length: int) -> bool:
        """Whether no running beam can replace a sequence any more.

        Args:
            best: best sum of log-probabilities of a running beam.
            length: its new tokens.
        """
        if len(self.kept) < self.size:
            return False
        if self._early_stopping is True:
            return True
        if self._early_stopping == "never" and self._exponent > 0 and self._longest is not None:
            length = self._longest
        reachable: float = best / length**self._exponent
        return min(item.score for item in self.kept) >= reachable


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
        self.origins = [[] for _ in self.ids]

    @property
    def size(self) -> int:
        """G: number of beams."""
        return len(self.ids)

    @property
    def new_tokens(self) -> int:
        """Number of new tokens of each beam."""
        return len(self.origins[0])

    def advance(self, continuations: list[BeamCandidate]) -> None:
        """Append a token to each of the chosen beams."""
        self.ids = [[*self.ids[candidate.beam], candidate.token] for candidate in continuations]
        self.origins = [[*self.origins[candidate.beam], self.first + candidate.beam] for candidate in continuations]
        self.scores = [candidate.score for candidate in continuations]


def grouped_beam_search(
    state: GenerationState, rerank: Rerank | None = None, accept: Accept | None = None
) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Search in groups, one after the other in every step, so that processors can penalise tokens of earlier groups.

    Args:
        state: the call.
        rerank: chooses the continuations of a group anew, given the likeliest ones and the scores (G, V) of all.
        accept: whether a sequence may end.
    """
    config, record = state.config, OutputRecorder(state.config)
    size = config.num_beams // config.num_beam_groups
    groups = _start(state, size)  # of all prompts, the groups of a prompt side by side
    ids = state.ids
    while True:
        output = state.step(ids)
        logits = output.logits[:, -1].float()  # (P * K, V)
        with state.step.on_one_thread():
            processed = logits.log_softmax(-1)
        parents, tokens = torch.arange(len(ids), device=ids.device), torch.zeros_like(ids[:, -1])
        for number in range(config.num_beam_groups):
            members = groups[number :: config.num_beam_groups]
            rows = torch.tensor([group.first + i for group in members for i in range(size)], device=ids.device)
            with state.processing():
                scores = state.processors(ids[rows], processed[rows], current_tokens=tokens, beam_group_idx=number)
                processed[rows] = scores
            continuations = _advance(state, members, scores, rerank, accept)
            first = torch.tensor([group.first for group in members for _ in range(size)], device=ids.device)
            parents[rows] = first + torch.tensor([candidate.beam for candidate in continuations], device=ids.device)
            tokens[rows] = torch.tensor([candidate.token for candidate in continuations], device=ids.device)
        record.add(output, logits, processed)
        state.step.reorder(parents)
        ids = torch.cat([ids[parents], tokens[:, None]], dim=1)
        finished = all(group.done for group in groups) or bool(state.criteria(ids, record.scores).all())
        if state.synced_gpus:
            await_others(state.model, ids, finished)
        if finished:
            return finish(state, record, *_as_tensors(state, _best(state, groups, accept)))


def _start(state: GenerationState, size: int) -> list[Group]:
    rows = state.ids.tolist()
    scores = [0.0] + [BEAM_PENALTY] * (size - 1)  # the beams of a group are still equal: continue the first only
    config, prompt = state.config, state.ids.shape[1]
    return [
        Group(first, rows[first : first + size], list(scores), Hypotheses(size, config, prompt))
        for first in range(0, len(rows), size)
    ]


def _advance(
    state: GenerationState, members: list[Group], scores: Tensor, rerank: Rerank | None, accept: Accept | None
) -> list[BeamCandidate]:
    """Take one step in a group of every prompt, given its processed scores (P * G, V); return the continuations."""
    ends, size, vocabulary = eos_ids(state.config), members[0].size, scores.shape[-1]
    before = torch.tensor([group.scores for group in members], dtype=torch.float32, device=scores.device)  # (P, G)
    with state.step.on_one_thread():
        totals = scores.view(len(members), size, -1) + before[..., None]  # (P, G, V)
        best, chosen = totals.flatten(1).topk(max(2, 1 + len(ends)) * size)
    result = []
    for group, own, sums, indices in zip(members, totals, best.tolist(), chosen.tolist(), strict=True):
        if group.done:
            continuations = [BeamCandidate(0.0, state.pad or 0, beam) for beam in range(size)]
        else:
            candidates = [
                BeamCandidate(total, index % vocabulary, index // vocabulary)
                for total, index in zip(sums, indices, strict=True)
            ]
            continuations = _continuations(group, candidates, ends, accept)
            if rerank is not None:
                continuations = rerank(group, continuations, own)
            group.done = group.ended.is_done(sums[0], group.new_tokens + 1)
        group.advance(continuations)
        result += continuations
    return result


def _continuations(
    group: Group, candidates: list[BeamCandidate], ends: list[int], accept: Accept | None
) -> list[BeamCandidate]:
    """The best candidates that do not end; good ones that end are added to the finished sequences."""
    continuations: list[BeamCandidate] = []
    for rank, candidate in enumerate(candidates):
        if candidate.token not in ends:
            continuations.append(candidate)
        elif rank < group.size and (accept is None or accept(group.ids[candidate.beam])):
            origins = [*group.origins[candidate.beam], group.first + candidate.beam]
            group.ended.add(group.ids[candidate.beam], candidate.score, origins, group.new_tokens + 1)
        if len(continuations) == group.size:
            break
    return continuations


def _best(state: GenerationState, groups: list[Group], accept: Accept | None) -> list[Hypothesis]:
    """The best sequences of each prompt, best first, later ones before equal ones; running beams count as finished."""
    number, per_prompt = state.config.num_return_sequences, state.config.num_beam_groups
    for group in groups:
        if not group.done:
            _close(group, number, accept)
    best: list[Hypothesis] = []
    for first in range(0, len(groups), per_prompt):
        kept = [item for group in groups[first : first + per_prompt] for item in group.ended.kept]
        best += sorted(kept, key=lambda item: item.score)[::-1][:number]
    return best


def _close(group: Group, number: int, accept: Accept | None) -> None:
    """Add running beams to the finished sequences: those that may end, and if these are too few, the others."""
    beams = list(zip(group.ids, group.scores, group.origins, strict=True))
    accepted = [beam for beam in beams if accept is None or accept(beam[0])]
    others = [beam for beam in beams if beam not in accepted] if len(accepted) < number else []
    for ids, score, origins in accepted + others:
        group.ended.add(ids, score, origins, group.new_tokens)


def _as_tensors(state: GenerationState, best: list[Hypothesis]) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences with an end token where it fits, padded, their scores and origins, as `finish` takes them."""
    ends, limit = eos_ids(state.config), state.criteria.max_length
    longest = max(len(item.ids) for item in best)
    width = longest + bool(ends) if limit is None else min(longest + bool(ends), limit)
    pad = -1 if state.pad is None else state.pad
    rows = [[*item.ids, *ends[:1]][:width] for item in best]
    device = state.ids.device
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    new = max(len(item.origins) for item in best)
    origins = torch.tensor([item.origins + [-1] * (new - len(item.origins)) for item in best], device=device)
    return ids, torch.tensor([item.score for item in best], dtype=torch.float32, device=device), origins
