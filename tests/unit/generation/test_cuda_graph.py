"""A captured decoding step writes what the plain one writes.

Without a GPU, torch's tracer takes the place of CUDA graphs: it too keeps the exact calls, the tensors they met and
every number of Python, and knows nothing of what Python did around them.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import gptrio
from gptrio import StaticCache
from gptrio.cache import static, static_layers
from gptrio.cache.static_layers import SlidingWindowLayer
from gptrio.errors import InputError
from gptrio.kernels import cuda_graph as graphs
from gptrio.testing import assert_close, tiny_config
from tests.cases import first
from tests.reference import randomise

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")
NEW = 26  # tokens: more than the ring of a local layer holds
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def short_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring of a local layer has 16 slots, twice its window."""
    for module in (static, static_layers):
        monkeypatch.setattr(module, "CROP_MARGIN", 8)


def traced(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A capturer for the CPU."""
    result = compute().clone()
    graph = make_fx(compute)()
    return lambda: result.copy_(graph())


class Counted:
    """A capturer that counts."""

    def __init__(self, capturer: Callable[..., Callable[[], Tensor]]) -> None:
        self.capturer = capturer
        self.captures = self.replays = 0
        self.last: weakref.ref[Any] = weakref.ref(self)

    def __call__(self, compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        self.captures += 1
        replay = self.capturer(compute, device)

        def counted() -> Tensor:
            self.replays += 1
            return replay()

        self.last = weakref.ref(counted)
        return counted


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def capturer(device: str, monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted(graphs.CAPTURE_BY_DEVICE.get(device, traced))
    monkeypatch.setitem(graphs.CAPTURE_BY_DEVICE, device, counted)
    return counted


def build(family: str, device: str = "cpu", **config: Any) -> Any:
    model = gptrio.AutoModelForCausalLM.from_config(tiny_config(family, max_position_embeddings=128, **config))
    randomise(model)
    return model.eval().to(device)


def prompts(device: str, rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(1, 250, (rows, length), generator=torch.Generator().manual_seed(1)).to(device)


def padded_prompts(device: str) -> dict[str, Tensor]:
    ids = prompts(device)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Any, **options: Any) -> Any:
    return model.generate(**{"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0, **options})


@pytest.mark.parametrize("back_end", first(["sdpa", "eager"]))
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_plain_step(
    family: str, padded: bool, back_end: str, device: str, capturer: Counted
) -> None:
    model = build(family, device)
    model.set_attn_implementation(back_end)
    given = padded_prompts(device) if padded else {"input_ids": prompts(device)}
    actual = generate(model, cache_implementation="static", **given)
    assert (capturer.captures, capturer.replays) == (1, NEW - 1)
    assert torch.equal(actual, generate(model, cache_implementation="static", disable_compile=True, **given))
    assert torch.equal(actual, generate(model, **given))
    assert capturer.replays == NEW - 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
        {"num_beams": 2, "do_sample": True, "seed": 3},
        {"do_sample": True, "seed": 3, "num_return_sequences": 3},
        {"guidance_scale": 1.7},
        {"prefill_chunk_size": 3},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("family", first(FAMILIES))
def test_every_mode_is_served(family: str, options: dict[str, Any], device: str, capturer: Counted) -> None:
    model = build(family, device)
    given = {**padded_prompts(device), **options, "max_new_tokens": 20}
    actual = generate(model, cache_implementation="static", **given)
    assert (capturer.captures, capturer.replays) == (1, 19)
    assert torch.equal(actual, generate(model, **given))


@pytest.mark.filterwarnings("ignore:.*text beyond may degrade")
def test_rotary_tables_that_depend_on_the_length_are_computed_anew(device: str, capturer: Counted) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config = tiny_config("gpt_neox", max_position_embeddings=16, rope_scaling=scaling, rotary_pct=0.5)
    model = gptrio.AutoModelForCausalLM.from_config(config).eval().to(device)
    randomise(model)
    actual = generate(model, input_ids=prompts(device), cache_implementation="static")
    assert capturer.replays == NEW - 1
    assert torch.equal(actual, generate(model, input_ids=prompts(device)))


@pytest.mark.parametrize("given", ["position_ids", "token_type_ids"])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_and_types_are_told(family: str, given: str, device: str, capturer: Counted) -> None:
    if family == "gpt_neox" and given == "token_type_ids":
        pytest.skip("the family has no token types")
    model, ids = build(family, device), prompts(device)
    values = {"position_ids": torch.arange(3, 10, device=device).expand(2, -1), "token_type_ids": ids % 2}
    options = {"input_ids": ids, given: values[given], "max_new_tokens": 20}
    actual = generate(model, cache_implementation="static", **options)
    assert capturer.replays == 19
    assert torch.equal(actual, generate(model, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_may_be_the_prompt(family: str, device: str, capturer: Counted) -> None:
    model = build(family, device)
    embeds = model.get_input_embeddings()(prompts(device)).detach()
    actual = generate(model, inputs_embeds=embeds, cache_implementation="static", max_new_tokens=20)
    assert capturer.replays == 19
    assert torch.equal(actual, generate(model, inputs_embeds=embeds, max_new_tokens=20))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_serves_several_calls_and_is_left_as_a_plain_step_leaves_it(
    family: str, device: str, capturer: Counted
) -> None:
    model = build(family, device)
    cache, plain = StaticCache(model.config, 120), StaticCache(model.config, 120)
    for call, length in enumerate((9, 5, 21)):
        ids = prompts(device, length=length) + call
        actual = generate(model, input_ids=ids, past_key_values=cache)
        assert torch.equal(actual, generate(model, input_ids=ids, past_key_values=plain, disable_compile=True))
        assert cache.get_seq_length() == plain.get_seq_length() == length + NEW - 1
        assert [int(layer._end) for layer in cache.layers] == [int(layer._end) for layer in plain.layers]
        for ours, theirs in zip(cache.to_legacy_cache(), plain.to_legacy_cache(), strict=True):
            assert_close(ours[0], theirs[0])
            assert_close(ours[1], theirs[1])
        cache.reset()
        plain.reset()
    assert capturer.captures == 3
    if family == "gpt_neo":
        assert type(cache.layers[1]) is SlidingWindowLayer


def test_a_cache_goes_on_where_a_captured_call_ended(device: str, capturer: Counted) -> None:
    model = build("gpt_neo", device)
    cache = StaticCache(model.config, 120)
    first = generate(model, input_ids=prompts(device), past_key_values=cache, max_new_tokens=10)
    longer = torch.cat([first, prompts(device)], dim=1)
    actual = generate(model, input_ids=longer, past_key_values=cache, max_new_tokens=20)
    assert capturer.captures == 2
    assert torch.equal(actual, generate(model, input_ids=longer, max_new_tokens=20))


def test_logits_that_are_kept_are_those_of_their_step(device: str, capturer: Counted) -> None:
    model = build("gpt2", device)
    options = {"input_ids": prompts(device), "output_logits": True, "output_scores": True}
    options |= {"return_dict_in_generate": True, "max_new_tokens": 20}
    actual = generate(model, cache_implementation="static", **options)
    expected = generate(model, **options)
    assert capturer.replays == 19
    assert_close(torch.stack(actual.logits), torch.stack(expected.logits))
    assert_close(torch.stack(actual.scores), torch.stack(expected.scores))


@pytest.mark.parametrize(
    "options",
    [
        {"disable_compile": True},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"cache_implementation": "offloaded_static"},
        {"cache_implementation": "dynamic"},
        {"penalty_alpha": 0.5, "top_k": 3},
        {"dola_layers": "low"},
        {"head_mask": torch.tensor([1.0, 0, 1, 1])},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_a_capture_cannot_show_goes_without(options: dict[str, Any], device: str, capturer: Counted) -> None:
    given = {"cache_implementation": "static", "max_new_tokens": 5, **options}
    generate(build("gpt2", device), input_ids=prompts(device), **given)
    assert capturer.captures == 0


def test_hooks_and_forwards_of_others_run(device: str, capturer: Counted) -> None:
    hooked, own, training = (build("gpt2", device) for _ in range(3))
    seen: list[int] = []
    hooked.lm_head.register_forward_hook(lambda *_: seen.append(1))
    own.forward = lambda *args, **kwargs: (seen.append(1), type(own).forward(own, *args, **kwargs))[1]
    training.train()
    for model in (hooked, own, training):
        generate(model, input_ids=prompts(device), cache_implementation="static", max_new_tokens=6)
    assert len(seen) == 12
    assert capturer.captures == 0


def test_a_model_with_cross_attention_goes_without(device: str, capturer: Counted) -> None:
    model = build("gpt2", device, add_cross_attention=True)
    cache = StaticCache(model.config, 30)
    actual = generate(model, input_ids=prompts(device), past_key_values=cache, max_new_tokens=6)
    assert capturer.captures == 0
    assert torch.equal(actual, generate(model, input_ids=prompts(device), max_new_tokens=6))


def test_what_cannot_be_captured_runs_plainly(device: str, capturer: Counted, caplog: pytest.LogCaptureFixture) -> None:
    model, ids = build("gpt2", device), prompts(device)

    def waits(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        compute()
        raise RuntimeError("operation not permitted when stream is capturing")

    capturer.capturer = waits
    actual = generate(model, input_ids=ids, cache_implementation="static")
    assert torch.equal(actual, generate(model, input_ids=ids))
    assert capturer.captures == 1
    assert "operation not permitted" in caplog.text


def test_a_full_cache_is_said(device: str, capturer: Counted) -> None:
    model = build("gpt2", device)
    for room in (7, 10):
        with pytest.raises(InputError, match=f"has {room + 1} positions, but the cache was made for {room}"):
            generate(model, input_ids=prompts(device), past_key_values=StaticCache(model.config, room))
    assert (capturer.captures, capturer.replays) == (1, 3)


def test_edits_of_weights_between_steps_are_seen(device: str, capturer: Counted) -> None:
    model = build("gpt2", device)
    twin = copy.deepcopy(model)

    def editing(edited: Any) -> Callable[[Tensor, Tensor], Tensor]:
        def process(ids: Tensor, scores: Tensor) -> Tensor:
            edited.transformer.wpe.weight.mul_(0.9)
            return scores

        return process

    common = {"input_ids": prompts(device), "max_new_tokens": 20}
    actual = generate(model, cache_implementation="static", logits_processor=[editing(model)], **common)
    assert capturer.replays == 19
    assert torch.equal(actual, generate(twin, logits_processor=[editing(twin)], **common))


def test_a_capture_ends_with_its_call(device: str, capturer: Counted) -> None:
    model = build("gpt2", device)
    generate(model, input_ids=prompts(device), cache_implementation="static", max_new_tokens=6)
    assert capturer.replays == 5
    assert capturer.last() is None


def test_the_tracer_refuses_what_a_capture_refuses() -> None:
    values = torch.ones(3)
    with pytest.raises(RuntimeError):
        traced(lambda: values + 1 if bool((values > 0).all()) else values, torch.device("cpu"))
