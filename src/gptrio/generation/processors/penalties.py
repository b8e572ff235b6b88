"""Processors that change the scores of tokens by the tokens before them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptrio.config.fields import check_number, has_type
from gptrio.errors import InputError, OptionError
from gptrio.generation.processors.base import LogitsProcessor, TokenIds, TokenIdsAttribute, repeat_prompts


def _penalize(scores: torch.Tensor, tokens: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide positive scores (B, V) of `tokens` (B, T) by the penalty and multiply negative ones by it, once."""
    chosen = scores.gather(1, tokens)
    return scores.scatter(1, tokens, torch.where(chosen < 0, chosen * penalty, chosen / penalty))


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Lower the scores of the tokens that are in a row already, once each, however often they occur.

    Source: Keskar et al., "CTRL", arXiv:1909.05858.

    Args:
        penalty: above 1 lowers the scores of repeated tokens, below 1 raises them.
        prompt_ignore_length: number of first tokens, such as the prompt's, that are ignored.
    """

    def __init__(self, penalty: float, prompt_ignore_length: int | None = None) -> None:
        self.penalty = check_number("repetition_penalty", penalty, float, gt=0)
        if prompt_ignore_length is not None:
            check_number("prompt_ignore_length", prompt_ignore_length, int, ge=0)
        self.prompt_ignore_length = prompt_ignore_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the tokens of ids (B, T) penalised."""
        return _penalize(scores, input_ids[:, self.prompt_ignore_length or 0 :], self.penalty)


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Make the tokens of the prompt likelier: the inverse of the repetition penalty, over the prompt alone.

    Args:
        penalty: above 1 favours tokens of the prompt.
        encoder_input_ids: (E, T) the prompts; B must be a multiple of E.
    """

    def __init__(self, penalty: float, encoder_input_ids: torch.Tensor) -> None:
        self.penalty = 1 / check_number("encoder_repetition_penalty", penalty, float, gt=0)
        self.encoder_input_ids = encoder_input_ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the prompt's tokens favoured."""
        prompts = repeat_prompts(self.encoder_input_ids, scores.shape[0], "encoder_input_ids")
        return _penalize(scores, prompts, self.penalty)


class HammingDiversityLogitsProcessor(LogitsProcessor):
    """In group beam search, lower the scores of tokens that earlier groups have chosen at this step.

    Source: Vijayakumar et al., "Diverse Beam Search", arXiv:1610.02424.

    Args:
        diversity_penalty: subtracted from a token's score for each beam that chose it; above 0.
        num_beams: all beams of a prompt, at least 2.
        num_beam_groups: groups of beams, at least 2.
    """

    def __init__(self, diversity_penalty: float, num_beams: int, num_beam_groups: int) -> None:
        self.diversity_penalty = check_number("diversity_penalty", diversity_penalty, float, gt=0)
        self.num_beams = check_number("num_beams", num_beams, int, ge=2)
        groups = check_number("num_beam_groups", num_beam_groups, int, ge=2)
        if groups > self.num_beams:
            raise OptionError(f"num_beam_groups={groups} is more than num_beams={num_beams}")
        self.group_size = self.num_beams // groups

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,
        current_tokens: torch.Tensor | None = None,
        beam_group_idx: int | None = None,
    ) -> torch.Tensor:
        """Return the scores of one group.

        Args:
            input_ids: (B * group size, T) the tokens so far; not used.
            scores: (B * group size, V) scores of the group.
            current_tokens: (B * num_beams,) tokens chosen at this step by the groups before it.
            beam_group_idx: index of the group.
        """
        if current_tokens is None or beam_group_idx is None:
            raise InputError("HammingDiversityLogitsProcessor needs current_tokens and beam_group_idx")
        before = beam_group_idx * self.group_size
        if before == 0:
            return scores
        chosen = current_tokens.view(-1, self.num_beams)[:, :before].to(scores.device)  # (B, before)
        counts = torch.zeros(chosen.shape[0], scores.shape[-1], dtype=torch.float32, device=scores.device)
        counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=counts.dtype))
        penalties = self.diversity_penalty * counts.repeat_interleave(scores.shape[0] // chosen.shape[0], dim=0)
        return (scores - penalties).to(scores.dtype)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Raise the score of end-of-text tokens exponentially in the number of new tokens.

    Args:
        exponential_decay_length_penalty: (start, factor): after `start` new tokens the score of the end grows by
            |score| * (factor ** (tokens since) - 1).
        eos_token_id: token or tokens that end a row.
        input_ids_seq_length: length of the prompt.
    """

    eos_token_id = TokenIdsAttribute("eos_token_id")

    def __init__(
        self,
        exponential_decay_length_penalty: Sequence[float],
        eos_token_id: int | Sequence[int] | torch.Tensor,
        input_ids_seq_length: int,
    ) -> None:
        pair = tuple(exponential_decay_length_penalty)
        if len(pair) != 2 or not has_type(pair, list[float]):
            raise OptionError(f"exponential_decay_length_penalty={pair!r} must be two numbers: (start, factor)")
        self.regulation_start = pair[0] + input_ids_seq_length
        self.regulation_factor = pair[1]
        self._eos_token_id = TokenIds("eos_token_id", eos_token_id)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with those of end-of-text tokens raised."""
        late = input_ids.shape[-1] - self.regulation_start
        if late <= 0:
            return scores
        ends = self._eos_token_id.within(scores)
        raised = scores[:, ends].abs() * (self.regulation_factor**late - 1)
        return scores.index_add(1, ends, raised)
