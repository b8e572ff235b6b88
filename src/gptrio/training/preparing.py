"""What precedes training: special tokens, noise on embeddings, the search for a batch size."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gptrio.errors import InputError, warn

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


def align_special_tokens(model: Any, tokenizer: Any) -> None:
    """Give a model the ids of a tokenizer's end, beginning and padding; a warning names those that changed.

    The generation configuration keeps the ends that it had, besides the tokenizer's.
    """
    config, generation = model.config, getattr(model, "generation_config", None)
    changed = {}
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        if not hasattr(tokenizer, name):
            continue
        new, is_end = getattr(tokenizer, name), name == "eos_token_id"
        if generation is not None:
            old = getattr(generation, name, None)
            known = [] if old is None else list(old) if isinstance(old, (list, tuple)) else [old]
            is_known = new in known if is_end and known else old == new
            if not is_known:
                setattr(generation, name, ([new, *known] if new is not None else known) if is_end and known else new)
        else:
            is_known = True
        if getattr(config, name, None) != new or not is_known:
            changed[name] = new
            setattr(config, name, new)
    if changed:
        shown = ", ".join(f"{name}={value}" for name, value in changed.items())
        warn(f"the model's configuration takes over from the tokenizer: {shown}")


def neftune_post_forward_hook(module: nn.Module, input: Any, output: Tensor) -> Tensor:
    """Add noise to embedded tokens in training (Jain et al., 2023); a forward hook.

    Args:
        module: the embeddings; with its `neftune_noise_alpha`, noise is uniform within alpha over the root of the
            number of values (T x C) of a row.
        input: not used.
        output: (B, T, C) embedded tokens.
    """
    if not module.training:
        return output
    limit = float(module.neftune_noise_alpha) / math.sqrt(output.shape[1] * output.shape[2])  # type: ignore[arg-type]  # is a number
    return output + torch.empty_like(output).uniform_(-limit, limit)


def find_executable_batch_size(run: Callable[[int], Any], batch_size: int) -> Any:
    """Call a function with a batch size, and with nine tenths of it as often as it runs out of memory.

    Raises:
        InputError: not even single rows fit.
    """
    while batch_size > 0:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch_size = int(batch_size * 0.9)
        if batch_size:
            warn(f"out of memory; training begins anew with batches of {batch_size}")
    raise InputError("not even a batch of one row fits into memory; shorten the rows or choose a smaller model")


def _is_out_of_memory(error: BaseException) -> bool:
    is_of_torch = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_of_torch or any(text in str(error).lower() for text in _OUT_OF_MEMORY)
