"""Constrained beam search: beams that have fulfilled more of the constraints are kept beside likelier ones.

Source: Post & Vilar, "Fast Lexically Constrained Decoding with Dynamic Beam Allocation", arXiv:1804.06609.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, zip_longest
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


def constrained_beam_search(state: GenerationState) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Search for the likeliest sequences that fulfil `constraints` and `force_words_ids`."""
    if state.config.num_beams == 1:
        raise OptionError("constraints and force_words_ids need beams to choose among; pass num_beams=2 or more")
    constraints = constraints_of(state.config)

    def state_of(ids: list[int]) -> ConstraintListState:
        progress = ConstraintListState(constraints)
        progress.reset(ids)
        return progress

    def accept(ids: list[int]) -> bool:
        return state_of(ids).completed

    def rerank(group: Group, continuations: list[BeamCandidate], totals: Tensor) -> list[BeamCandidate]:
        return _rerank(group, continuations, totals, state_of)

    return grouped_beam_search(state, rerank, accept)


def constraints_of(config: GenerationConfig) -> list[Constraint]:
    """The constraints of the options; a list of alternatives in `force_words_ids` is fulfilled by any of them.

    Raises:
        OptionError: there is none, or one is not a list of token ids.
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
    group: Group,
    continuations: list[BeamCandidate],
    totals: Tensor,
    state_of: Callable[[list[int]], ConstraintListState],
) -> list[BeamCandidate]:
    """Add the tokens that advance a constraint, and take the best of each bank (number of fulfilled steps) in turn.

    Args:
        group: the beams.
        continuations: their likeliest continuations.
        totals: (G, V) scores of all continuations.
        state_of: returns the progress of a sequence.
    """
    candidates = list(continuations)
    sequences = [[*group.ids[each.beam], each.token] for each in continuations]
    for beam, ids in enumerate(group.ids):
        progress = state_of(ids)
        for token in [] if progress.completed else progress.advance() or []:
            if [*ids, token] not in sequences:
                sequences.append([*ids, token])
                candidates.append(BeamCandidate(float(totals[beam, token]), token, beam))
    if len(candidates) == len(continuations):
        return continuations
    banks = [state_of(sequence).get_bank() for sequence in sequences]
    scores = torch.tensor([candidate.score for candidate in candidates], dtype=torch.float32, device="cpu")
    order = (torch.tensor(banks, device="cpu") * 100 + scores).sort(descending=True).indices.tolist()
    by_bank = [list(indices) for _, indices in groupby(order, key=banks.__getitem__)]
    in_turn = [index for turn in zip_longest(*by_bank) for index in turn if index is not None]
    return [candidates[index] for index in in_turn[: group.size]]
