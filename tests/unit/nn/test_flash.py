"""The flash_attention_2 back end, over a float32 stand-in of the package's two functions."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import gptrio
from gptrio.nn.attention import AttentionOptions, attention, check_implementation
from gptrio.nn.masks import AttentionMask
from gptrio.testing import assert_close, tiny_config

FAMILIES = ["gpt2", "gpt_neo", "gpt_neox"]
CALLS: list[dict[str, Any]] = []
pytestmark = pytest.mark.filterwarnings("ignore:the batch is padded on the left")


def one_sequence(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, window: tuple[int, int]) -> Tensor:
    """Attention of (T, H, D) to (S, H, D) as the package documents it: the last query stands at the last key."""
    places = torch.arange(len(q))[:, None] + len(k) - len(q)
    keys = torch.arange(len(k))
    allowed = torch.ones(len(q), len(k), dtype=torch.bool)
    if causal:
        allowed &= keys <= places
    if window[0] >= 0:
        allowed &= keys >= places - window[0]
    if window[1] >= 0:
        allowed &= keys <= places + window[1]
    scores = torch.einsum("thd,shd->hts", q.float(), k.float()) * scale
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num()
    return torch.einsum("hts,shd->thd", weights, v.float()).to(q.dtype)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    CALLS.append(
        {"scale": softmax_scale, "causal": causal, "window": window_size, "dropout": dropout_p, "rows": len(q)}
    )
    return torch.stack([one_sequence(*row, softmax_scale, causal, window_size) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
):
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (max_seqlen_q, max_seqlen_k) == (cu_seqlens_q.diff().max(), cu_seqlens_k.diff().max())
    CALLS.append({"lengths": cu_seqlens_q.diff().tolist(), "window": window_size, "dropout": dropout_p})
    q_rows, k_rows = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    rows = zip(q.split(q_rows), k.split(k_rows), v.split(k_rows), strict=True)
    return torch.cat([one_sequence(*row, softmax_scale, causal, window_size) for row in rows])


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    CALLS.clear()
    return module


def models(family: str, **config: Any) -> tuple[Any, Any]:
    """The same model twice: eager, and with this back end."""
    eager = gptrio.AutoModelForCausalLM.from_config(
        tiny_config(family, initializer_range=0.2, **config), attn_implementation="eager"
    )
    flash = gptrio.AutoModelForCausalLM.from_config(
        tiny_config(family, initializer_range=0.2, **config), attn_implementation="flash_attention_2"
    )
    flash.load_state_dict(eager.state_dict())
    return eager.eval(), flash.eval()


def padding(*lengths: int, side: str) -> Tensor:
    places, width = torch.arange(max(lengths)), max(lengths)
    real = torch.tensor(lengths)[:, None]
    return (places < real if side == "right" else places >= width - real).long()


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_gradients(family: str) -> None:
    eager, flash = models(family)
    ids = torch.randint(0, 250, (2, 37))
    assert_close(flash(ids).logits, eager(ids).logits)
    for model in (eager, flash):
        model.train()
        model.config.use_cache = False
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model(ids, labels=ids).loss.backward()
    for (name, one), (_, other) in zip(flash.named_parameters(), eager.named_parameters(), strict=True):
        assert_close(one.grad, other.grad, 1e-4, name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_taken_out(family: str, side: str) -> None:
    eager, flash = models(family)
    ids, mask = torch.randint(0, 250, (3, 37)), padding(37, 20, 1, side=side)
    inputs = {"input_ids": ids, "attention_mask": mask}
    actual, expected = flash(**inputs).logits, eager(**inputs).logits
    assert_close(actual[mask.bool()], expected[mask.bool()])
    assert actual.isfinite().all()
    assert CALLS[0]["lengths"] == [37, 20, 1]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [None, "left"])
def test_cached_decode(family: str, side: str | None) -> None:
    eager, flash = models(family)
    ids = torch.randint(0, 250, (3, 37))
    mask = torch.ones_like(ids) if side is None else padding(37, 29, 12, side="left")
    expected = eager(input_ids=ids, attention_mask=mask).logits
    past, start = None, 0
    for end in (20, 21, 22, 36, 37):
        out = flash(input_ids=ids[:, start:end], attention_mask=mask[:, :end], past_key_values=past)
        real = mask[:, start:end].bool()
        assert_close(out.logits[real], expected[:, start:end][real])
        past, start = out.past_key_values, end


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_packed_sequences(family: str) -> None:
    eager, flash = models(family, use_cache=False)
    ids = torch.randint(0, 250, (2, 12))
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3], [*range(12)]])
    inputs = {"input_ids": ids, "position_ids": positions}
    assert_close(flash(**inputs).logits, eager(**inputs).logits)
    assert CALLS[0]["lengths"] == [5, 3, 4, 12]


def test_scales_and_windows_are_told() -> None:
    ids = torch.randint(0, 250, (1, 12))
    models("gpt2", scale_attn_by_inverse_layer_idx=True)[1](ids)
    assert [call["scale"] for call in CALLS] == pytest.approx([8**-0.5, 8**-0.5 / 2])
    models("gpt2", scale_attn_weights=False)[1](ids)
    assert CALLS[-1]["scale"] == 1.0
    models("gpt_neo")[1](ids)
    assert [(call["scale"], call["window"]) for call in CALLS[-2:]] == [(1.0, (-1, -1)), (1.0, (7, 0))]
    assert all(call["causal"] for call in CALLS)


def test_dropout_is_told_in_training_only() -> None:
    _, flash = models("gpt2", attn_pdrop=0.3)
    ids = torch.randint(0, 250, (1, 12))
    flash(ids)
    flash.train()(ids)
    assert [call["dropout"] for call in CALLS] == [0.0, 0.0, 0.3, 0.3]


@pytest.mark.parametrize("family", FAMILIES)
def test_head_mask(family: str) -> None:
    eager, flash = models(family)
    ids, mask = torch.randint(0, 250, (2, 12)), torch.rand(2, 4)
    assert_close(flash(ids, head_mask=mask).logits, eager(ids, head_mask=mask).logits)
    assert CALLS


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_custom_masks_are_computed_without_it(family: str) -> None:
    eager, flash = models(family)
    ids = torch.randint(0, 250, (2, 12))
    for one, other in zip(
        flash(ids, output_attentions=True).attentions, eager(ids, output_attentions=True).attentions, strict=True
    ):
        assert_close(one, other)
    custom = torch.zeros(2, 1, 12, 12).masked_fill(torch.rand(2, 1, 12, 12) < 0.3, -1e4)
    assert_close(flash(ids, attention_mask=custom).logits, eager(ids, attention_mask=custom).logits)
    assert CALLS == []


def test_windows_over_holes_are_computed_without_it() -> None:
    """Taken out, padding between real tokens would bring positions nearer that the window keeps apart."""
    eager, flash = models("gpt_neo")
    ids, mask = torch.randint(0, 250, (2, 30)), torch.ones(2, 30, dtype=torch.long)
    mask[0, 10:15] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert_close(flash(**inputs).logits[mask.bool()], eager(**inputs).logits[mask.bool()])
    assert [call["window"] for call in CALLS] == [(-1, -1)]  # the global layer


def test_cross_attention() -> None:
    eager, flash = models("gpt2", add_cross_attention=True)
    ids, states = torch.randint(0, 250, (2, 7)), torch.randn(2, 9, 32)
    inputs = {"encoder_hidden_states": states, "encoder_attention_mask": padding(9, 4, side="right")}
    assert_close(flash(ids, **inputs).logits, eager(ids, **inputs).logits)


def test_all_padding_is_finite() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    real = torch.tensor([[False] * 5, [True] * 5])
    mask = AttentionMask(5, 5, q.device, attention_mask=real)
    out, _ = attention(q, k, v, mask, AttentionOptions(0.3), implementation="flash_attention_2")
    assert torch.equal(out[0], torch.zeros_like(out[0]))


def test_autocast_decides_the_type() -> None:
    eager, flash = models("gpt_neox")
    ids = torch.randint(0, 250, (2, 12))
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(flash(ids).logits.float(), eager(ids).logits.float(), 0.05)


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(gptrio.MissingDependencyError, match=r"needs the flash_attn package and an NVIDIA GPU.*sdpa"):
        gptrio.AutoModelForCausalLM.from_config(tiny_config("gpt2"), attn_implementation="flash_attention_2")
    model = gptrio.AutoModelForCausalLM.from_config(tiny_config("gpt2"))
    with pytest.raises(gptrio.MissingDependencyError, match="flash_attn"):
        model.set_attn_implementation("flash_attention_2")


def test_old_package_is_told(package: ModuleType) -> None:
    package.flash_attn_func = lambda q, k, v, dropout_p, softmax_scale, causal: q
    with pytest.raises(gptrio.MissingDependencyError, match=r"2\.3 or newer"):
        check_implementation("flash_attention_2")
