"""A decoding step over a static cache, recorded once and replayed for every further token."""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gptrio.cache import StaticCache
from gptrio.cache.protocol import check_capacity
from gptrio.kernels import cuda_graph as graphs
from gptrio.nn.fast_call import has_no_hooks


class CudaGraphStep:
    """One token of every row through a model; its inputs stand in buffers, its past in the cache.

    Args:
        model: a language model of this package, all of it on one device.
        cache: filled by the prompt.
        ids: (B, 1) tokens of the next position.
        told: further arguments of the model's forward, the same at every step: `attention_mask` (B, max_cache_len),
            `token_type_ids` (B, 1).
        shift: (B, 1) what is added to a column's number to get its position; None if a model need not be told.

    Raises:
        InputError: the cache is full.
        RuntimeError: the model does something that cannot be recorded.
    """

    def __init__(
        self, model: Any, cache: StaticCache, ids: Tensor, told: dict[str, Tensor], shift: Tensor | None
    ) -> None:
        """Record, at the cache's next position; what that writes is written again by the first call."""
        start = cache.get_seq_length()
        check_capacity(start + 1, cache.max_cache_len)
        self.cache = cache
        self._ids = ids.clone()
        self._position = position = torch.full((1,), start, device=ids.device)
        self._kept = told, shift  # a recording knows them by their addresses only
        arguments = {"input_ids": self._ids, "cache_position": position, **told}

        def compute() -> Tensor:
            if shift is not None:
                arguments["position_ids"] = shift + position
            output = model(past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True, **arguments)
            logits: Tensor = output.logits
            return logits

        self._replay = graphs.record(compute, ids.device)

    def __call__(self, ids: Tensor, position: int) -> Tensor:
        """Logits (B, 1, V) after the tokens (B, 1), which stand at `position`, the first that the cache lacks.

        Raises:
            InputError: the cache is full.
        """
        check_capacity(position + 1, self.cache.max_cache_len)
        self._ids.copy_(ids)
        self._position.fill_(position)
        logits = self._replay().clone()  # the next replay overwrites them
        self.cache.set_seq_length(position + 1)
        return logits


def capture_step(
    model: Any, cache: Any, ids: Tensor, told: dict[str, Tensor], shift: Tensor | None
) -> CudaGraphStep | None:
    """A recorded step, or None where there can be none; see `CudaGraphStep` for the arguments."""
    if type(cache) is not StaticCache or not cache.is_compileable or not _does_the_same_each_time(model, ids.device):
        return None
    try:
        return CudaGraphStep(model, cache, ids, told, shift)
    except RuntimeError as error:  # a kernel that waits for the device, or no memory
        logging.getLogger("gptrio").warning("going on without a recorded step: %s", error)
        return None


def _does_the_same_each_time(model: Any, device: torch.device) -> bool:
    """Whether a step is nothing but this package's forward, on one device that has a recorder."""
    if not graphs.can_record(device) or model.training or torch.is_autocast_enabled(device.type):
        return False
    if not has_no_hooks(model):  # someone's own is to run
        return False
    return all(tensor.device == device for tensor in chain(model.parameters(), model.buffers()))
