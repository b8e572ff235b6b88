"""What reading a prompt consists of beside matrix products, compiled for this processor by numba: attention and GELU.

Attributes:
    kernels: the compiled functions; None until their code is loaded, which no prompt waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptrio.kernels.cpu_prefill.calls import PrefillKernels

kernels: PrefillKernels | None = None
