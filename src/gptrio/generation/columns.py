"""Prompts with padding anywhere: each row's real tokens are moved together on the right, and back in the result.

Whatever the attention mask, a row is then decoded as if it stood alone: its next token follows its last real one, its
positions and a local layer's window count real tokens only. Left padding is that order already and stays as it is.
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
    """Where the columns of a prompt went.

    Attributes:
        ids: (B, T) as the caller gave them.
        order: (B, S) the caller's column that stands at each column now.
    """

    ids: Tensor
    order: Tensor

    def ids_for(self, rows: int) -> Tensor:
        """(rows, T) the caller's ids, each row repeated for all that continue it."""
        return self.ids.repeat_interleave(rows // len(self.ids), dim=0)

    def restore(self, result: Any) -> Any:
        """Put the prompt's columns of a result (ids, or an output that holds them) back where the caller had them.

        Hidden states and attention weights of the prompt go back too, if it was read in one piece.
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
        """Hidden states (R, S, C) or weights (R, H, T, at least S), on the axes of the prompt's columns."""
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
    """Move each row's real tokens together on the right, what a cache holds of them included.

    A row whose padding stands after the cache takes as many positions back out of it, and reads these tokens again.

    Raises:
        InputError: a cache has let go what a row would need.
    """
    if prompt.attention_mask is None or prompt.has_left_padding_only or prompt.has_gaps:
        return prompt
    cache, length = prompt.cache, prompt.length
    held = 0 if cache is None else cache.get_seq_length()
    rows = len(prompt.attention_mask)
    known = torch.arange(length, device=prompt.ids.device).expand(rows, -1)  # the cache's own order
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
    """Columns (B or 1, S, ...) in another order (B, S)."""
    columns = columns.expand(len(order), *columns.shape[1:])
    index = order.reshape(*order.shape, *[1] * (columns.dim() - 2))
    return columns.gather(1, index.expand_as(columns))
