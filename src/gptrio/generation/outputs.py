"""Results of `generate` with `return_dict_in_generate`.

Shapes: `B` prompts times sequences for each (beam search keeps times beams), `T` length, `V` vocabulary, `N` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptrio.outputs import ModelOutput

if TYPE_CHECKING:
    import torch

    from gptrio.cache import Cache


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """Result without beams.

    sequences (B, T); scores and logits: N tensors (B, V), processed and raw; attentions and hidden_states: N tuples as
    the model returns them; past_key_values: the cache, which holds all tokens but the last.
    """

    sequences: torch.Tensor
    scores: tuple[torch.Tensor, ...] | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[tuple[torch.Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[torch.Tensor, ...], ...] | None = None
    past_key_values: Cache | tuple[Any, ...] | None = None


@dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Result of beam search.

    As GenerateDecoderOnlyOutput, of all beams; sequences_scores (B,); beam_indices (B, N): the row of the scores that
    each token was taken from, -1 where a sequence has ended.
    """

    sequences: torch.Tensor
    sequences_scores: torch.Tensor | None = None
    scores: tuple[torch.Tensor, ...] | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    beam_indices: torch.Tensor | None = None
    attentions: tuple[tuple[torch.Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[torch.Tensor, ...], ...] | None = None
    past_key_values: Cache | tuple[Any, ...] | None = None


GreedySearchDecoderOnlyOutput = GenerateDecoderOnlyOutput
SampleDecoderOnlyOutput = GenerateDecoderOnlyOutput
ContrastiveSearchDecoderOnlyOutput = GenerateDecoderOnlyOutput
BeamSearchDecoderOnlyOutput = GenerateBeamDecoderOnlyOutput
BeamSampleDecoderOnlyOutput = GenerateBeamDecoderOnlyOutput

GenerateOutput = GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


def compute_transition_scores(
    sequences: torch.Tensor,
    scores: Sequence[torch.Tensor],
    beam_indices: torch.Tensor | None = None,
    normalize_logits: bool = False,
) -> torch.Tensor:
    """Look up the score of each generated token.

    Args:
        sequences: (B, T) what `generate` returned.
        scores: N tensors (rows, V) that it returned with `output_scores=True`.
        beam_indices: (B, N) what beam search returned; each sequence is its own row without it.
        normalize_logits: turn the scores into log-probabilities.

    Returns:
        (B, N), 0 where a beam has ended.
    """
    import torch

    table = torch.stack(tuple(scores))  # (N, rows, V)
    if normalize_logits:
        table = table.log_softmax(-1)
    if beam_indices is None:
        beam_indices = torch.arange(table.shape[1], device=sequences.device)[:, None].expand(-1, len(table))
    ended = beam_indices < 0
    length = int((~ended).sum(-1).max())
    rows, ended = beam_indices[:, :length].clamp(min=0), ended[:, :length]
    steps = torch.arange(length, device=sequences.device)
    tokens = sequences[:, sequences.shape[1] - length :]
    return table[steps, rows, tokens].masked_fill(ended, 0)
