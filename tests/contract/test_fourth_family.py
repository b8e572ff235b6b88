"""A family of this file's own, written with public seams only, works with every head, cache, runner and weight format.

Its block is that of GPT-J (Wang and Komatsuzaki, 2021): rotary positions, one norm, attention without biases and an MLP
side by side. Numbers are compared with the formula written in plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptrio import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    quantize,
)
from gptrio.cache import DynamicCache, OffloadedCache, QuantizedCache, StaticCache
from gptrio.config import PretrainedConfig
from gptrio.config.base import config_class
from gptrio.config.fields import count, flag, number
from gptrio.config.rotary import RotarySettings
from gptrio.kernels.cpu_decode import Reason
from gptrio.kernels.cpu_decode.compilation import unready_reason
from gptrio.models.base import heads
from gptrio.models.base.backbone import EMBEDDINGS, Backbone
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.nn.activations import get_activation
from gptrio.nn.attention import split_heads
from gptrio.nn.blocks import Block, BlockOutput, BlockSpec, MultiHeadAttention
from gptrio.nn.context import AttentionContext
from gptrio.nn.fast_call import Embedding, FastCallModule, LayerNorm
from gptrio.nn.linear import Linear, feed_forward
from gptrio.nn.rotary import RotaryEmbedding, RotaryTables, rotate
from gptrio.testing import assert_close
from tests.reference import randomise

# the family -----------------------------------------------------------------------------------------------------------


@config_class
class FourthConfig(PretrainedConfig):
    model_type: ClassVar[str] = "fourth"
    vocab_size: int = count(61)
    hidden_size: int = count(64)
    num_hidden_layers: int = count(3)
    num_attention_heads: int = count(4)
    max_position_embeddings: int = count(64)
    rotary_dim: int = count(8)
    norm_eps: float = number(1e-5, ge=0)
    use_cache: bool = flag(True)


class FourthAttention(MultiHeadAttention):
    def __init__(self, config: FourthConfig, layer_idx: int) -> None:
        width = config.hidden_size
        super().__init__(width, config.num_attention_heads, layer_idx)
        self.query, self.key, self.value, self.merge = (Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        q, k, v = (split_heads(project(x), self.head_dim) for project in (self.query, self.key, self.value))
        q, k = rotate(torch.stack([q, k], -2), cast(RotaryTables, context.rotary)).unbind(-2)
        attended, weights = context.attend(q, k, v, self.layer_idx, self.options())
        return self.merge(attended), weights

    @property
    def dropout_rate(self) -> float:
        return 0.0


class FourthMLP(FastCallModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen, self.act, self.narrow = (
            Linear(width, 4 * width),
            get_activation("gelu_new"),
            Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward(x, self.widen, self.act, self.narrow)


class FourthBlock(Block):
    compiled_modules: ClassVar = {"attention": (FourthAttention,), "mlp": (FourthMLP,)}

    def __init__(self, config: FourthConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.attention = FourthAttention(config, layer_idx)
        self.mlp = FourthMLP(config.hidden_size)

    def forward(self, x: Tensor, context: AttentionContext) -> BlockOutput:
        normed = self.norm(x)
        attended, weights = self.attention(normed, context)
        x = context.select(x) + attended + self.mlp(context.select(normed))
        return (x, weights) if context.need_weights else (x,)

    @property
    def self_attention(self) -> FourthAttention:
        return self.attention

    def spec(self) -> BlockSpec:
        attention, mlp = self.attention, self.mlp
        width = attention.all_heads * attention.head_dim
        return BlockSpec(
            norms=(self.norm, self.norm),
            projections=(attention.query, attention.key, attention.value),
            qkv_offsets=(width, 2 * width, attention.head_dim),
            attention=attention,
            output=attention.merge,
            mlp=(mlp.widen, mlp.act, mlp.narrow),
            is_parallel=True,
        )


class FourthPreTrainedModel(PreTrainedModel):
    config_class = FourthConfig
    base_model_prefix = "body"


class FourthModel(Backbone, FourthPreTrainedModel):
    positions_are_relative = True
    compiled_modules: ClassVar = {"tokens": EMBEDDINGS, "rotary": (RotaryEmbedding,)}

    def __init__(self, config: FourthConfig) -> None:
        super().__init__(config)
        self.tokens = Embedding(config.vocab_size, config.hidden_size)
        self.stack = nn.ModuleList([FourthBlock(config, i) for i in range(config.num_hidden_layers)])
        self.last_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.rotary = RotaryEmbedding(RotarySettings(config.rotary_dim, 10000, config.max_position_embeddings))
        self.post_init()

    def embed(self, x: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        return x

    def rotary_tables(self, x: Tensor, position_ids: Tensor) -> RotaryTables:
        cos, sin = self.rotary(x, position_ids)
        return cos[:, None, :, None], sin[:, None, :, None]

    blocks = property(lambda self: self.stack)
    final_norm = property(lambda self: self.last_norm)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.tokens = value


class FourthForCausalLM(heads.CausalLMHead, FourthPreTrainedModel):
    backbone_class = FourthModel
    compiled_modules: ClassVar[dict[str, Any]] = {}
    _tied_weights_keys: ClassVar[list[str]] = ["lm_head.weight"]


class FourthForSequenceClassification(heads.SequenceClassificationHead, FourthPreTrainedModel):
    backbone_class = FourthModel


class FourthForTokenClassification(heads.TokenClassificationHead, FourthPreTrainedModel):
    backbone_class = FourthModel


class FourthForQuestionAnswering(heads.QuestionAnsweringHead, FourthPreTrainedModel):
    backbone_class = FourthModel


# the formula ----------------------------------------------------------------------------------------------------------


def plain_states(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Hidden states (B, T, C) of all tokens, from the weights, one row and one head after the other."""
    body, config = dict(model.base_model.state_dict()), model.config
    mask = torch.ones_like(ids) if mask is None else mask
    states = torch.zeros(*ids.shape, config.hidden_size)
    for row, real in enumerate(mask.bool()):
        x = body["tokens.weight"][ids[row, real]]
        for i in range(config.num_hidden_layers):
            x = plain_block({k.removeprefix(f"stack.{i}."): w for k, w in body.items()}, x, config)
        states[row, real] = F.layer_norm(
            x, x.shape[-1:], body["last_norm.weight"], body["last_norm.bias"], config.norm_eps
        )
    return states


def plain_block(part: dict[str, Tensor], x: Tensor, config: FourthConfig) -> Tensor:
    """(T, C) to (T, C)."""
    length, width = x.shape
    head_width = width // config.num_attention_heads
    normed = F.layer_norm(x, (width,), part["norm.weight"], part["norm.bias"], config.norm_eps)
    future = torch.ones(length, length).triu(1).bool()
    attended = []
    for head in range(config.num_attention_heads):
        own = slice(head * head_width, (head + 1) * head_width)
        q, k, v = (normed @ part[f"attention.{name}.weight"][own].T for name in ("query", "key", "value"))
        scores = turned(q, config) @ turned(k, config).T / head_width**0.5
        attended.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ v)
    inner = F.gelu(normed @ part["mlp.widen.weight"].T + part["mlp.widen.bias"], approximate="tanh")
    fed = inner @ part["mlp.narrow.weight"].T + part["mlp.narrow.bias"]
    return x + torch.cat(attended, -1) @ part["attention.merge.weight"].T + fed


def turned(x: Tensor, config: FourthConfig) -> Tensor:
    """(T, D) with pairs (i, i + R / 2) of the first R features turned by the position's angles."""
    half = config.rotary_dim // 2
    angles = torch.arange(len(x))[:, None] / 10000 ** (torch.arange(half) / half)
    pairs = torch.complex(x[:, :half], x[:, half : 2 * half]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag, x[:, 2 * half :]], -1)


def plain_logits(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return plain_states(model, ids, mask) @ model.lm_head.weight.detach().T


def plain_greedy(model: Any, ids: Tensor, new: int) -> Tensor:
    for _ in range(new):
        ids = torch.cat([ids, plain_logits(model, ids)[:, -1:].argmax(-1)], 1)
    return ids


# what it must do ------------------------------------------------------------------------------------------------------

NEW = 12


def build(kind: type = FourthForCausalLM, **config: Any) -> Any:
    torch.manual_seed(3)
    model = kind(FourthConfig(**{"pad_token_id": 0, **config}))
    randomise(model, 0.1)
    return model.eval()


def prompt(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from gptrio.config import auto

    monkeypatch.setattr(auto, "CONFIG_MAPPING", dict(auto.CONFIG_MAPPING))
    AutoConfig.register("fourth", FourthConfig)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_logits_are_the_formulas(attn_implementation: str) -> None:
    model, ids = build(attn_implementation=attn_implementation), prompt()
    assert_close(model(ids).logits, plain_logits(model, ids), 1e-5)


def test_a_left_padded_batch_equals_its_rows() -> None:
    model, ids = build(), prompt()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    expected = plain_logits(model, ids, mask)
    assert_close(model(ids, attention_mask=mask).logits[mask.bool()], expected[mask.bool()], 1e-5)
    made = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    for row in range(2):
        alone = plain_greedy(model, ids[row : row + 1, mask[row].bool()], NEW)
        assert torch.equal(made[row, -NEW:], alone[0, -NEW:])


def test_other_heads() -> None:
    ids = prompt()
    ids[0, -2:] = 0  # padding at the end
    states = plain_states(model := build(FourthForSequenceClassification, num_labels=3), ids)
    last = torch.stack([states[0, -3], states[1, -1]])
    output = model(ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 2]))
    assert_close(output.logits, last @ model.score.weight.T, 1e-5)
    mask = torch.ones_like(ids)
    model, labels = build(FourthForTokenClassification, num_labels=3), prompt() % 3
    expected = F.linear(plain_states(model, ids), model.classifier.weight, model.classifier.bias)
    output = model(ids, attention_mask=mask, labels=labels)
    assert_close(output.logits, expected, 1e-5)
    assert_close(output.loss, F.cross_entropy(expected.flatten(0, 1), labels.flatten()), 1e-5)
    model = build(FourthForQuestionAnswering)
    start, end = F.linear(plain_states(model, ids), model.qa_outputs.weight, model.qa_outputs.bias).unbind(-1)
    output = model(ids, attention_mask=mask)
    assert_close(output.start_logits, start, 1e-5)
    assert_close(output.end_logits, end, 1e-5)


def test_training_reaches_every_weight() -> None:
    model, ids = build(), prompt()
    with torch.enable_grad():
        loss = model(ids, labels=ids).loss
        loss.backward()
    assert_close(loss.detach(), F.cross_entropy(plain_logits(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["dynamic", "static", "quantized", "offloaded"])
def test_cached_steps_equal_the_formula(kind: str) -> None:
    model, ids = build(), prompt()
    caches = {
        "dynamic": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(model.config, 16),
        "quantized": lambda: QuantizedCache("quanto", model.config, nbits=8, q_group_size=16, residual_length=4),
        "offloaded": lambda: OffloadedCache(),
    }
    cache, steps = caches[kind](), []
    for step, places in zip(ids.split([5, 1, 1, 2], 1), torch.arange(9).split([5, 1, 1, 2]), strict=True):
        steps.append(model(step, past_key_values=cache, cache_position=places).logits)
    assert_close(torch.cat(steps, 1), plain_logits(model, ids), 0.02 if kind == "quantized" else 1e-5)
    if kind != "quantized":
        options = {} if kind == "dynamic" else {"cache_implementation": kind}
        made = model.generate(ids, max_new_tokens=NEW, do_sample=False, **options)
        assert torch.equal(made, plain_greedy(model, ids, NEW))


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_and_top_one_samples(use_cache: bool) -> None:
    model, ids = build(), prompt()
    expected = plain_greedy(model, ids, NEW)
    for options in ({"do_sample": False}, {"do_sample": True, "top_k": 1}):
        assert torch.equal(model.generate(ids, max_new_tokens=NEW, use_cache=use_cache, **options), expected)


def test_samples_are_drawn_from_the_formulas_scores() -> None:
    model, ids = build(), prompt()
    torch.manual_seed(1)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 0, "output_scores": True}
    made = model.generate(ids, max_new_tokens=NEW, return_dict_in_generate=True, **options)
    expected = plain_logits(model, made.sequences)[:, ids.shape[1] - 1 : -1] / 0.7
    assert_close(torch.stack(made.scores, 1), expected, 1e-5)


def test_beams() -> None:
    model, ids = build(), prompt(1)
    made = model.generate(
        ids, max_new_tokens=2, num_beams=61, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    first = plain_logits(model, ids)[0, -1].log_softmax(-1)  # as many beams as tokens: the search is exhaustive
    longer = torch.cat([ids.expand(61, -1), torch.arange(61)[:, None]], 1)
    both = first[:, None] + plain_logits(model, longer)[:, -1].log_softmax(-1)
    assert made.sequences[0, -2:].tolist() == [int(both.argmax()) // 61, int(both.argmax()) % 61]
    assert made.sequences_scores[0].item() == pytest.approx(both.max().item() / 2, abs=1e-5)


def test_contrastive_and_assisted() -> None:
    model, ids = build(), prompt(1)
    expected = plain_greedy(model, ids, NEW)
    contrastive = model.generate(ids, max_new_tokens=NEW, penalty_alpha=1e-6, top_k=3)
    assert torch.equal(contrastive, expected)
    draft = build(num_hidden_layers=1)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, assistant_model=draft, do_sample=False), expected)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_the_compiled_step_equals_the_eager_one(bits: int) -> None:
    if unready_reason() is not None:
        pytest.skip("steps cannot be compiled here")
    model, ids = build(), prompt(3)
    if bits < 32:
        quantize(model, f"int{bits}")
    cache, eager = DynamicCache(config=model.config), DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    model(ids, past_key_values=eager)
    step = model.compiled_step(3)
    assert not isinstance(step, Reason), step
    for token in prompt(3, 4).split(1, 1):
        assert step.supports(token, cache)
        assert_close(step(token, cache), model.next_logits(token, eager), 1e-5 if bits == 32 else 0.02)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.05), (4, 0.5)])
def test_weights_of_few_bits(bits: int, error: float) -> None:
    model, ids = build(), prompt()
    expected = plain_logits(model, ids)
    quantize(model, f"int{bits}")
    found = model(ids).logits
    assert 1e-4 < (found - expected).norm() / expected.norm() < error
    made = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert_close(model(made).logits, plain_logits(model.dequantize(), made), 0.03 if bits == 8 else 0.1)


def test_files_and_auto_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        AutoModel: FourthModel,
        AutoModelForCausalLM: FourthForCausalLM,
        AutoModelForSequenceClassification: FourthForSequenceClassification,
        AutoModelForTokenClassification: FourthForTokenClassification,
        AutoModelForQuestionAnswering: FourthForQuestionAnswering,
    }
    for auto, kind in kinds.items():
        monkeypatch.setattr(auto, "_registered", {})
        auto.register(FourthConfig, kind, exist_ok=True)
        model = build(kind)
        model.save_pretrained(tmp_path / kind.__name__)
        again = auto.from_pretrained(tmp_path / kind.__name__)
        assert type(again) is kind
        assert again.state_dict().keys() == model.state_dict().keys()
        for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(one, other), name
        assert again.config.to_dict() == AutoConfig.from_pretrained(tmp_path / kind.__name__).to_dict()


def test_it_is_short() -> None:
    text = Path(__file__).read_text()
    family = text[text.index("# the family -") : text.index("# the formula -")]
    assert len([line for line in family.splitlines()[1:] if line.strip()]) <= 120
