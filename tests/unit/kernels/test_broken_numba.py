"""Where numba cannot do its work, decoding goes the plain way, and says so in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptrio.kernels import cpu_decode as compiled
from tests.cases import first

PROGRAM = """
import logging, torch, gptrio
from gptrio.kernels.report import decoding_report
config = gptrio.GPT2Config(vocab_size=32, n_positions=64, n_embd=16, n_layer=1, n_head=1, eos_token_id=None)
torch.manual_seed(0)
model = gptrio.GPT2LMHeadModel(config).eval()
options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
ids = torch.arange(1, 9)[None]
ways = [model.generate(ids, disable_compile=off, **options) for off in (False, False, True)]
assert torch.equal(ways[0], ways[2]) and torch.equal(ways[1], ways[2])
assert decoding_report().startswith("the products above")
"""


def run(program: str, path: Path | None = None, **environment: str) -> list[str]:
    """Lines that a program prints to standard error."""
    source = os.fspath(Path(__file__).parents[3] / "src")
    paths = source if path is None else os.pathsep.join([os.fspath(path), source])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.strip().splitlines()


def test_told_not_to_compile() -> None:
    pytest.importorskip("numba")
    (line,) = run(PROGRAM, NUMBA_DISABLE_JIT="1")
    assert line == "decoding goes on without compiled steps: numba is told not to compile (NUMBA_DISABLE_JIT)"


@pytest.mark.parametrize(
    "error",
    first(["AttributeError('no\\nsuch thing')", "ImportError('Numba needs NumPy 1.0 or less')", "SystemError()"]),
)
def test_numba_that_cannot_be_imported(error: str, tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(f"raise {error}")
    (line,) = run(PROGRAM, tmp_path)
    assert line.startswith("decoding goes on without compiled steps: ")


def test_no_folder_to_keep_compiled_code_in(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    (tmp_path / "file").touch()
    without_report = PROGRAM.rpartition("assert decoding_report")[0]
    (line,) = run(without_report, XDG_CACHE_HOME=os.fspath(tmp_path / "file" / "folder"))
    assert "Not a directory" in line


def test_something_else_in_numbas_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", object())  # type: ignore[arg-type]  # which has no __spec__
    assert not compiled.is_installed.__wrapped__()
