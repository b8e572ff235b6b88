"""Results of `generate`: pytrees, as the results of the models are."""

from __future__ import annotations

from dataclasses import dataclass

from jax import Array

from gptrio.jax.outputs import FlaxModelOutput


@dataclass
class FlaxGreedySearchOutput(FlaxModelOutput):
    """Result of greedy search: sequences (B, max_length), padded after the end of a row."""

    sequences: Array | None = None


@dataclass
class FlaxSampleOutput(FlaxModelOutput):
    """Result of sampling: sequences (B * num_return_sequences, max_length), padded after the end of a row."""

    sequences: Array | None = None


@dataclass
class FlaxBeamSearchOutput(FlaxModelOutput):
    """Result of beam search: sequences (B * num_return_sequences, max_length), best first; scores, one for each."""

    sequences: Array | None = None
    scores: Array | None = None
