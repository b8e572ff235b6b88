"""`examples/finetune_flax.py` trains, and after a kill goes on with the losses of a run that was not interrupted."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gptrio import AutoTokenizer, FlaxGPTNeoForCausalLM, GPTNeoForCausalLM
from gptrio.testing import byte_tokenizer, tiny_config
from tests.architecture.source import ROOT

SCRIPT = ROOT / "examples" / "finetune_flax.py"
STEPS = 40


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_flax", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of all runs: a tiny model with dropout, and a text."""
    folder = tmp_path_factory.mktemp("base")
    GPTNeoForCausalLM(tiny_config("gpt_neo", resid_dropout=0.1)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    sizes = {"--steps": STEPS, "--batch": 4, "--context": 16, "--accumulate": 2, "--log": 1, "--learning-rate": 0.01}
    given = {"--model": folder, "--text": folder / "text.txt", **sizes}
    return [str(part) for pair in given.items() for part in pair]


def losses_of(output: str) -> dict[int, str]:
    return {int(step): loss for step, loss in re.findall(r"step +(\d+)  loss ([\d.]+)", output)}


def kill_after_some_saves(command: list[str], out: Path) -> str:
    """Start a run that saves after every step, and kill it when a state is saved; return what it printed."""
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    printed = ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            if (out / "checkpoints" / "2").is_dir() and "step" in line:
                process.kill()
                break
        printed += process.stdout.read()
    return printed


def test_a_killed_run_goes_on_with_the_same_losses(
    example: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def run(out: Path) -> str:
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *arguments, "--out", str(out), "--save", str(STEPS)])
        example.main()
        return str(capsys.readouterr().out)

    whole = losses_of(run(tmp_path / "whole"))
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(SCRIPT),
        *arguments,
        "--out",
        str(tmp_path / "killed"),
        "--save",
        "1",
    ]
    before = losses_of(kill_after_some_saves(command, tmp_path / "killed"))
    assert 2 <= len(before) < STEPS
    assert not (tmp_path / "killed" / "config.json").exists()
    resumed = run(tmp_path / "killed")
    after = losses_of(resumed)
    assert f"resumed at step {min(after) - 1}\n" in resumed
    assert 2 < min(after) <= max(before) + 1
    assert sorted(whole) == list(range(1, STEPS + 1)) == sorted(before | after)
    assert before | after == whole
    assert all(before[step] == after[step] for step in before.keys() & after.keys())
    assert float(whole[STEPS]) < 0.8 * float(whole[1])
    model = FlaxGPTNeoForCausalLM.from_pretrained(tmp_path / "killed")
    assert model.config.resid_dropout == 0.1
    assert len(AutoTokenizer.from_pretrained(tmp_path / "killed")) == 257


def test_a_text_that_is_too_short(example: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *arguments, "--out", str(tmp_path), "--batch", "400"])
    with pytest.raises(SystemExit, match=r"the text has 56 pieces of 16 tokens, fewer than --batch 400"):
        example.main()
