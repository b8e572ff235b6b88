"""One seed for every generator of random numbers."""

from __future__ import annotations

import random


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python's, numpy's and torch's generators, those of every device included.

    Args:
        seed: the seed.
        deterministic: also let torch use deterministic algorithms only.
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
