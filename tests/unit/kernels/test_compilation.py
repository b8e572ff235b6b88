"""Who compiles the decoding step, where its code is kept, and what happens when that does not work."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gptrio import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OptionError,
)
from gptrio.cli.env import compile_step
from gptrio.errors import UnsupportedError
from gptrio.kernels.cpu_decode import Reason, compilation
from gptrio.kernels.cpu_decode.compilation import CompiledCode, NotYet, _Readiness, status, unready_reason
from gptrio.models.base import compiled

pytest.importorskip("numba")
TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from gptrio.kernels.cpu_decode import compilation
def prepare(folder, may_compile):
    with open(folder / "calls", "a") as file:
        file.write("x")
    time.sleep(1)
compilation._prepare = prepare
code = compilation.CompiledCode(Path(sys.argv[1]))
code.compile(is_patient=sys.argv[2] == "patient")
print(code.is_ready())
"""


ENDLESS = """
from gptrio.kernels.cpu_decode import compilation
def prepare(folder, may_compile):
    while True:
        pass
compilation._prepare, compilation._MOST_SECONDS = prepare, 1
try:
    compilation.compile_quietly()
except TimeoutError:
    print(compilation.status())
"""


class Prepared:
    """In place of compiling and loading: what was asked for, and an error if there is to be one."""

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.error: Exception | None = None

    def __call__(self, folder: Path, may_compile: bool) -> None:
        self.calls.append(may_compile)
        if self.error is not None:
            raise self.error


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Prepared:
    """A cache folder of the test's own, no waiting between looks, and nothing that is really compiled."""
    fake = Prepared()
    monkeypatch.setattr(compilation, "_prepare", fake)
    monkeypatch.setattr(compilation, "LOOK_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("GPTRIO_COMPILE", "background")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    return fake


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The compiling processes that were started, none of them real: each runs until its `returncode` is set."""
    processes: list[SimpleNamespace] = []

    def start() -> SimpleNamespace:
        process = SimpleNamespace(returncode=None)
        process.poll = lambda: process.returncode
        processes.append(process)
        return process

    monkeypatch.setattr(compilation, "_start", start)
    return processes


def test_another_process_compiles_while_this_one_goes_on(prepared, started):
    readiness = _Readiness()
    assert isinstance(readiness.look(), NotYet) and isinstance(readiness.look(), NotYet)
    assert (len(started), prepared.calls) == (1, [])
    CompiledCode().compile()  # as that process does
    assert readiness.look() is None and readiness.look() is None
    assert prepared.calls == [True, False], "compiled there, loaded here once"


def test_what_is_ready_is_loaded_at_once(prepared, started):
    CompiledCode().compile()
    assert _Readiness().look() is None
    assert started == []


def test_few_steps_leave_the_code_unloaded(prepared, started, monkeypatch):
    readiness = _Readiness()
    assert readiness.too_few(1) is None, "there is no code yet, so that the call has it compiled"
    CompiledCode().compile()
    few = compilation.FEW_STEPS
    assert "the next call loads it" in (readiness.too_few(few) or "")
    assert readiness.too_few(few + 1) is None
    monkeypatch.setenv("GPTRIO_COMPILE", "wait")
    assert readiness.too_few(few) is None
    monkeypatch.setenv("GPTRIO_COMPILE", "background")
    assert (started, prepared.calls) == ([], [True]), "asking loads nothing"
    assert readiness.look() is None
    assert readiness.too_few(1) is None, "it is loaded"


def test_a_process_that_waits_compiles_itself(prepared, started, monkeypatch, caplog):
    monkeypatch.setenv("GPTRIO_COMPILE", "wait")
    with caplog.at_level(logging.WARNING, "gptrio"):
        assert _Readiness().look() is None
    assert (started, prepared.calls) == ([], [True, False])
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "compiling the decoding step for this processor"
    ]


def test_never(prepared, started, monkeypatch):
    CompiledCode().compile()
    monkeypatch.setenv("GPTRIO_COMPILE", "never")
    assert _Readiness().look() == "GPTRIO_COMPILE is 'never'"
    assert status() == "not used, as GPTRIO_COMPILE is 'never'"


def test_an_unknown_mode_is_refused(monkeypatch):
    monkeypatch.setenv("GPTRIO_COMPILE", "later")
    with pytest.raises(OptionError, match=r"GPTRIO_COMPILE='later' .* expected background, wait, never"):
        compilation.compile_mode()


@pytest.mark.parametrize("patience", ["patient", "impatient"])
def test_of_two_processes_one_compiles(tmp_path, patience):
    command = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path), patience]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert (tmp_path / "calls").read_text() == "x"
    if patience == "patient":
        assert printed == ["True", "True"]


def test_compiling_without_end_is_ended_and_remembered(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": os.fspath(tmp_path), "GPTRIO_COMPILE": "background"}
    result = subprocess.run(
        [sys.executable, "-c", ENDLESS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "could not be compiled: compiling took more than 1 s of processor time\n", result.stderr


def test_a_process_that_dies_is_started_twice_then_remembered(prepared, started, caplog):
    readiness = _Readiness()
    for number in (1, 2):
        assert isinstance(readiness.look(), NotYet)
        assert len(started) == number
        started[-1].returncode = -9
    with caplog.at_level(logging.WARNING, "gptrio"):
        assert readiness.look() == "compiling ended with exit status -9"
    assert [record.getMessage() for record in caplog.records] == [
        "decoding goes on without compiled steps: compiling ended with exit status -9"
    ]
    assert type(_Readiness().look()) is Reason
    assert len(started) == 2
    assert status() == "could not be compiled: compiling ended with exit status -9"
    failed = CompiledCode().folder / "failed"
    os.utime(failed, times=(time.time() - 2 * compilation.RETRY_SECONDS,) * 2)
    assert isinstance(_Readiness().look(), NotYet)


def test_what_cannot_be_compiled_is_told_to_all(prepared, started):
    prepared.error = RuntimeError("no\nF16C")
    with pytest.raises(RuntimeError):
        CompiledCode().compile()
    assert _Readiness().look() == "no F16C"
    assert started == []
    with pytest.raises(UnsupportedError, match="cannot be compiled here: no F16C"):
        compile_step()
    prepared.error = None
    compile_step()
    assert _Readiness().look() is None


def test_code_that_was_removed_is_compiled_again(prepared, started):
    code = CompiledCode()
    code.compile()
    prepared.error = LookupError("gone")
    assert isinstance(_Readiness().look(), NotYet)
    assert (len(started), code.is_ready()) == (1, False)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_cannot_be_made(prepared, started, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with caplog.at_level(logging.WARNING, "gptrio"):
        assert "/proc/none" in str(_Readiness().look())
    assert len(caplog.records) == 1
    assert started == []
    with pytest.raises(UnsupportedError, match="/proc/none"):
        compile_step()


def test_no_home(prepared, started, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert _Readiness().look() == "no home"
    assert status() == "nowhere to keep it: no home"


def test_the_folder_that_numba_was_given_is_used(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    assert CompiledCode().folder.parent == tmp_path / "own" / "gptrio"


def test_code_that_nobody_has_used_for_long_is_removed(prepared):
    root = CompiledCode().folder.parent
    ages = {"old": 40, "new": 1, "in use": 40}
    for name, days in ages.items():
        (root / name).mkdir(parents=True)
        (root / name / "ready").touch()
        os.utime(root / name / "ready", times=(time.time() - days * 86400,) * 2)
    CompiledCode(root / "in use").load()
    CompiledCode().compile()
    assert sorted(path.name for path in root.iterdir()) == sorted(["new", "in use", CompiledCode().folder.name])


MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2)),
    "gpt-neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=97, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
        )
    ),
    "gpt-neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    ),
}


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("ready_at", [0, 1, 5])
def test_generate_switches_when_the_code_is_ready(family, ready_at, monkeypatch):
    assert unready_reason() is None
    model, looks, steps, run = MODELS[family]().eval(), [], [], compiled.CompiledStep.__call__

    def look() -> NotYet | None:
        looks.append(1)
        return NotYet("not yet") if len(looks) <= ready_at else None

    monkeypatch.setattr(compiled, "unready_reason", look)
    monkeypatch.setattr(compiled.CompiledStep, "__call__", lambda *args: steps.append(1) or run(*args))
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    ids = torch.arange(1, 6)[None]
    tokens = model.generate(ids, **options)
    assert len(steps) == 11 - ready_at, "all after the prompt's, from the moment it is ready"
    assert torch.equal(tokens, model.generate(ids, disable_compile=True, **options))


def test_a_model_says_why_its_steps_are_not_compiled(monkeypatch):
    monkeypatch.setattr(compiled, "unready_reason", lambda: Reason("a reason"))
    assert MODELS["gpt2"]().compiled_step(1) == "a reason"
