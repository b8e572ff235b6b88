"""Checks of bf16, fp16 and tf32 against the device; torch is imported only if one of them is asked for."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from gptrio.errors import OptionError
from gptrio.utils import logging

if TYPE_CHECKING:
    from gptrio.training.arguments import TrainingArguments


def check_precision(args: TrainingArguments) -> None:
    """Check the precision that arguments ask for, and switch TF32 and `torch_compile` as they say.

    Raises:
        OptionError: two precisions at once, or one that the device does not have.
    """
    if args.fp16 and args.bf16:
        raise OptionError("fp16=True and bf16=True contradict each other; expected one of them")
    if args.fp16_full_eval and args.bf16_full_eval:
        raise OptionError("fp16_full_eval=True and bf16_full_eval=True contradict each other; expected one of them")
    if args.fp16 or args.bf16 or args.bf16_full_eval:
        _check_half_precision(args)
    if args.torch_compile_mode is not None or args.torch_compile_backend is not None:
        args.torch_compile = True
    if args.torch_compile and args.torch_compile_backend is None:
        args.torch_compile_backend = "inductor"
    if args.tf32 is not None or args.torch_compile:
        _set_tf32(args)


def _check_half_precision(args: TrainingArguments) -> None:
    device = args.device.type
    if device == "cpu":
        if args.fp16:
            raise OptionError(
                "fp16=True needs a GPU: float16 on a CPU is slow, and its gradients overflow; use bf16=True instead"
            )
        _report_cpu()
    elif device == "cuda":
        import torch

        if (args.bf16 or args.bf16_full_eval) and not torch.cuda.is_bf16_supported():
            name = torch.cuda.get_device_name()
            raise OptionError(f"bf16=True needs an NVIDIA GPU from Ampere on, and this is a {name}; use fp16=True")


@functools.cache
def _report_cpu() -> None:
    """Say once, in the log, whether this CPU multiplies bfloat16 itself."""
    from gptrio.kernels.widened import bfloat16_instructions

    found = bfloat16_instructions()
    if found:
        logging.get_logger().info("bf16 on this CPU is computed by %s", " and ".join(found))
    else:
        logging.get_logger().warning(
            "this CPU has neither AMX nor AVX512-BF16: bf16=True computes in float32 and rounds, which saves no time"
        )


def _set_tf32(args: TrainingArguments) -> None:
    import torch

    has_tf32 = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if args.tf32 and not has_tf32:
        raise OptionError("tf32=True needs an NVIDIA GPU from Ampere on; leave it out")
    if has_tf32 and (args.tf32 is not None or not args.fp16):
        torch.set_float32_matmul_precision("highest" if args.tf32 is False else "high")
