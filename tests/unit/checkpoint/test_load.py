"""Placing tensors in modules: values, types, devices, memory, and reports of what did not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gptrio.checkpoint.load import load_into, open_checkpoint
from gptrio.checkpoint.write import save_state_dict
from gptrio.errors import SizeMismatchError


class Net(nn.Module):
    """An embedding, a norm, a frozen layer and an integer buffer."""

    counts: torch.Tensor

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.wte = nn.Embedding(5, width)
        self.ln = nn.LayerNorm(width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.register_buffer("counts", torch.arange(3))


def empty_net(width: int = 4) -> Net:
    with torch.device("meta"):
        return Net(width)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Net, Path]:
    net = Net()
    save_state_dict(net.state_dict(), tmp_path)
    return net, tmp_path


def assert_equal_state(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_meta_module_gets_the_values(saved: tuple[Net, Path]) -> None:
    net, folder = saved
    empty = empty_net()
    report = load_into(empty, open_checkpoint(folder))
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    assert_equal_state(empty, net)
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in net.parameters()]
    assert empty.counts.dtype == torch.int64


def test_parameters_are_the_mapped_file_and_training_leaves_it_alone(saved: tuple[Net, Path]) -> None:
    net, folder = saved
    file = folder / "model.safetensors"
    before = file.read_bytes()
    first, second = empty_net(), empty_net()
    load_into(first, open_checkpoint(folder))
    load_into(second, open_checkpoint(folder))
    optimizer = torch.optim.SGD([p for p in first.parameters() if p.requires_grad], lr=1.0)
    first.frozen(first.ln(first.wte(torch.tensor([1, 2])))).pow(2).sum().backward()
    optimizer.step()
    with torch.no_grad():
        first.frozen.weight.zero_()
    assert not torch.equal(first.wte.weight, net.wte.weight)
    assert_equal_state(second, net)
    assert file.read_bytes() == before


def test_saving_over_the_mapped_file(saved: tuple[Net, Path]) -> None:
    _, folder = saved
    net = empty_net()
    load_into(net, open_checkpoint(folder))
    with torch.no_grad():
        net.wte.weight.add_(1)
    save_state_dict(net.state_dict(), folder)
    again = empty_net()
    load_into(again, open_checkpoint(folder))
    assert_equal_state(again, net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_conversion_touches_only_floating_point(saved: tuple[Net, Path], dtype: torch.dtype) -> None:
    net, folder = saved
    empty = empty_net()
    load_into(empty, open_checkpoint(folder), dtype=dtype)
    assert all(p.dtype == dtype for p in empty.parameters())
    assert empty.counts.dtype == torch.int64
    assert torch.equal(empty.wte.weight, net.wte.weight.to(dtype))


def test_placement_by_name(saved: tuple[Net, Path]) -> None:
    _, folder = saved
    empty = empty_net()
    load_into(empty, open_checkpoint(folder), device=lambda name: "meta" if name.startswith("ln") else "cpu")
    assert empty.ln.weight.is_meta
    assert empty.wte.weight.device == torch.device("cpu")


def test_state_dict_in_memory_is_copied() -> None:
    net, copy = Net(), empty_net()
    report = load_into(copy, net.state_dict())
    assert report.missing == []
    assert_equal_state(copy, net)
    with torch.no_grad():
        copy.wte.weight.zero_()
    assert not torch.equal(copy.wte.weight, net.wte.weight)


def test_report_names_what_is_missing_and_unexpected(saved: tuple[Net, Path]) -> None:
    net, _ = saved
    state = net.state_dict()
    del state["ln.bias"]
    state["extra.weight"] = torch.zeros(1)
    report = load_into(empty_net(), state)
    assert (report.missing, report.unexpected) == (["ln.bias"], ["extra.weight"])


def test_other_shapes_raise_or_are_left_alone(saved: tuple[Net, Path]) -> None:
    _, folder = saved
    with pytest.raises(SizeMismatchError, match=r"5 tensors .*wte\.weight: \(5, 4\) in the checkpoint, \(5, 6\)"):
        load_into(empty_net(6), open_checkpoint(folder))
    wide = Net(6)
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    report = load_into(wide, open_checkpoint(folder), ignore_mismatched_sizes=True)
    assert ("wte.weight", (5, 4), (5, 6)) in report.mismatched
    assert torch.equal(wide.wte.weight, before["wte.weight"])


def test_shards_show_progress_only_to_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Net()
    save_state_dict(net.state_dict(), tmp_path, max_shard_size=100)
    for is_terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda is_terminal=is_terminal: is_terminal)
        empty = empty_net()
        load_into(empty, open_checkpoint(tmp_path))
        assert_equal_state(empty, net)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("Loading checkpoint shards" in captured.err) == is_terminal
