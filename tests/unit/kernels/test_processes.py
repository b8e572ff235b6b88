"""The kernels in other processes: older instruction sets, one thread, after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import first

PROGRAM = """
import os, torch
from gptrio.kernels.linear import packed_inference
from gptrio.kernels.formats import dequantize_int4, dequantize_int8, quantize_int4, quantize_int8
from gptrio.kernels.quantized import quantized_linear
from gptrio.nn.linear import Conv1D, Linear
if "THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["THREADS"]))
torch.manual_seed(0)

def check():
    for dtype, error in ((torch.float32, 2e-6), (torch.bfloat16, 1.2e-2), (torch.float16, 1.5e-3)):
        for module in (Linear(768, 300), Conv1D(300, 768)):
            module = module.to(dtype)
            for rows in (1, 4, 40):
                x = torch.randn(rows, 768).to(dtype)
                weight = module.weight.double().T if isinstance(module, Linear) else module.weight.double()
                with torch.inference_mode(), packed_inference(module):
                    got = module(x).double()
                want = x.double() @ weight + module.bias.double()
                assert (got - want).abs().max() <= error * want.abs().max(), (dtype, rows)

    for bits, make, back in ((8, quantize_int8, dequantize_int8), (4, lambda w: quantize_int4(w, 32), dequantize_int4)):
        codes, scale = make(torch.randn(300, 768))
        for rows in (1, 4, 40):
            x = torch.randn(rows, 768)
            with torch.inference_mode():
                got = quantized_linear(x, codes, scale, None, bits=bits).double()
            want = x.double() @ back(codes, scale, torch.float64).T
            assert (got - want).norm() <= 0.02 * want.norm(), (bits, rows)
"""

DECODING = """
import copy, os, torch
from gptrio import GPT2Config, GPT2LMHeadModel, quantize
from gptrio.cache import DynamicCache
from gptrio.kernels.cpu_decode import Reason
from gptrio.models.base import compiled

compiled._SMALL = 0  # as many threads as for a large model
torch.set_num_threads(int(os.environ.get("THREADS", "2")))
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=64, n_layer=2, n_head=2)).eval()
ids = torch.randint(0, 300, (2, 5))
options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

@torch.inference_mode()
def error(model, step):
    caches = DynamicCache(), DynamicCache()
    for cache in caches:
        model.next_logits(ids, cache)
    new = ids[:, :1]
    assert step.supports(new, caches[0])
    got, want = step(new, caches[0]), model.next_logits(new, caches[1]).float()
    return ((got - want).abs().max() / want.std()).item()

def check():
    bounds = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.06, "int8": 0.06, "int4": 0.06}
    for precision, bound in bounds.items():
        own = copy.deepcopy(model)
        if isinstance(precision, str):
            quantize(own, precision)
        step = own.to(precision if isinstance(precision, torch.dtype) else torch.float32).compiled_step(2)
        without = isinstance(step, Reason)
        assert without == ("WITHOUT" in os.environ), step
        assert without or error(own, step) < bound, (precision, error(own, step))
        got, want = own.generate(ids, **options), own.generate(ids, disable_compile=True, **options)
        assert torch.equal(got, want) or precision is not torch.float32
"""


RUN = """
check()
if "FORK" in os.environ:
    child = os.fork()
    if child == 0:
        check()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check()
"""


def run(program: str = PROGRAM, **environment: str) -> None:
    source = Path(__file__).parents[3] / "src"
    result = subprocess.run(
        [sys.executable, "-c", program + RUN],
        env=os.environ | {"PYTHONPATH": os.fspath(source)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "environment",
    first(
        [
            {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
            {"THREADS": "3"},
            {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"},
            {"THREADS": "1"},
            {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        ],
        2,
    ),
    ids=str,
)
def test_products_are_right(environment: dict[str, str]) -> None:
    run(**environment)


def test_products_are_right_after_fork() -> None:
    run(FORK="1")


@pytest.mark.parametrize(
    "environment",
    first(
        [
            {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2", "WITHOUT": "1"},
            {"FORK": "1"},
            {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"},
            {"THREADS": "1"},
        ],
        2,
    ),
    ids=str,
)
def test_compiled_decoding_is_right(environment: dict[str, str]) -> None:
    pytest.importorskip("numba")
    run(DECODING, **environment)
