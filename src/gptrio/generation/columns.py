"""Prompts with padding anywhere: each row's padding is moved to the left, and back in the result.

A row is then decoded as if it were alone, for any attention mask: its next token follows its last real token, and only
real tokens count in positions and sliding windows. Left-padded prompts are not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gptrio.cache.protocol import real_positions_last
from gptrio.generation.prompt import COLUMNS, Prompt


@dataclass(frozen=True)
class Moved:
    """The permutation of the columns of a prompt.

    Attributes:
        ids: (B, T) in the caller's order.
        order: (B, S) the caller's column of each column.
    """

    ids: Tensor
    order: Tensor

    def ids_for(self, rows: int) -> Tensor:
        """(rows, T) the caller's ids, each row repeated for its beams or samples."""
        return self.ids.repeat_interleave(rows // len(self.ids), dim=0)

    def restore(self, result: Any) -> Any:
        """Put the prompt's columns of a result (ids, or an output with ids) back into the caller's order.

        Hidden states and attention weights of the prompt too, if one forward has read it.
        """
        if isinstance(result, Tensor):
            return torch.cat([self.ids_for(len(result)), result[:, self.ids.shape[1] :]], dim=1)
        result.sequences = self.restore(result.sequences)
        for name in ("hidden_states", "attentions"):
            steps = getattr(result, name, None)
            if steps:
                setattr(result, name, tuple(tuple(map(self._restored, layers)) for layers in steps))
        return result

    def _restored(self, states: Tensor) -> Tensor:
        """Restore the axes of columns of hidden states (R, S, C) or attention weights (R, H, T, at least S)."""
        length = self.order.shape[1]
        back = self.order.argsort(-1).to(states.device)
        back = back.repeat_interleave(states.shape[0] // len(back), dim=0)
        if states.dim() == 3:
            return states.gather(1, back[..., None].expand_as(states)) if states.shape[1] == length else states
        if states.shape[-1] >= length:
            new = torch.arange(length, states.shape[-1], device=states.device).expand(len(back), -1)
            states = states.gather(3, torch.cat([back, new], dim=1)[:, None, None].expand_as(states))
        return states.gather(2, back[:, None, :, None].expand_as(states)) if states.shape[2] == length else states


def align(prompt: Prompt) -> Prompt:
    """Move each row's padding to the left, in the cache too.

    A row with padding after the cached positions drops as many of these, and their tokens are read again.

    Raises:
        InputError: the cache has dropped a position that has to move.
    """
    if prompt.attention_mask is None or prompt.has_left_padding_only or prompt.has_gaps:
        return prompt
    cache, length = prompt.cache, prompt.length
    held = 0 if cache is None else cache.get_seq_length()
    rows = len(prompt.attention_mask)
    # column of each position, in the cache's order
    known = torch.arange(length, device=prompt.ids.device).expand(rows, -1)
    if held and cache.real_positions_last:
        known = torch.cat([real_positions_last(prompt.attention_mask[:, :held]), known[:, held:]], dim=1)
    step = real_positions_last(prompt.attention_mask.gather(1, known))
    order = known.gather(1, step)
    if held:
        cache.move_positions(step[:, :held], prompt.attention_mask.gather(1, order)[:, :held])
    moved: dict[str, Any] = {
        name: _gathered(value, order)
        for name in COLUMNS
        if (value := getattr(prompt, name)) is not None and value.shape[1] == length
    }
    return replace(prompt, **moved, moved=Moved(prompt.ids, order))


def _gathered(columns: Tensor, order: Tensor) -> Tensor:
    """Permute columns (B or 1, S, ...) by an order (B, S)."""
    columns = columns.expand(len(order), *columns.shape[1:])
    index = order.reshape(*order.shape, *[1] * (columns.dim() - 2))
    return columns.gather(1, index.expand_as(columns))
