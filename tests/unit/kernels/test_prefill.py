"""Compiled attention and GELU of a prompt, against float64."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM
from gptrio.errors import GuardError
from gptrio.kernels import cpu_prefill, guards
from gptrio.kernels import linear as linear_room
from gptrio.kernels.cpu_decode.compilation import unready_reason
from gptrio.kernels.linear import packed_inference

ERROR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # relative to the largest result
SHAPES = [  # rows, heads, queries, keys, width, window
    (1, 2, 64, 64, 64, None),
    (2, 3, 100, 100, 32, None),
    (1, 2, 77, 203, 64, None),  # after 126 keys of the past
    (2, 1, 333, 333, 32, 50),
    (1, 2, 40, 130, 64, 7),
    (1, 1, 700, 700, 128, 256),
]


@pytest.fixture
def kernels() -> Any:
    """The compiled kernels, which no test can do without."""
    if reason := unready_reason():
        pytest.skip(reason)
    if cpu_prefill.kernels is None:
        pytest.skip("torch has no OpenMP that compiled code can use")
    return cpu_prefill.kernels


@pytest.fixture(params=[1, 2], ids=["one_thread", "two_threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads of torch, and so of the kernels."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def inputs(rows: int, heads: int, queries: int, keys: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries as a projection leaves them, and keys and values as a cache with room for more does."""
    q = torch.randn(rows, queries, 3 * heads * width)[..., : heads * width].view(rows, queries, heads, width)
    k, v = (torch.randn(rows, heads, keys + 9, width)[:, :, :keys] for _ in range(2))
    return [q.transpose(1, 2).to(dtype), k.to(dtype), v.to(dtype)]


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    offset = k.shape[2] - q.shape[2]
    query, key = torch.arange(q.shape[2])[:, None] + offset, torch.arange(k.shape[2])
    is_seen = (key <= query) & (key > query - (window or 1 << 30))
    scores = (q.double() @ k.double().transpose(-1, -2) * scale).masked_fill(~is_seen, -math.inf)
    return (scores.softmax(-1) @ v.double()).transpose(1, 2).flatten(2)


def skip_unknown(kernels: Any, dtype: torch.dtype) -> None:
    if not kernels.supports_activation("gelu_tanh", dtype, 1 << 20):
        pytest.skip(f"the processor has no vectors of {dtype}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_attention_equals_float64(kernels: Any, threads: int, dtype: torch.dtype, shape: tuple[Any, ...]) -> None:
    *sizes, window = shape
    q, k, v = inputs(*sizes, dtype)
    assert kernels.supports_attention(q, k, v)
    out = kernels.attend(q, k, v, 0.2, k.shape[2] - q.shape[2], window)
    want = exact(q, k, v, 0.2, window)
    assert out.dtype is dtype and out.shape == want.shape
    assert (out.double() - want).abs().max() <= ERROR[dtype] * want.abs().max()


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_what_comes_later_does_not_matter(kernels: Any, dtype: torch.dtype) -> None:
    q, k, v = inputs(1, 2, 90, 90, 64, dtype)
    before = kernels.attend(q, k, v, 0.2, 0, None)
    k[:, :, 50:], v[:, :, 50:] = 1e4, -1e4
    after = kernels.attend(q, k, v, 0.2, 0, None)
    assert torch.equal(before[:, :50], after[:, :50])
    assert not torch.equal(before[:, 50:], after[:, 50:])


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_nan_and_large_scores(kernels: Any, dtype: torch.dtype) -> None:
    q, k, v = inputs(1, 1, 64, 64, 32, dtype)
    out = kernels.attend(q * 100, k * 100, v, 1.0, 0, None)
    want = exact(q * 100, k * 100, v, 1.0, None)
    assert (out.double() - want).abs().max() <= ERROR[dtype] * want.abs().max()
    k[:, :, 40] = math.nan
    out = kernels.attend(q, k, v, 1.0, 0, None)
    assert not out[:, :40].isnan().any() and out[:, 40:].isnan().all()


def test_other_tensors_are_left_to_torch(kernels: Any) -> None:
    def supports(*sizes: int, dtype: torch.dtype = torch.float32) -> bool:
        answer: bool = kernels.supports_attention(*inputs(*sizes, dtype))
        return answer

    assert supports(1, 2, 32, 40, 64)
    assert not supports(1, 2, 31, 40, 64)
    assert not supports(1, 2, 64, 64, 24)
    assert not supports(1, 2, 64, 64, 64, dtype=torch.float64)
    q, k, v = inputs(1, 2, 64, 64, 64, torch.float32)
    assert not kernels.supports_attention(q, k.transpose(-1, -2), v)
    assert not kernels.supports_attention(torch.nn.Parameter(q), k, v)
    assert not kernels.supports_attention(q, k.bfloat16(), v)


@pytest.mark.parametrize("kind", ["gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_gelu_equals_float64(kernels: Any, threads: int, dtype: torch.dtype, kind: str) -> None:
    skip_unknown(kernels, dtype)
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 3e38, -3e38, math.inf, math.nan])
    x = torch.cat([torch.randn(1 << 17) * 3, torch.linspace(-12, 12, 1 << 12), special.repeat(8)]).to(dtype)
    want = F.gelu(x.double(), approximate="tanh" if kind == "gelu_tanh" else "none")
    out = kernels.activate_(x.clone(), kind).double()
    assert torch.equal(out.isnan(), want.isnan()) and torch.equal(out.isinf(), x.isinf())
    known = want.isfinite() & (x.abs() < 1e30)
    limit = 4e-7 if dtype is torch.float32 else 1e-6
    relative = 3e-6 if dtype is torch.float32 else 2**-8
    assert ((out - want).abs()[known] <= limit + relative * want.abs()[known]).all()
    huge = x.abs() > 1e30
    assert torch.equal(out[huge & (x > 0)].float(), x[huge & (x > 0)].float())


def models() -> list[Any]:
    sizes = {"hidden_size": 64, "max_position_embeddings": 256, "vocab_size": 300}
    neo = {"num_layers": 3, "num_heads": 2, "attention_types": [[["local"], 3]], "window_size": 24}
    neox = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 1024}
    return [
        GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=3, n_head=2, n_positions=256, vocab_size=300, n_inner=1024)),
        GPTNeoForCausalLM(GPTNeoConfig(**sizes, **neo, intermediate_size=1024)),
        GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **neox)),
    ]


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
@pytest.mark.parametrize("index", range(3), ids=["gpt2", "gpt_neo", "gpt_neox"])
def test_generation_is_the_same_without(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, index: int, dtype: torch.dtype
) -> None:
    skip_unknown(kernels, dtype)
    model = models()[index].to(dtype).eval()
    ids = torch.randint(1, 300, (2, 130))
    calls = {"attend": 0, "activate_": 0}
    for name in calls:
        method = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, _counted(method, calls, name), raising=False)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    plain = {name: value for name, value in options.items() if name not in ("return_dict_in_generate", "output_logits")}
    tokens = model.generate(ids, **plain)
    assert calls == {"attend": 2, "activate_": 2}  # of three layers: the last one computes the last position only
    logits = model.generate(ids, **options).logits[0]
    calls["attend"] = calls["activate_"] = 0
    plain |= {"disable_compile": True}
    options |= {"disable_compile": True}
    assert dtype is not torch.float32 or torch.equal(tokens, model.generate(ids, **plain))
    want = model.generate(ids, **options).logits[0]
    assert calls == {"attend": 0, "activate_": 0}
    assert (logits - want).abs().max() <= 10 * ERROR[dtype] * want.abs().max()


def _counted(method: Any, calls: dict[str, int], name: str) -> Any:
    def counted(*args: Any) -> Any:
        calls[name] += 1
        return method(*args)

    return counted


def test_a_plain_forward_is_left_to_torch(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models()[0].eval()
    monkeypatch.setattr(kernels, "attend", None, raising=False)
    with torch.no_grad():
        assert model(torch.arange(64)[None]).logits.shape == (1, 64, 300)


def test_the_second_generation_loads_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(linear_room, "_calls", iter(range(4)))
    monkeypatch.setattr(linear_room, "unready_reason", lambda: looks.append(1))
    model, elsewhere = models()[0], torch.nn.Linear(1, 1, device="meta")
    for expected, each in ((0, model), (0, elsewhere), (0, elsewhere), (1, model), (1, model)):
        with packed_inference(each):
            assert len(looks) == expected
    with packed_inference(model, may_compile=False):
        assert next(linear_room._calls) == 3


def test_a_model_in_training_mode_drops_weights_as_torch_does(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models()[0].train()
    ids, options = torch.randint(1, 300, (1, 130)), {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    logits = []
    for hides in (False, True):
        if hides:
            monkeypatch.setattr(cpu_prefill, "kernels", None)
        torch.manual_seed(5)
        logits.append(model.generate(ids, **options).logits[0])
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["out", "workspace"])
def test_guard_words_show_what_is_written_outside(kernels: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("GPTRIO_GUARDS", "1")
    q, k, v = inputs(1, 2, 70, 70, 32, torch.float32)
    want = exact(q, k, v, 0.2, None)
    assert (kernels.attend(q, k, v, 0.2, 0, None).double() - want).abs().max() < 1e-5
    check = guards.check

    def spoiled(tensor: Tensor, what: str) -> None:
        if what.startswith("the result" if name == "out" else "the workspace"):
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            whole[-1] ^= 1
        check(tensor, what)

    monkeypatch.setattr(guards, "check", spoiled)
    with pytest.raises(GuardError, match="of attention"):
        kernels.attend(q, k, v, 0.2, 0, None)


def test_another_process_loads_the_code_and_compiles_nothing(kernels: Any) -> None:
    program = (
        "from gptrio.kernels.cpu_decode.compilation import CompiledCode; from gptrio.kernels import cpu_prefill;"
        "CompiledCode().load(); print(cpu_prefill.kernels is not None)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr, run.returncode) == ("True\n", "", 0)
