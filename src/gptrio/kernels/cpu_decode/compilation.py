"""The compiled code of the decoding step: where it is kept, who compiles it, and whether it is there.

A process of its own, of the lowest priority, compiles the step once for a processor; until then decoding runs the
ordinary way. The environment variable `GPTRIO_COMPILE` changes that: "wait" compiles in the process that decodes, and
"never" runs no compiled step.

The code lies in a folder for one processor, source and set of versions, in the user's cache folder or NUMBA_CACHE_DIR:
`step.*` is numba's; `ready` is there when the code is whole, and its time says when the code was last used; `failed`
holds the reason why there is none; the compiling process holds `lock` by `flock`, which ends with the process.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gptrio.errors import OptionError
from gptrio.kernels.cpu_decode import NOT_INSTALLED, Reason, check_numba, is_installed, one_line
from gptrio.utils.installed import installed_version

MODES = ("background", "wait", "never")
RETRY_SECONDS = 3600.0  # after a failure, until the next attempt
UNUSED_DAYS = 30  # after which code of other sources, versions or processors is removed
LOOK_SECONDS = 0.2  # between two looks whether the code is there
FEW_STEPS = 128  # save less than the 0.7 s that loading takes: 2 ms a step of a small model, 4 to 7 of GPT-2 124M
_MOST_SECONDS = 1200  # of processor time for compiling, which takes half a minute on most machines
_MOST_STARTS = 2  # of a compiling process, by one process that decodes

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from gptrio.kernels.cpu_decode.compilation import compile_quietly
compile_quietly()
"""  # of the process that compiles, which finds what its parent finds

_log = logging.getLogger("gptrio")


class NotYet(Reason):
    """Steps do not run compiled now, but will when another process has compiled them."""

    __slots__ = ()


def compile_mode() -> str:
    """What `GPTRIO_COMPILE` says: "background" (the default), "wait" or "never".

    Raises:
        OptionError: it says something else.
    """
    mode = os.environ.get("GPTRIO_COMPILE") or MODES[0]
    if mode not in MODES:
        raise OptionError(f"GPTRIO_COMPILE={mode!r} in the environment is not known; expected {', '.join(MODES)}")
    return mode


class CompiledCode:
    """The folder that holds the code of the step.

    Args:
        folder: where it lies; the one for this processor, source and versions by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Name the folder; nothing is made yet."""
        self.folder = folder or _folder()
        self._ready, self._failed = self.folder / "ready", self.folder / "failed"

    def is_ready(self) -> bool:
        """Whether the code is there, whole."""
        return self._ready.exists()

    def failure(self) -> str:
        """Why the last attempt within `RETRY_SECONDS` failed, or ""."""
        try:
            is_recent = time.time() - self._failed.stat().st_mtime < RETRY_SECONDS
            return self._failed.read_text(encoding="utf-8") if is_recent else ""
        except OSError:
            return ""

    def is_being_compiled(self) -> bool:
        """Whether a process compiles it now."""
        import fcntl

        try:
            with open(self.folder / "lock", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # it was never compiled
            return False
        return False

    def compile(self, is_patient: bool = True) -> None:
        """Compile the step in this process and keep its code, unless that was done before.

        Args:
            is_patient: wait for another process that compiles it; else leave it to that process.

        Raises:
            Exception: it cannot be compiled, kept or run, for any reason that numba or the processor has.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(is_patient) as is_locked:
            if not is_locked or self.is_ready():
                return
            _log.warning("compiling the decoding step for this processor, once, into %s", self.folder)
            try:
                _prepare(self.folder, may_compile=True)
            except Exception as error:
                self.note_failure(one_line(error))
                raise
            self._failed.unlink(missing_ok=True)
            self._ready.touch()
            self._remove_unused()

    def load(self) -> None:
        """Read the code into this process.

        Raises:
            Exception: it is not there, or cannot run.
        """
        _prepare(self.folder, may_compile=False)
        with suppress(OSError):  # the folder may be read-only
            os.utime(self._ready)

    def forget(self) -> None:
        """Mark the code as missing."""
        self._ready.unlink(missing_ok=True)

    def note_failure(self, why: str) -> None:
        """Keep other processes from repeating an attempt that has just failed."""
        with suppress(OSError):
            self._failed.write_text(why, encoding="utf-8")

    @contextmanager
    def _locked(self, is_patient: bool) -> Iterator[bool]:
        """Hold the lock; gives whether this process has it."""
        import fcntl

        with open(self.folder / "lock", "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if is_patient else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def _remove_unused(self) -> None:
        """Remove the folders of other keys that were not used for `UNUSED_DAYS`."""
        for other in self.folder.parent.iterdir():
            mark = other / "ready" if (other / "ready").exists() else other
            is_old = time.time() - mark.stat().st_mtime > UNUSED_DAYS * 86400
            if other != self.folder and is_old and not CompiledCode(other).is_being_compiled():
                shutil.rmtree(other, ignore_errors=True)


class _Readiness:
    """Whether this process can run compiled steps; looks again while another process compiles them."""

    def __init__(self) -> None:
        """Begin without having looked."""
        self.reset()

    def reset(self) -> None:
        """Forget what was found, and the process that was started."""
        self._lock = threading.RLock()
        self._reason: Reason | None = NotYet("not checked yet")
        self._next_look = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def look(self) -> Reason | None:
        """Why steps cannot run compiled now, or None."""
        if type(self._reason) is not NotYet or time.monotonic() < self._next_look:
            return self._reason
        with self._lock:
            if type(self._reason) is NotYet:
                self._reason = self._find_out()
                self._next_look = time.monotonic() + LOOK_SECONDS
        return self._reason

    def too_few(self, steps: int) -> Reason | None:
        """Why so few steps are not worth loading code that is ready; nothing is loaded or started."""
        if type(self._reason) is not NotYet or steps > FEW_STEPS or not is_installed():
            return None
        try:
            if compile_mode() != "background" or not CompiledCode().is_ready():
                return None
        except Exception:  # whoever looks for the code says what is wrong
            return None
        return Reason(f"loading the compiled step takes longer than it saves in {steps} tokens; the next call loads it")

    def _find_out(self) -> Reason | None:
        if not is_installed():
            return NOT_INSTALLED
        mode = compile_mode()
        if mode == "never":
            return Reason("GPTRIO_COMPILE is 'never'")
        try:
            code = CompiledCode()
            is_ready = code.is_ready()
            if is_ready or mode == "wait" or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
                check_numba()  # it takes half a second to import, for which the background has a process
            if is_ready and self._load(code):
                return None
            if mode == "background":
                return self._wait_for(code)
            code.compile()
            code.load()
            return None
        except Exception as error:  # numba may fail in any way; decoding works without it
            return _without(one_line(error))

    def _load(self, code: CompiledCode) -> bool:
        """Load code that is ready; returns False if it was removed meanwhile, so that it must be compiled again."""
        try:
            code.load()
        except LookupError:
            code.forget()
            return False
        return True

    def _wait_for(self, code: CompiledCode) -> Reason:
        """Have another process compile the step, and say why it does not run yet."""
        if why := code.failure():
            return _without(why)
        ended = self._process is not None and self._process.poll() is not None
        if not code.is_being_compiled() and (self._process is None or ended):
            if self._starts == _MOST_STARTS:
                code.note_failure(f"compiling ended with exit status {self._process and self._process.returncode}")
                return _without(code.failure() or "compiling ended without a result")
            code.folder.mkdir(parents=True, exist_ok=True)
            self._process, self._starts = _start(), self._starts + 1
            _log.info("a process of low priority compiles the decoding step into %s", code.folder)
        return NotYet("the step is being compiled by another process")


readiness = _Readiness()
if hasattr(os, "register_at_fork"):  # the lock may be held there, and the compiling process is no child of the new one
    os.register_at_fork(after_in_child=readiness.reset)


def unready_reason() -> Reason | None:
    """Why steps cannot run compiled now, or None; the first call starts what is needed to make them ready.

    Raises:
        OptionError: `GPTRIO_COMPILE` says what is not known.
    """
    return readiness.look()


def unloaded_reason(steps: int) -> Reason | None:
    """Why code that is ready stays unloaded for a call of so few steps; None if it is loaded, or is to be."""
    return readiness.too_few(steps)


def status() -> str:
    """Where the compiled code is and how it stands, for people; starts nothing."""
    if compile_mode() == "never":
        return "not used, as GPTRIO_COMPILE is 'never'"
    try:
        code = CompiledCode()
    except Exception as error:
        return f"nowhere to keep it: {one_line(error)}"
    if code.is_ready():
        return f"ready in {code.folder}"
    if code.is_being_compiled():
        return f"being compiled into {code.folder}"
    if why := code.failure():
        return f"could not be compiled: {why}"
    if not _can_be_made(code.folder):
        return f"cannot be kept, as {code.folder} cannot be written"
    return f"not compiled yet (`generate` starts that in the background, `gptrio env --compile` waits) in {code.folder}"


def compile_quietly() -> None:
    """Compile the step with the lowest priority, unless another process does; what a compiling process runs."""
    os.nice(19)
    with suppress(OSError):  # Linux may share the processors among sessions first, whose priority is this
        Path("/proc/self/autogroup").write_text("19", encoding="utf-8")
    _limit_processor_time()
    check_numba()
    CompiledCode().compile(is_patient=False)


def _limit_processor_time() -> None:
    """Raise TimeoutError in this process once it has run for longer than any processor should compile."""
    import resource

    def give_up(*_: object) -> None:
        raise TimeoutError(f"compiling took more than {_MOST_SECONDS} s of processor time")

    signal.signal(signal.SIGXCPU, give_up)
    with suppress(ValueError, OSError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_CPU, (_MOST_SECONDS, _MOST_SECONDS + 60))  # the end, if no code returns


def keep_code_in(folder: Path, function: Any, may_compile: bool) -> None:
    """Have numba keep the code of a compiled function in a folder whose name stands for its source.

    Compiling it then raises LookupError if the code is not there, unless it `may_compile`.
    """
    from numba.core import caching

    class Locator(caching._CacheLocator):  # type: ignore[misc]  # numba has no types
        def get_cache_path(self) -> str:
            return os.fspath(folder)

        def get_source_stamp(self) -> str:
            return folder.name

        def get_disambiguator(self) -> str:
            return ""

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Locator:
            return cls()

    class Files(caching.CompileResultCacheImpl):  # type: ignore[misc]  # likewise
        _locator_classes = (Locator,)

    class Cache(caching.FunctionCache):  # type: ignore[misc]  # likewise
        _impl_class = Files

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            found = super().load_overload(sig, target_context)
            if found is None and not may_compile:
                raise LookupError(f"there is no compiled code in {folder}")
            return found

    function._cache = Cache(function.__wrapped__)


def _without(why: str) -> Reason:
    _log.warning("decoding goes on without compiled steps: %s", why)
    return Reason(why)


def _prepare(folder: Path, may_compile: bool) -> None:
    from gptrio.kernels.cpu_decode import step
    from gptrio.kernels.cpu_prefill import calls

    step.prepare(folder, may_compile)
    calls.prepare(folder, may_compile)


def _start() -> subprocess.Popen[bytes]:
    """Start a process that compiles the step and outlives this one if need be; it shares no stream with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    atexit.register(setattr, process, "returncode", 0)  # it may go on without a warning of an unfinished child
    return process


def _folder() -> Path:
    """The folder for the code of this processor, source and versions."""
    return _root() / _key()


def _root() -> Path:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / "gptrio"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gptrio" / "compiled"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptrio" / "compiled"


@functools.cache
def _key() -> str:
    own = Path(__file__)
    kernels = own.parent.parent
    rooms = [file for room in (own.parent, kernels / "cpu_prefill") for file in sorted(room.glob("*.py"))]
    files = [*rooms, kernels / "formats.py", kernels / "__init__.py"]
    sources = [path.read_bytes() for path in files if path != own]
    versions = [f"{name} {installed_version(name) or 'unknown'}" for name in ("numba", "llvmlite")]
    flags = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    facts = [platform.python_version(), platform.machine(), _processor(), *versions, *flags]
    return hashlib.sha256(b"\0".join([*sources, *(fact.encode() for fact in facts)])).hexdigest()[:16]


def _processor() -> str:
    """Name and features of the processor, as the system gives them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
    return "\n".join(sorted(set(named)))


def _can_be_made(folder: Path) -> bool:
    """Whether a folder is there, or can be made."""
    known = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return os.access(known, os.W_OK | os.X_OK)
