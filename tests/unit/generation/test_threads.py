"""Threads of Python that generate, load and edit at once; and torch's number of threads, which no call changes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio import GPT2Config, GPT2LMHeadModel, quantize
from gptrio.kernels.threads import OneThread
from gptrio.models.base.compiled import CompiledStep

pytest.importorskip("numba")

OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch with two threads, and compiled steps by several threads for any model."""
    monkeypatch.setattr("gptrio.models.base.compiled._SMALL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def small(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()


def prompt(seed: int, rows: int = 1) -> Tensor:
    return torch.randint(1, 97, (rows, 5), generator=torch.Generator().manual_seed(seed))


def together(*functions: Callable[[], None]) -> None:
    """Run functions in threads of their own at once; their first error is raised."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def number_of_a_new_thread() -> int:
    found: list[int] = []
    together(lambda: found.append(torch.get_num_threads()))
    return found[0]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "way", [{"do_sample": True, "seed": 1}, {"num_beams": 2}, {"num_beams": 2, "num_beam_groups": 2}]
)
def test_callbacks_and_new_threads_find_torchs_threads(way: dict[str, Any]) -> None:
    seen: list[int] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            seen.append(torch.get_num_threads())

        def end(self) -> None:
            seen.append(number_of_a_new_thread())

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        seen.extend((torch.get_num_threads(), number_of_a_new_thread()))
        return scores

    def stop(ids: Tensor, scores: Any) -> Tensor:
        seen.extend((torch.get_num_threads(), number_of_a_new_thread()))
        return torch.zeros(len(ids), dtype=torch.bool)

    def allowed(row: int, ids: Tensor) -> list[int]:
        seen.append(torch.get_num_threads())
        return list(range(90))

    options = {**OPTIONS, **way, "diversity_penalty": 0.5} if "num_beam_groups" in way else {**OPTIONS, **way}
    model = small()
    streamer = {} if "num_beams" in way else {"streamer": Streamer()}
    model.generate(prompt(0), stopping_criteria=[stop], logits_processor=[process], **streamer, **options)
    model.generate(prompt(0), prefix_allowed_tokens_fn=allowed, **options)
    assert len(seen) > 40
    assert set(seen) == {2}
    assert torch.get_num_threads() == number_of_a_new_thread() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("way", [{"do_sample": False}, {"do_sample": True, "seed": 1, "top_p": 0.8}], ids=str)
def test_a_streamer_of_compiled_steps_finds_torchs_threads(
    way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    steps: list[int] = []
    real = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda *given: (steps.append(1), real(*given))[1])

    class Streamer:
        def put(self, value: Tensor) -> None:
            seen.extend((torch.get_num_threads(), number_of_a_new_thread()))

        def end(self) -> None:
            self.put(torch.empty(0))

    small().generate(prompt(0), streamer=Streamer(), **OPTIONS, **way)
    assert len(steps) == 11
    assert set(seen) == {2}


@pytest.mark.usefixtures("two_threads")
def test_one_thread_is_a_matter_of_the_thread_that_asks() -> None:
    with pytest.raises(ZeroDivisionError), OneThread():
        assert torch.get_num_threads() == 1
        assert number_of_a_new_thread() == 2
        1 / 0  # noqa: B018  # an error inside
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_thread_that_begins_while_another_decodes_keeps_its_threads() -> None:
    seen: list[int] = []
    begun, begun_too, done = (threading.Event() for _ in range(3))

    class Streamer:
        tokens = 0

        def put(self, value: Tensor) -> None:
            self.tokens += 1
            if self.tokens == 5:
                begun.set()
                begun_too.wait()

        def end(self) -> None:
            pass

    def busy() -> None:
        small().generate(prompt(0), streamer=Streamer(), do_sample=True, seed=0, **{**OPTIONS, "max_new_tokens": 50})
        done.set()

    def late() -> None:
        begun.wait()
        seen.append(torch.get_num_threads())
        begun_too.set()
        small(1).generate(prompt(1), do_sample=False, **OPTIONS)
        done.wait()
        seen.append(torch.get_num_threads())

    together(busy, late)
    assert seen == [2, 2]


@pytest.mark.usefixtures("two_threads")
def test_threads_that_generate_load_and_edit_do_not_meet(tmp_path: Path) -> None:
    small(0).save_pretrained(tmp_path)
    shared, alone = small(0), small(0)
    ways: list[dict[str, Any]] = [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "seed": 3}]
    expected = [alone.generate(prompt(i), **OPTIONS, **way).tolist() for i, way in enumerate(ways)]
    edited = small(0)
    with torch.no_grad():
        edited.transformer.h[0].mlp.c_proj.weight.mul_(3)
    after = edited.generate(prompt(0), do_sample=False, **OPTIONS).tolist()
    eight_bits = small(0)
    quantize(eight_bits, "int8")
    quantized = eight_bits.generate(prompt(0, 2), do_sample=False, **OPTIONS).tolist()

    def generates() -> None:
        for i, way in enumerate(ways * 3):
            assert shared.generate(prompt(i % 3), **OPTIONS, **way).tolist() == expected[i % 3]

    def loads() -> None:
        for _ in range(4):
            loaded = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
            assert loaded.generate(prompt(0), do_sample=False, **OPTIONS).tolist() == expected[0]

    def edits() -> None:
        for _ in range(4):
            own = copy.deepcopy(alone)
            assert own.generate(prompt(0), do_sample=False, **OPTIONS).tolist() == expected[0]
            own.transformer.h[0].mlp.c_proj.weight.data.mul_(3)
            assert own.generate(prompt(0), do_sample=False, **OPTIONS).tolist() == after

    def in_eight_bits() -> None:
        for _ in range(4):
            assert eight_bits.generate(prompt(0, 2), do_sample=False, **OPTIONS).tolist() == quantized

    together(generates, generates, loads, edits, in_eight_bits)
