"""Memory-mapped weights beside the copies made of them: no value is lost, and the file's pages are let go."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptrio import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from gptrio.checkpoint.load import SafetensorsTensors
from gptrio.kernels.packing import can_pack
from gptrio.memory import drop_mapped_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages are whose")


def resident(path: Path) -> int:
    """Bytes of a memory-mapped file that are in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(1 << 20).float(), "b": torch.zeros(5)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_pages_leave_and_come_back(file: Path) -> None:
    tensor = SafetensorsTensors(file).tensor("a")
    assert tensor.sum() > 0 and resident(file) >= tensor.nbytes
    drop_mapped_pages(tensor)
    assert resident(file) < 0.1 * tensor.nbytes
    assert torch.equal(tensor, torch.arange(1 << 20).float())


def test_what_was_written_stays(file: Path) -> None:
    tensor = SafetensorsTensors(file).tensor("a")
    tensor[500_000] = -1.0
    drop_mapped_pages(tensor)
    assert tensor[500_000] == -1.0 and tensor[-1] == (1 << 20) - 1


@pytest.mark.parametrize("shape", [(0,), (5,), (300, 300), (1 << 20,)])
def test_tensors_of_no_file_stay(shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape)
    drop_mapped_pages(tensor)
    drop_mapped_pages(tensor[:1])
    assert (tensor == 1).all()


@pytest.mark.parametrize("options", [{"dtype": "auto"}, {"dtype": torch.bfloat16}, {"load_in": "int8"}], ids=str)
def test_packed_generation_keeps_no_second_copy_of_the_file(tmp_path: Path, options: dict[str, object]) -> None:
    config = GPT2Config(vocab_size=500, n_positions=32, n_embd=512, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).to(torch.float16)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
    if loaded.dtype is torch.float16 and not can_pack(torch.float16):
        pytest.skip("oneDNN cannot pack torch.float16 here, so the file's own pages are the only copy")
    loaded.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False, disable_compile=True)
    assert resident(file) < 0.5 * file.stat().st_size
