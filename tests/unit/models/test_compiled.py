"""The compiled decoding step gives the logits of the plain one, and leaves to it what it does not know."""

from __future__ import annotations

import copy
import dataclasses
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptrio import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    quantize,
)
from gptrio.cache import DynamicCache
from gptrio.kernels.cpu_decode import MAX_ROWS, MAX_ROWS_AMX, Reason
from gptrio.kernels.packing import can_pack, packed_bytes
from gptrio.models.base.compiled import CompiledStep, compiled_step
from gptrio.models.gpt2 import GPT2Block
from gptrio.nn.blocks import BlockSpec
from gptrio.nn.linear import Conv1D
from tests.cases import where

pytest.importorskip("numba")

from gptrio.kernels.cpu_decode.amx import is_available
from gptrio.kernels.cpu_decode.matmul import INT4_BY_INT8

VOCABULARY, WINDOW = 211, 8
LENGTH = 120  # past the window, and past the room that a cache starts with


def gpt2(**options: Any) -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=256, n_embd=64, n_layer=2, n_head=2, **options)
    )


def gpt_neo(**options: Any) -> nn.Module:
    kinds = [[["global", "local"], 1]]
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "window_size": WINDOW, "max_position_embeddings": 256}
    return GPTNeoForCausalLM(GPTNeoConfig(vocab_size=VOCABULARY, attention_types=kinds, **sizes, **options))


def gpt_neox(**options: Any) -> nn.Module:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**({"vocab_size": VOCABULARY, **sizes} | options)))


MODELS = {
    "gpt2": gpt2,
    "gpt2-unscaled-relu": lambda: gpt2(scale_attn_weights=False, activation_function="relu"),
    "gpt2-by-layer-silu-inner": lambda: gpt2(
        scale_attn_by_inverse_layer_idx=True, activation_function="silu", n_inner=96
    ),
    "gpt-neo": gpt_neo,
    "gpt-neox": gpt_neox,
    "gpt-neox-in-turn": lambda: gpt_neox(use_parallel_residual=False, rotary_pct=1.0, attention_bias=False),
    "gpt-neox-stretched": lambda: gpt_neox(
        rope_scaling={"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=64
    ),
    "gpt-neox-tied": lambda: gpt_neox(tie_word_embeddings=True, hidden_act="linear"),
}
ERRORS = {torch.float32: 2e-5, torch.bfloat16: 0.06, torch.float16: 0.008}  # standard deviations of the logits


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


@pytest.fixture(autouse=True)
def guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard words around everything that a compiled step writes to."""
    monkeypatch.setenv("GPTRIO_GUARDS", "1")


def step_of(model: Any) -> CompiledStep:
    step = compiled_step(model)
    assert isinstance(step, CompiledStep), step
    return step


@torch.inference_mode()
def largest_error(model: Any, ids: Tensor, reference: Any = None) -> float:
    """Largest difference of the compiled logits from the plain ones, in standard deviations of those."""
    step, reference = step_of(model), reference or model
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for cache in caches:
        reference.next_logits(ids[:, :5], cache)
    errors = []
    for place in range(5, ids.shape[1]):
        assert step.supports(ids[:, place, None], caches[0])
        got, want = step(ids[:, place, None], caches[0]), reference.next_logits(ids[:, place, None], caches[1]).float()
        errors.append(((got - want).abs().max() / want.std()).item())
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == ids.shape[1]
    return max(errors)


def ids_of(rows: int, length: int = LENGTH) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_plain_step(name: str, dtype: torch.dtype) -> None:
    assert largest_error(build(name, dtype), ids_of(1)) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(
    ("rows", "name"),
    where(
        lambda rows, name: name == "gpt-neo" or rows == 17,
        [2, 4, 7, MAX_ROWS, 17, MAX_ROWS_AMX],
        ["gpt2", "gpt-neo", "gpt-neox"],
    ),
)
def test_rows_share_the_weights(name: str, rows: int, dtype: torch.dtype) -> None:
    assert largest_error(build(name, dtype), ids_of(rows, 40)) < ERRORS[dtype]


@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gpt-neox"])
def test_quantized_weights_are_taken_for_what_they_stand_for(name: str, precision: str, rows: int) -> None:
    model, exact = build(name), build(name)
    quantize(model, precision)
    for path, layer in model.named_modules():
        if hasattr(layer, "dequantized"):
            target = exact.get_submodule(path)
            target.weight = nn.Parameter(layer.dequantized().t() if isinstance(target, Conv1D) else layer.dequantized())
    rounds_int4 = INT4_BY_INT8 and precision == "int4"
    inputs_are_rounded = rounds_int4 or (rows > 1 and is_available())  # to int8; a tied head has 8 bits anyway
    assert largest_error(model, ids_of(rows, 30), exact) < (0.08 if inputs_are_rounded else ERRORS[torch.float32])


PADDING = torch.tensor([0, 3, 12])  # columns before each row


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gpt-neox", "gpt-neox-stretched"])
def test_rows_may_have_padding_before_them(name: str, dtype: torch.dtype) -> None:
    model, ids = build(name, dtype), ids_of(3)
    mask = torch.arange(LENGTH) >= PADDING.unsqueeze(1)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    step, caches = (
        compiled_step(model, 3, PADDING),
        (DynamicCache(config=model.config), DynamicCache(config=model.config)),
    )
    assert isinstance(step, CompiledStep)

    def plain(columns: slice, cache: DynamicCache) -> Tensor:
        told = {"attention_mask": mask[:, : columns.stop], "position_ids": positions[:, columns]}
        logits = model(ids[:, columns], past_key_values=cache, use_cache=True, logits_to_keep=1, **told).logits
        return logits.float()

    for cache in caches:
        plain(slice(0, 14), cache)
    for place in range(14, LENGTH):
        assert step.supports(ids[:, place, None], caches[0])
        got, want = step(ids[:, place, None], caches[0]), plain(slice(place, place + 1), caches[1])
        assert (got - want).abs().max() < ERRORS[dtype] * want.std()


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2, "seed": 4}])
@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gpt-neox"])
def test_generate_steps_padded_prompts_compiled(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, calls = build(name), ids_of(3, 20), []
    mask = (torch.arange(20) >= PADDING.unsqueeze(1)).long()
    common = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **options}
    want = model.generate(ids, disable_compile=True, **common)
    real = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda *given: (calls.append(1), real(*given))[1])
    assert model.generate(ids, **common).tolist() == want.tolist()
    assert len(calls) == 11


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gpt-neox"])
def test_a_mask_with_holes_gives_the_tokens_of_the_plain_step(name: str) -> None:
    model, ids, mask = build(name), ids_of(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, 4] = mask[1, 0] = mask[1, 6] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    want = model.generate(ids, disable_compile=True, **options)
    assert model.generate(ids, **options).tolist() == want.tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptrio.kernels.cpu_decode import thread_pool as team
    from gptrio.models.base import compiled

    monkeypatch.setattr(compiled, "_SMALL", 0)
    shared = team.Team(threads)
    monkeypatch.setattr(team, "team_of", lambda _: shared)
    for name in ("gpt2", "gpt-neo", "gpt-neox"):
        assert largest_error(build(name), ids_of(3, 40)) < ERRORS[torch.float32]


def test_steps_of_several_threads_of_python_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptrio.models.base.compiled._SMALL", 0)
    model, results = build("gpt2"), {}

    def run(seed: int) -> None:
        prompt = torch.randint(0, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(seed))
        results[seed] = model.generate(prompt, max_new_tokens=30, do_sample=False, pad_token_id=0).tolist()

    seeds = range(6)
    for seed in seeds:
        run(seed)
    alone = dict(results)
    workers = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == alone


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "seed": 3, "top_k": 20},
        {"num_beams": 4, "do_sample": False},
        {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 0.5, "do_sample": False},
        {"num_return_sequences": 3, "do_sample": True, "seed": 1},
        {"do_sample": False, "repetition_penalty": 1.3, "min_new_tokens": 40},
        {"do_sample": False, "cache_implementation": "dynamic_full"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["gpt2", "gpt-neo", "gpt-neox"])
def test_generate_gives_the_same_tokens(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build(name), []
    plain_call = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda *given: calls.append(1) or plain_call(*given))
    common = {"max_new_tokens": 60, "eos_token_id": 7, "pad_token_id": 0, **options}
    compiled = model.generate(ids_of(2, 9), **common)
    assert calls
    assert compiled.tolist() == model.generate(ids_of(2, 9), disable_compile=True, **common).tolist()


@pytest.mark.parametrize("dtype", ERRORS)
def test_more_rows_go_the_plain_way(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    by_tiles = dtype is torch.bfloat16 and is_available()
    rows = (MAX_ROWS_AMX if by_tiles else MAX_ROWS) + 1
    monkeypatch.setattr(CompiledStep, "__call__", None)
    out = build("gpt2", dtype).generate(ids_of(rows, 4), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape == (rows, 8)


def test_a_prompt_packs_no_weights() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=256, n_layer=1, n_head=4)).bfloat16().eval()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    model.generate(ids_of(2, 9), **options)
    model.generate(ids_of(1, 9), num_beams=4, **options)
    assert packed_bytes(model) == 0
    model.generate(ids_of(MAX_ROWS_AMX + 1, 9), **options)
    assert packed_bytes(model) > 0 or not can_pack(torch.bfloat16)


def test_torch_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptrio.models.base.compiled._SMALL", 0)
    threads = torch.get_num_threads()
    build("gpt2").generate(ids_of(1, 4), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.get_num_threads() == threads


def test_an_edit_in_place_is_seen() -> None:
    model = build("gpt2")
    step = step_of(model)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.mul_(1.5)
        caches = DynamicCache(), DynamicCache()
        for cache in caches:
            model.next_logits(ids_of(1, 5), cache)
        got, want = (call(ids_of(1, 1), cache) for call, cache in zip((step, model.next_logits), caches, strict=True))
    torch.testing.assert_close(got, want)


def narrow() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=24, n_layer=1, n_head=3))


def pruned() -> nn.Module:
    model = gpt2()
    model.prune_heads({0: [1]})
    return model


def hooked_forward() -> nn.Module:
    model = gpt2()
    mlp = model.transformer.h[0].mlp
    mlp.forward = lambda x: x
    return model


def of_two_dtypes() -> nn.Module:
    model = gpt2()
    model.transformer.ln_f.double()
    return model


def adapted() -> nn.Module:
    model = gpt2()
    layer = model.transformer.h[0].attn.c_proj
    model.transformer.h[0].attn.c_proj = type("Adapter", (type(layer),), {"__module__": "elsewhere"})(64, 64)
    return model


@pytest.mark.parametrize(
    "make", [narrow, pruned, hooked_forward, of_two_dtypes, adapted, lambda: gpt2(activation_function="tanh")]
)
def test_unknown_parts_are_left_to_the_plain_step(make: Any) -> None:
    assert isinstance(compiled_step(make().eval()), Reason)


class HalfBlock(GPT2Block):
    """A block of a class outside the package, which computes something of its own: half of what the MLP gives."""

    def forward(self, x: Tensor, context: Any) -> Any:
        attended, _ = self.attn(self.ln_1(x), context)
        x = context.select(x) + attended
        return (x + 0.5 * self.mlp(self.ln_2(x)),)


class SwappedBlock(GPT2Block):
    """A block of a class outside the package that says what it computes: its norms change places."""

    compiled_modules = GPT2Block.compiled_modules

    def forward(self, x: Tensor, context: Any) -> Any:
        attended, _ = self.attn(self.ln_2(x), context)
        x = context.select(x) + attended
        return (x + self.mlp(self.ln_1(x)),)

    def spec(self) -> BlockSpec:
        own = super().spec()
        return dataclasses.replace(own, norms=own.norms[::-1])


def of_blocks(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    model: Any = gpt2()
    model.transformer.h = nn.ModuleList([kind(model.config, i) for i in range(2)])
    for block in model.transformer.h:
        nn.init.normal_(block.ln_1.weight)
    return model.eval()


def test_a_block_of_any_class_that_says_what_it_computes_is_compiled() -> None:
    assert largest_error(of_blocks(SwappedBlock), ids_of(2, 30)) < ERRORS[torch.float32]


def test_a_class_does_not_inherit_what_its_base_says_it_computes() -> None:
    reason = compiled_step(of_blocks(HalfBlock))
    assert isinstance(reason, Reason) and "HalfBlock" in reason


def test_training_and_autocast_are_left_to_the_plain_step() -> None:
    assert isinstance(compiled_step(build("gpt2").train()), Reason)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(compiled_step(build("gpt2")), Reason)


def test_the_context_ends_where_positions_end() -> None:
    from gptrio.errors import InputError

    model = build("gpt2")
    step, cache = step_of(model), DynamicCache()
    with torch.inference_mode(), pytest.raises(InputError, match="256"):
        model.next_logits(ids_of(1, 256), cache)
        step(ids_of(1, 1), cache)


def test_a_copied_model_steps_by_its_own_weights() -> None:
    model = build("gpt-neox")
    model.generate(ids_of(1, 4), max_new_tokens=3, do_sample=False, pad_token_id=0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.embed_out.weight.neg_()
    assert largest_error(other, ids_of(1, 20)) < ERRORS[torch.float32]
