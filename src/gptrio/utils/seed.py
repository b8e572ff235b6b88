"""Seeds for the generators of random numbers."""

from __future__ import annotations

import os
import random

from gptrio.errors import OptionError


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python's, numpy's and torch's generators, those of every device included.

    Args:
        seed: the seed.
        deterministic: also make torch use deterministic algorithms only.
    """
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    try:
        import torch
    except ImportError:  # tokenizers and configurations work without
        return
    torch.manual_seed(seed)  # on a GPU too
    if deterministic:
        torch.use_deterministic_algorithms(True)


def enable_full_determinism(seed: int, warn_only: bool = False) -> None:
    """Seed every generator, and let torch use deterministic algorithms only, on GPUs too.

    Args:
        seed: the seed.
        warn_only: warn where an operation has no deterministic algorithm, rather than raise an error.
    """
    set_seed(seed)
    try:
        import torch
    except ImportError:
        return
    os.environ |= {
        "CUDA_LAUNCH_BLOCKING": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
        "FLASH_ATTENTION_DETERMINISTIC": "1",
    }
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def check_seed(seed: int) -> None:
    """Raise OptionError for a seed past the 64 bits that torch's generators take."""
    if not -(2**63) <= seed < 2**64:
        raise OptionError(f"seed={seed} is out of range; expected an integer of at most 64 bits")
