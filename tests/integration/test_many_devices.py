"""The script of the page about many devices, started by torchrun as the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

PAGE = (ROOT / "docs" / "many-devices.md").read_text(encoding="utf-8")


@pytest.mark.long  # three processes import torch; other tests start two as torchrun does
def test_torchrun_trains_in_two_processes(tmp_path: Path) -> None:
    script = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("train_loss") == 1
    manifest = json.loads((tmp_path / "many" / "checkpoint-4" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["step"], manifest["world_size"]) == (4, 2)
    assert "training_state_1.safetensors" in manifest["files"]
    assert (tmp_path / "many" / "model.safetensors").is_file()
