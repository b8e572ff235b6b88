"""Constrained beam search: beams that have come further with what must be written are kept beside likelier ones.

Source: Post & Vilar, "Fast Lexically Constrained Decoding with Dynamic Beam Allocation", arXiv:1804.06609.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptrio.errors import OptionError
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.outputs import GenerateBeamDecoderOnlyOutput
from gptrio.generation.state import GenerationState
from gptrio.generation.strategies.constraints import (
    Constraint,
    ConstraintListState,
    DisjunctiveConstraint,
    PhrasalConstraint,
)
from gptrio.generation.strategies.group_beam import BeamCandidate, Group, grouped_beam_search


def constrained_beam_search(call: GenerationState) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Search for the likeliest sequences that hold what `constraints` and `force_words_ids` ask for."""
    if call.config.num_beams == 1:
        raise OptionError("constraints and force_words_ids need beams to choose among; pass num_beams=2 or more")
    constraints = constraints_of(call.config)

    def state_of(ids: list[int]) -> ConstraintListState:
        state = ConstraintListState(constraints)
        state.reset(ids)
        return state

    def accept(ids: list[int]) -> bool:
        return state_of(ids).completed

    def rerank(group: Group, steps: list[BeamCandidate], totals: Tensor) -> list[BeamCandidate]:
        return _rerank(group, steps, totals, state_of)

    return grouped_beam_search(call, rerank, accept)


def constraints_of(config: GenerationConfig) -> list[Constraint]:
    """The constraints of the options; a list of words in `force_words_ids` asks for any of them.

    Raises:
        OptionError: there is none, or one is no list of token ids.
    """
    constraints: list[Constraint] = list(config.constraints or ())
    for words in config.force_words_ids or ():
        kind: Callable[[Any], Constraint] = PhrasalConstraint
        if words and isinstance(words[0], (list, tuple)):
            kind = DisjunctiveConstraint
        constraints.append(kind(words))
    if not constraints:
        raise OptionError("constraints and force_words_ids are empty; leave them out, or name what must be written")
    return constraints


def _rerank(
    group: Group, steps: list[BeamCandidate], totals: Tensor, state_of: Callable[[list[int]], ConstraintListState]
) -> list[BeamCandidate]:
    """Add the steps that bring a constraint on, and take the best of each number of fulfilled steps in turn.

    Args:
        group: the beams.
        steps: what they would go on with.
        totals: (G, V) scores of all continuations.
        state_of: how far a sequence has come.
    """
    sequences = [[*group.ids[step.beam], step.token] for step in steps]
    banks = [state_of(sequence).get_bank() for sequence in sequences]
    added: list[BeamCandidate] = []
    for beam, ids in enumerate(group.ids):
        state = state_of(ids)
        for token in [] if state.completed else state.advance() or []:
            sequence = [*ids, token]
            if sequence in sequences:
                continue
            sequences.append(sequence)
            further = state.copy(stateful=True)
            further.add(token)
            banks.append(further.get_bank())
            added.append(BeamCandidate(float(totals[beam, token]), token, beam))
    if not added:
        return steps
    every = steps + added
    values = torch.tensor(banks, device="cpu") * 100
    values = values + torch.tensor([step.score for step in every], dtype=torch.float32, device="cpu")
    order = values.sort(descending=True).indices.tolist()
    ranked: list[tuple[int, int]] = []
    for index, place in enumerate(order):
        same = index > 0 and banks[place] == banks[order[index - 1]]
        ranked.append((ranked[-1][0] + 1 if same else 0, place))
    ranked.sort(key=lambda pair: pair[0])  # stable: higher banks first among equal ranks
    return [every[place] for _, place in ranked[: group.size]]
