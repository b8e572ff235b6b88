"""What loading a checkpoint costs."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM, GPT2LMHeadModel, hub
from gptrio.models.base.building import build
from gptrio.testing import tiny_config


def test_loading_and_generating_leave_torchs_compiler_alone() -> None:
    code = (
        "import sys, torch, gptrio\n"
        "model = gptrio.AutoModelForCausalLM.from_pretrained('gptrio/stdlib-gpt2')\n"
        "model.generate(torch.tensor([[1]]), max_new_tokens=2, do_sample=False)\n"
        "print(*{'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, GPT2LMHeadModel])
@pytest.mark.parametrize("source", ["folder", "package", "hub"])
def test_the_configuration_is_located_and_read_once(
    loader: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, name = {}, "gptrio/stdlib-gpt2"
    if source == "folder":
        GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path)
        name = str(tmp_path)
    elif source == "hub":
        commit = "0" * 40
        snapshot = tmp_path / "models--someone--tiny" / "snapshots" / commit
        GPT2LMHeadModel(tiny_config()).save_pretrained(snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text(commit)
        name, options = "someone/tiny", {"cache_dir": tmp_path, "local_files_only": True}
    located, read, read_text = [], [], Path.read_text
    real = hub._locate

    def locate(name_or_path: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        located.append(filename)
        return real(name_or_path, filename, *args, **kwargs)

    def count(path: Path, *args: Any, **kwargs: Any) -> str:
        read.append(path.name)
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(hub, "_locate", locate)
    monkeypatch.setattr(Path, "read_text", count)
    model = loader.from_pretrained(name, **options)
    assert isinstance(model, GPT2LMHeadModel)
    assert (located.count("config.json"), read.count("config.json")) == (1, 1)


def test_threads_load_different_types(tmp_path: Path) -> None:
    GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path)
    types = (torch.float32, torch.bfloat16, torch.float16)
    wrong: list[str] = []

    def load(dtype: torch.dtype) -> None:
        for _ in range(10):
            built = build(GPT2LMHeadModel, tiny_config(), dtype=dtype)
            loaded = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=dtype)
            for model in (built, loaded):
                found = {parameter.dtype for parameter in model.parameters()}
                if found != {dtype} or torch.get_default_dtype() != torch.float32:
                    wrong.append(f"{dtype}: {found}, default {torch.get_default_dtype()}")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=load, args=(dtype,)) for dtype in types]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []
