"""What the example for Ray has each worker do, in two processes that are started as Ray starts its workers."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

from gptrio import AutoModelForCausalLM
from tests.architecture.source import ROOT
from tests.unit.training.processes import run_ranks


def work(settings: dict[str, Any]) -> None:
    """One worker."""
    runpy.run_path(str(ROOT / "examples" / "finetune_ray.py"))["train"](settings)


def test_workers_train_a_divided_model_and_go_on_from_its_checkpoint(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"def f{number}():\n    return {number}" for number in range(40)), encoding="utf-8")
    settings = {"text": str(text), "out": str(tmp_path / "out"), "model": "gptrio/stdlib-gpt2", "gpu": False}
    settings |= {"steps": 2, "save_every": 1, "length": 64, "workers": 2}
    run_ranks(work, settings)
    run_ranks(work, {**settings, "steps": 3})
    log = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    assert log["global_step"] == 3
    manifest = json.loads((tmp_path / "out" / "checkpoint-3" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["world_size"], "training_state_1.safetensors" in manifest["files"]) == (2, True)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")).__name__ == "GPT2LMHeadModel"
