"""Models of odd and changed shape step compiled with the plain step's logits, or not at all; memory stays whole.

`GPTRIO_FUZZ_CASES=50000` tries more than the suite has time for, and `pytest -m long` 900.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptrio import quantize
from gptrio.cache import DynamicCache
from gptrio.errors import GptrioError
from gptrio.kernels.cpu_decode import MAX_ROWS, Reason
from tests.cases import first
from tests.unit.models.changed_models import CHANGES, FAMILIES, build, in_training

pytest.importorskip("numba")

from gptrio.kernels.cpu_decode import thread_pool as team
from gptrio.kernels.cpu_prefill.calls import MIN_QUERIES
from gptrio.models.base.compiled import CompiledStep, compiled_step

CASES = [int(count) // len(FAMILIES) for count in (os.environ.get("GPTRIO_FUZZ_CASES", "270"), "900")]
FORMATS = (torch.float32, torch.float32, torch.bfloat16, torch.float16, "int8", "int4")
ERRORS = {torch.float32: 2e-4, torch.bfloat16: 0.25, torch.float16: 0.03}  # standard deviations of the logits
ROUNDED = 0.3  # on the whole, where inputs of products with quantized weights are rounded too


class LateTeam(team.Team):
    """A team of more threads than processors, whose workers come late to every burst of steps."""

    def _work(self, worker: int) -> None:
        chance, alarm = random.Random(worker), self._alarms[worker]
        while True:
            alarm.acquire()
            time.sleep(chance.choice((0, 0, 1e-4, 1e-3)))
            if self._closed:
                return
            team.enter(self._control.ctypes.data, worker, 0, 0, 0)


@pytest.fixture(scope="module")
def teams() -> Iterator[dict[int, team.Team]]:
    made = {1: team.Team(1), 2: team.Team(2), 5: LateTeam(5)}
    yield made
    for each in made.values():
        each.close()


CASE = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "format": st.sampled_from(FORMATS),
        "changes": st.lists(st.integers(0, len(CHANGES) - 1), max_size=2),
        "rows": st.integers(1, 33),
        "few": st.sampled_from((True, True, True, False)),
        "length": st.one_of(st.integers(1, 12), st.integers(62, 66)),  # a new cache has room for 64 more
        "steps": st.integers(1, 4),
        "padded": st.booleans(),
        "threads": st.sampled_from((1, 2, 5)),
    }
)


def changed(family: str, case: dict[str, Any], chance: random.Random) -> Any:
    model = build(family, chance)
    if isinstance(case["format"], torch.dtype):
        model.to(case["format"])
    else:
        quantize(model, case["format"])
    for number in case["changes"]:  # a change may have taken what the next one is for
        with suppress(GptrioError, IndexError, AttributeError, RuntimeError, TypeError, ValueError, StopIteration):
            CHANGES[number](model, chance)
    model.eval()  # what was put in is in training
    if in_training in (CHANGES[number] for number in case["changes"]):
        in_training(model, chance)
    return model


class Plain:
    """The model's own steps, told masks and positions."""

    def __init__(self, model: Any, left: Tensor | None) -> None:
        self.model, self.left = model, left

    def __call__(self, ids: Tensor, cache: DynamicCache, length: int) -> Tensor:
        told = {}
        if self.left is not None:
            mask = torch.arange(length) >= self.left[:, None]
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            told = {"attention_mask": mask, "position_ids": positions}
        logits: Tensor = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **told).logits
        return logits.float()


def steps_of(case: dict[str, Any], model: Any, chance: random.Random) -> tuple[Tensor, Tensor | None]:
    rows = 1 + case["rows"] % MAX_ROWS if case["few"] else case["rows"]
    ids = torch.randint(0, 12, (rows, case["length"] + case["steps"]), generator=torch.Generator().manual_seed(rows))
    left = torch.tensor([chance.randrange(case["length"]) for _ in range(rows)]) if case["padded"] else None
    return ids, left


@torch.inference_mode()
def plain_logits(model: Any, ids: Tensor, left: Tensor | None, start: int) -> list[Tensor] | Exception:
    """Logits of each step after a prompt, or what a model that cannot run dies of."""
    plain, cache = Plain(model, left), DynamicCache(config=model.config)
    try:
        plain(ids[:, :start], cache, start)
        return [plain(ids[:, end - 1 : end], cache, end) for end in range(start + 1, ids.shape[1] + 1)]
    except Exception as error:
        return error


@torch.inference_mode()
def compiled_logits(
    model: Any, step: CompiledStep, ids: Tensor, left: Tensor | None, start: int
) -> list[Tensor] | None:
    """The same by the compiled step; None if it does not take what the prompt has left in the cache."""
    cache = DynamicCache(config=model.config)
    Plain(model, left)(ids[:, :start], cache, start)
    found = []
    for end in range(start + 1, ids.shape[1] + 1):
        new = ids[:, end - 1 : end]
        if not step.supports(new, cache):
            return None
        found.append(step(new, cache))
    return found


def assert_alike(model: Any, found: Tensor, expected: Tensor) -> None:
    """Every logit; with rounded inputs, the rows on the whole: a norm makes much of what is rounded in a flat row."""
    error, scale = (found - expected).abs(), expected.std().clamp(min=1e-3)
    if any(hasattr(layer, "dequantized") for layer in model.modules()):
        assert error.square().mean().sqrt() <= ROUNDED * scale
    else:
        dtypes = {parameter.dtype for parameter in model.parameters()}  # adapters round inputs to their own
        assert error.max() <= max(ERRORS.get(dtype, 0.0) for dtype in dtypes) * scale


def tokens_of(model: Any, ids: Tensor, disable_compile: bool) -> list[list[int]] | type[Exception]:
    """What `generate` gives, or what a model whose layers share a place in the cache dies of."""
    torch.manual_seed(0)  # for dropout, in a part that is in training
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 12, "disable_compile": disable_compile}
    try:
        tokens: list[list[int]] = model.generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()
    except Exception as error:
        return type(error)
    return tokens


SEEN: Counter[str] = Counter()


def run_case(family: str, case: dict[str, Any], teams: dict[int, team.Team], patch: pytest.MonkeyPatch) -> None:
    chance = random.Random(case["seed"])
    torch.manual_seed(case["seed"])
    model = changed(family, case, chance)
    ids, left = steps_of(case, model, chance)
    patch.setattr(team, "team_of", lambda _: teams[case["threads"]])
    step, want = compiled_step(model, len(ids), left), plain_logits(model, ids, left, case["length"])
    if isinstance(step, Reason):
        SEEN["plain"] += 1
        assert step
        is_alike = case["format"] is torch.float32 or ids.shape[1] < MIN_QUERIES  # else attention is rounded otherwise
        if case["seed"] % 8 == 0 and not isinstance(want, Exception) and left is None and is_alike:
            assert tokens_of(model, ids, False) == tokens_of(model, ids, True)
        return
    if isinstance(want, Exception):  # the prompt, which is read the plain way, must die of the same
        with pytest.raises(type(want)):
            compiled_logits(model, step, ids, left, case["length"])
        return
    found = compiled_logits(model, step, ids, left, case["length"])
    SEEN["compiled" if found is not None else "not taken"] += 1
    for got, expected in zip(found or want, want, strict=True):
        assert_alike(model, got, expected)


@pytest.mark.parametrize("cases", first(CASES))
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_or_plain(family: str, cases: int, teams: dict[int, team.Team]) -> None:
    SEEN.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTRIO_GUARDS", "1")

        @settings(max_examples=cases, database=None)
        @given(CASE)
        def run(case: dict[str, Any]) -> None:
            run_case(family, case, teams, patch)

        run()
    print(family, dict(SEEN))  # for a run of many cases with -s
    assert SEEN["compiled"] > cases // 5 and SEEN["plain"] > cases // 5, SEEN
