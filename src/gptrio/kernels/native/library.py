"""Compile the C sources on first use, keep the result in the user's cache, and load it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SOURCES = Path(__file__).parent
_COMPILE = ("-O3", "-std=gnu11", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-c")
_TIMEOUT = 120  # seconds a compiler may take

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "gptrio_quantize": [_int, *[_pointer] * 3, _long, _long, _long, _int],
    "gptrio_quantized": [_int, _int, *[_pointer] * 6, _long, _long, _long, _long, _int, _int],
    "gptrio_rescale": [_int, *[_pointer] * 6, _long, _long, _int, _int],
    "gptrio_linear": [_int, _int, *[_pointer] * 5, _long, _long, _long, _int, _int],
}


@dataclass(frozen=True)
class Native:
    """What became of the C kernels on this machine.

    Attributes:
        library: the loaded library, or None.
        reason: why it is in use, or why it is not.
    """

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def native() -> Native:
    """Load the C kernels, compiling them if this machine has not done so yet."""
    wanted = os.environ.get("GPTRIO_KERNELS", "auto")
    if wanted == "torch":
        return Native(None, "switched off by GPTRIO_KERNELS=torch")
    if sys.platform != "linux":
        return Native(None, f"not built on {sys.platform}")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Native(None, "no C compiler (cc, gcc or clang) was found")
    try:
        path = _built(compiler)
        return Native(_load(path), f"compiled by {compiler}, kept in {path}")
    except (OSError, subprocess.SubprocessError) as error:
        return Native(None, f"cannot be built or loaded: {_last_line(error)}")


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$XDG_CACHE_HOME/gptrio/kernels`, by default under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gptrio" / "kernels"


def _built(compiler: str) -> Path:
    """The compiled library for these sources, this compiler and this processor."""
    flags = [*_COMPILE, *_isa_flags()]
    sources = sorted(_SOURCES.glob("*.[ch]"))
    key = hashlib.sha256(repr([compiler, flags, _processor()]).encode())
    for source in sources:
        key.update(source.read_bytes())
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / f"{key.hexdigest()[:24]}.so"
    _refuse_foreign(folder)
    if not target.exists():
        _compile(compiler, flags, [source for source in sources if source.suffix == ".c"], target)
    return target


def _compile(compiler: str, flags: list[str], sources: list[Path], target: Path) -> None:
    """Compile without linking an OpenMP of our own: its calls bind to the one that torch has loaded."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [os.path.join(folder, source.stem + ".o") for source in sources]
        for source, out in zip(sources, objects, strict=True):
            _run([compiler, *flags, "-o", out, os.fspath(source)])
        linked = os.path.join(folder, target.name)
        _run([compiler, "-shared", "-o", linked, *objects, "-lm"])
        os.replace(linked, target)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)


def _load(path: Path) -> ctypes.CDLL:
    import torch  # noqa: F401 - loads the OpenMP runtime that the library's calls bind to

    library = ctypes.CDLL(os.fspath(path), mode=os.RTLD_NOW)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def _refuse_foreign(folder: Path) -> None:
    """Load nothing from a folder that another user can write to."""
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by other users; remove it or set XDG_CACHE_HOME")


def _isa_flags() -> list[str]:
    """Follow torch's own switch, so that one setting takes AVX-512 from every kernel."""
    capability = os.environ.get("ATEN_CPU_CAPABILITY", "").lower()
    if platform.machine() != "x86_64" or capability not in ("avx2", "default"):
        return []
    return ["-mno-avx512f", "-mno-avxvnni"] if capability == "avx2" else ["-march=x86-64"]


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(fields)))


def _last_line(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    return next((line for line in text.splitlines() if "error" in line), text.splitlines()[-1] if text else repr(error))
