"""What runs under `generate` is the model in hand: patched classes, modes, modules and callbacks of the caller's."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.contract.families import Family, tokens

STEPS = 5
OPTIONS: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}


@contextmanager
def patched(cls: type, name: str, change: Callable[[Any], Any]) -> Iterator[list[Any]]:
    """A method of a class wrapped as decorators do it; the modules that it was called on."""
    old, own, called = getattr(cls, name), name in vars(cls), []

    @functools.wraps(old)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(self)
        return change(old(self, *args, **kwargs))

    setattr(cls, name, wrapper)
    try:
        yield called
    finally:
        setattr(cls, name, old) if own else delattr(cls, name)


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()} - {nn.ModuleList}


def test_a_method_patched_on_a_class_runs(family: Family) -> None:
    """For every class in the model: its forward runs as often as the class has modules, in each step."""
    model, ids = family.build(eos_token_id=None), tokens(1, 6)
    for kind in kinds(model):
        if kind.__name__ == "Dropout":  # called only where something is dropped
            continue
        with patched(kind, "forward", lambda output: output) as called:
            model.generate(ids, **OPTIONS)
        assert len(called) == STEPS * sum(type(module) is kind for module in model.modules()), kind


def test_what_a_patched_method_returns_is_used(family: Family) -> None:
    model, ids = family.build(eos_token_id=None), tokens(1, 6)
    for kind in kinds(model):
        with patched(kind, "forward", lambda output: output * 0.5 if isinstance(output, Tensor) else output):
            found = model.generate(ids, **OPTIONS)
            for length in range(6, 6 + STEPS):
                assert found[0, length] == model(found[:, :length]).logits[0, -1].argmax(), kind


@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_a_patched_call_of_all_modules_is_seen(family: Family, name: str) -> None:
    model = family.build(eos_token_id=None)
    with patched(nn.Module, name, lambda output: output) as called:
        model.generate(tokens(1, 6), **OPTIONS)
    assert sum(module is model for module in called) == STEPS


class Halved(TorchFunctionMode):
    """Every linear product, halved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return output * 0.5 if getattr(func, "__name__", "") == "linear" else output


def test_a_mode_over_functions_changes_every_step(family: Family) -> None:
    model, ids = family.build(eos_token_id=None), tokens(1, 6)
    plain = model.generate(ids, **OPTIONS | {"max_new_tokens": 20})
    with Halved():
        found = model.generate(ids, **OPTIONS | {"max_new_tokens": 20})
        for length in range(6, 26):
            assert found[0, length] == model(found[:, :length]).logits[0, -1].argmax()
    assert not torch.equal(found, plain)


def test_a_wrapped_preparation_is_called(family: Family) -> None:
    model, calls = family.build(eos_token_id=None), []
    inner = model.prepare_inputs_for_generation

    @functools.wraps(inner)
    def prepare(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    model.prepare_inputs_for_generation = prepare
    model.generate(tokens(1, 6), **OPTIONS)
    assert len(calls) == STEPS


class Keeping(nn.Module):
    """A module that keeps what the one inside returned, as tools for steering do."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.kept = inside, torch.empty(0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inside(*args, **kwargs)
        self.kept = output[0] if isinstance(output, tuple) else output
        return output


@pytest.mark.parametrize("part", ["block", "mlp"])
def test_what_a_module_of_the_callers_keeps_can_be_trained_on(family: Family, part: str) -> None:
    model = family.build(eos_token_id=None)
    blocks = model.base_model.blocks
    if part == "block":
        keeping = blocks[0] = Keeping(blocks[0])
    else:
        keeping = blocks[0].mlp = Keeping(blocks[0].mlp)
    model.generate(tokens(1, 6), **OPTIONS)
    keeping.kept += 1
    probe = nn.Linear(keeping.kept.shape[-1], 2)
    probe(keeping.kept).sum().backward()
    assert probe.weight.grad is not None


class Collecting:
    """A streamer that keeps its tokens, and looks at another model's hooks and at its own tensors meanwhile."""

    def __init__(self, other: nn.Module) -> None:
        self.tokens: list[Tensor] = []
        self.made: list[Tensor] = []
        self.fired, self.other = 0, other
        other.base_model.blocks[0].mlp.register_forward_hook(self._fire)

    def _fire(self, *_: Any) -> None:
        self.fired += 1

    def put(self, value: Tensor) -> None:
        self.tokens.append(value)
        self.made.append(self.other(value.reshape(1, -1)).logits)

    def end(self) -> None:
        self.made.append(torch.ones(1))

    def told(self, *_: Any) -> None:
        self.made.append(torch.ones(1))


def test_callbacks_run_as_the_caller_left_torch(family: Family) -> None:
    model, ids = family.build(eos_token_id=None), tokens(1, 6)
    streamer = Collecting(family.build(eos_token_id=None))
    found = model.generate(ids, streamer=streamer, on_finish=streamer.told, **OPTIONS)
    assert torch.equal(torch.cat([part.flatten() for part in streamer.tokens]), found[0])
    assert streamer.fired == 1 + STEPS
    assert not any(made.is_inference() or made.requires_grad for made in streamer.made)
    streamer.tokens[0].add_(1)
    model(streamer.tokens[0], labels=streamer.tokens[0]).loss.backward()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_a_handler_of_signals_generates_in_the_middle_of_a_step(family: Family) -> None:
    """It interrupts at any line, also where the threads of a step are locked."""
    model, ids = family.build(eos_token_id=None, hidden_size=64), tokens(1, 6)
    options = OPTIONS | {"max_new_tokens": 40}
    expected = model.generate(ids, **options)
    team = pytest.importorskip("gptrio.kernels.cpu_decode.thread_pool")
    inner, results = team.Team._wake, []

    def wake(self: Any) -> Any:
        if not results:
            results.append(None)
            signal.raise_signal(signal.SIGALRM)
        return inner(self)

    previous = signal.signal(signal.SIGALRM, lambda *_: results.append(model.generate(ids, **options)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team.Team, "_wake", wake)
        found = model.generate(ids, **options)
    signal.signal(signal.SIGALRM, previous)
    assert torch.equal(found, expected)
    assert len(results) == 2
    assert torch.equal(results[1], expected)
