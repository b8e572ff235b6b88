"""`gptrio env`: facts about this machine and installation, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated

import typer

from gptrio import __version__
from gptrio.cli import options
from gptrio.cli.errors import report_errors
from gptrio.cli.text import print_json
from gptrio.errors import UnsupportedError
from gptrio.utils.installed import installed_version

LIBRARIES = ("torch", "numpy", "numba", "safetensors", "tokenizers", "huggingface_hub", "regex", "typer", "rich")
OPTIONAL = ("jax", "transformers")


def env(
    context: typer.Context,
    as_json: options.Json = False,
    compile_now: Annotated[
        bool, typer.Option("--compile", help="Compile the decoding step for this processor first, and wait for it.")
    ] = False,
    verbose: options.Verbose = False,
) -> None:
    """Show versions, processor and devices, for bug reports."""
    from gptrio.cli.tables import print_facts
    from gptrio.kernels.cpu_decode.compilation import compile_mode

    with report_errors(context, verbose):
        compile_mode()  # an unknown one is refused first
        if compile_now:
            compile_step()
        facts = {**software(), **hardware()}
        if as_json:
            print_json(facts, indent=2)
        else:
            print_facts(facts.items())


def compile_step() -> None:
    """Compile the decoding step in this process, for example while a container image is built.

    Raises:
        UnsupportedError: it cannot be compiled here.
    """
    from gptrio.kernels.cpu_decode import check_numba, one_line
    from gptrio.kernels.cpu_decode.compilation import CompiledCode

    try:
        check_numba()
        CompiledCode().compile()
    except Exception as error:  # whatever the installed numba raises
        raise UnsupportedError(f"the decoding step cannot be compiled here: {one_line(error)}") from error


def software() -> dict[str, str]:
    """Versions of gptrio, Python and the libraries, read without importing them."""
    own = {"gptrio": __version__, "python": platform.python_version(), "platform": platform.platform()}
    return own | {name: installed_version(name) or "not installed" for name in (*LIBRARIES, *OPTIONAL)}


def hardware() -> dict[str, str]:
    """Processor, its vector instructions as torch uses them, the kernels in use and why, threads and GPUs."""
    import torch
    from huggingface_hub import constants

    from gptrio.kernels.report import decoding_report, kernel_report

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{f"{kind} products": how for kind, how in kernel_report().items()},
        "decoding": decoding_report(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpus": ", ".join(devices) or "none",
        "hub cache": constants.HF_HUB_CACHE,
    }


def processor_name() -> str:
    """Name of the processor, as the system reports it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
