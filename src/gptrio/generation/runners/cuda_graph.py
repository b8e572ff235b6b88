"""Steps over a static cache, captured once as a CUDA graph and replayed for every further token."""

from __future__ import annotations

import torch
from torch import Tensor

from gptrio.cache.protocol import check_capacity
from gptrio.generation.inputs import ModelInputs
from gptrio.generation.protocol import CausalLM
from gptrio.generation.runners.protocol import Logits, Step
from gptrio.kernels import cuda_graph


class CudaGraphRunner:
    """One token of every row through a model; its inputs are in buffers, its past in a static cache.

    Args:
        model: a language model of this package, all of it on one device.
        inputs: the batch.
        step: the first step; capturing it writes to the cache what running it writes again.

    Raises:
        InputError: the cache is full.
        RuntimeError: the model does something that cannot be captured.
    """

    threads = 0

    def __init__(self, model: CausalLM, inputs: ModelInputs, step: Step) -> None:
        cache = step.cache
        check_capacity(step.end, cache.max_cache_len)
        self._ids = step.new_ids.clone()
        self._position = position = torch.full((1,), step.start, device=self._ids.device)
        self._kept = given, offset = inputs.same_at_every_step(cache.max_cache_len), inputs.position_offset
        arguments = {"input_ids": self._ids, "cache_position": position, **given}  # a graph keeps addresses only

        def compute() -> Tensor:
            if offset is not None:
                arguments["position_ids"] = offset + position
            output = model(past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True, **arguments)
            logits: Tensor = output.logits
            return logits

        self._replay = cuda_graph.capture(compute, self._ids.device)

    def __str__(self) -> str:
        return "as a CUDA graph"

    def supports(self, step: Step) -> bool:
        """Whether the step is one token of every row."""
        return step.is_plain and step.end - step.start == 1

    def run(self, step: Step) -> Logits:
        """Logits (B, 1, V).

        Raises:
            InputError: the cache is full.
        """
        check_capacity(step.end, step.cache.max_cache_len)
        self._ids.copy_(step.new_ids)
        self._position.fill_(step.start)
        logits = self._replay().clone()  # the next replay overwrites them
        step.cache.set_seq_length(step.end)
        return Logits(logits)
