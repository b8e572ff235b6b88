"""GPT-Neo and GPT-NeoX against Transformers' eager path: every class, every flag, every input, both back ends."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import gptrio
from gptrio.models.base import inputs
from gptrio.testing import assert_close
from tests.cases import where
from tests.reference import (
    SPECIAL_TOKENS,
    assert_same_output,
    assert_same_training_step,
    model_pair,
    padded,
    positions_of,
    run_in_chunks,
    task_inputs,
    token_ids,
)

BACK_ENDS = ["eager", "sdpa"]
FAMILIES = ["GPTNeo", "GPTNeoX"]
HEADS = ["Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
CLASSES = [family + head for family in FAMILIES for head in HEADS]
LENGTH = 29  # of 32 positions; more than three windows of 8
NEO: dict[str, Any] = {"window_size": 8}
FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("GPTNeo", {}),
    ("GPTNeo", {"window_size": 2}),
    ("GPTNeo", {"window_size": 3}),
    ("GPTNeo", {"window_size": 200}),
    ("GPTNeo", {"attention_types": [[["global"], 3]]}),
    ("GPTNeo", {"attention_types": [[["local"], 3]]}),
    ("GPTNeo", {"intermediate_size": 48}),
    ("GPTNeo", {"num_heads": 1}),
    ("GPTNeo", {"num_heads": 8}),
    ("GPTNeo", {"layer_norm_epsilon": 0.1}),
    ("GPTNeo", {"activation_function": "gelu"}),
    ("GPTNeo", {"activation_function": "relu"}),
    ("GPTNeo", {"tie_word_embeddings": False}),
    ("GPTNeoX", {}),
    ("GPTNeoX", {"use_parallel_residual": False}),
    ("GPTNeoX", {"rotary_pct": 0.5}),
    ("GPTNeoX", {"rotary_pct": 1.0}),
    ("GPTNeoX", {"rotary_emb_base": 100}),
    ("GPTNeoX", {"attention_bias": False}),
    ("GPTNeoX", {"num_attention_heads": 1}),
    ("GPTNeoX", {"intermediate_size": 24}),
    ("GPTNeoX", {"layer_norm_eps": 0.1}),
    ("GPTNeoX", {"hidden_act": "gelu_new"}),
    ("GPTNeoX", {"hidden_act": "gelu_fast"}),
    ("GPTNeoX", {"hidden_act": "silu"}),
    ("GPTNeoX", {"tie_word_embeddings": True}),
]
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "the older name": {"type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "dynamic by a fraction": {"rope_type": "dynamic", "factor": 1.7},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "yarn without original": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5},
    "yarn, attention given": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "truncate": False},
    "yarn with mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.3},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.2], "long_factor": [2.0, 3.5]},
    "longrope, attention given": {
        "rope_type": "longrope",
        "factor": 4.0,
        "attention_factor": 1.1,
        "short_factor": [1.0, 1.2],
        "long_factor": [2.0, 3.5],
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 12,
    },
}
pytestmark = pytest.mark.filterwarnings("ignore:the batch is padded on the left")


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def language_models(family: str, back_end: str = "sdpa", **config: Any) -> tuple[Any, Any]:
    values = {**(NEO if family == "GPTNeo" else {}), **config}
    return model_pair(f"{family}ForCausalLM", back_end, **values)


# classes and flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "flags"), FLAGS, ids=str)
def test_flags(family: str, flags: dict[str, Any], back_end: str) -> None:
    oracle, ours = language_models(family, back_end, **flags)
    ids = token_ids(2, LENGTH)
    assert_same_training_step(ours, oracle, input_ids=ids, labels=ids)


@torch.no_grad()
def test_a_window_of_one(back_end: str) -> None:
    oracle, ours = language_models("GPTNeo", back_end, window_size=1)
    ids = token_ids(2, LENGTH)
    assert_close(ours(ids).logits, oracle(ids).logits)
    assert_close(run_in_chunks(ours, ids, [20, 1, 8]), oracle(ids).logits)


@pytest.mark.parametrize("class_name", CLASSES)
def test_classes(class_name: str, back_end: str) -> None:
    oracle, ours = model_pair(class_name, back_end, num_labels=4, pad_token_id=60)
    inputs = task_inputs(class_name, length=LENGTH)
    assert_same_training_step(ours, oracle, **inputs)
    everything = {"output_hidden_states": True, "output_attentions": True}
    assert_same_output(ours(**inputs, **everything), oracle(**inputs, **everything))


@pytest.mark.parametrize("class_name", CLASSES)
def test_tuples(class_name: str) -> None:
    oracle, ours = model_pair(class_name, num_labels=4, pad_token_id=60)
    inputs = {**task_inputs(class_name), "return_dict": False}
    for options in ({}, {"output_hidden_states": True, "output_attentions": True}):
        expected, actual = oracle(**inputs, **options), ours(**inputs, **options)
        assert isinstance(actual, tuple)
        assert len(actual) == len(expected)
        assert all(
            torch.allclose(a, b, atol=1e-5) for a, b in zip(actual, expected, strict=True) if isinstance(b, Tensor)
        )


@pytest.mark.parametrize("class_name", CLASSES)
def test_state_dict_names_and_shapes(class_name: str) -> None:
    oracle, ours = model_pair(class_name, num_labels=4)
    shapes = [(name, tensor.shape) for name, tensor in oracle.state_dict().items()]
    assert [(name, tensor.shape) for name, tensor in ours.state_dict().items()] == shapes
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in oracle.named_parameters()]
    assert ours._no_split_modules == oracle._no_split_modules


@pytest.mark.parametrize("class_name", CLASSES)
def test_arguments_have_the_order_of_the_family(class_name: str) -> None:
    theirs = list(inspect.signature(getattr(transformers, class_name).forward).parameters)
    ours = inspect.signature(getattr(gptrio, class_name).forward).parameters
    named = [name for name in theirs if name != "kwargs"]
    assert list(ours)[: len(named)] == named
    assert set(ours) - set(theirs) <= {"return_dict", "logits_to_keep", "loss_kwargs"}


def test_positional_arguments(family: str) -> None:
    oracle, ours = language_models(family)
    ids, mask = token_ids(), padded([11, 6], 11, "right")
    given = {"GPTNeo": (ids, None, mask), "GPTNeoX": (ids, mask)}[family]
    assert_close(ours(*given).logits[mask.bool()], oracle(*given).logits[mask.bool()])
    with pytest.raises(TypeError, match="input_ids twice"):
        ours(ids, input_ids=ids)
    with pytest.raises(TypeError, match="positional arguments, not 20"):
        ours(*[None] * 20)


def test_new_weights_are_drawn_as_the_oracle_draws_them(family: str) -> None:
    class_name = f"{family}ForCausalLM"
    sizes = {"hidden_size": 128, "vocab_size": 512, "initializer_range": 0.05, "intermediate_size": 256}
    oracle, ours = (
        (cls := getattr(library, class_name))(cls.config_class(**sizes, **SPECIAL_TOKENS, **more))
        for library in (transformers, gptrio)
        for more in (
            {"num_layers": 2, "attention_types": [[["global"], 2]]} if family == "GPTNeo" else {"num_hidden_layers": 2},
        )
    )
    expected = oracle.state_dict()
    for name, tensor in ours.state_dict().items():
        assert tensor.std().item() == pytest.approx(expected[name].std().item(), rel=0.05), name
        assert tensor.mean().item() == pytest.approx(expected[name].mean().item(), abs=2e-3), name


# arguments --------------------------------------------------------------------------------------------------------


def argument_cases() -> dict[str, dict[str, Any]]:
    torch.manual_seed(1)
    causal = torch.full((LENGTH, LENGTH), torch.finfo(torch.float32).min).triu(1)
    holes = causal.masked_fill(torch.rand(2, 1, LENGTH, LENGTH).tril(-1) > 0.7, torch.finfo(torch.float32).min)
    restarted = torch.cat([torch.arange(12), torch.arange(LENGTH - 12)])[None].expand(2, -1)
    return {
        "position_ids": {"position_ids": torch.randint(0, 32, (2, LENGTH))},
        "packed position_ids": {"position_ids": restarted, "use_cache": False},
        "packed position_ids with a cache": {"position_ids": restarted},
        "4D mask": {"attention_mask": causal[None, None].expand(2, 1, -1, -1)},
        "4D mask with holes": {"attention_mask": holes},
        "4D mask that looks ahead": {"attention_mask": torch.zeros(2, 1, LENGTH, LENGTH)},
        "all-ones mask": {"attention_mask": torch.ones(2, LENGTH, dtype=torch.long)},
        "no cache": {"use_cache": False},
    }


@pytest.mark.parametrize("case", argument_cases())
def test_arguments(family: str, case: str, back_end: str) -> None:
    arguments = argument_cases()[case]
    oracle, ours = language_models(family, back_end)
    ids = token_ids(2, LENGTH)
    assert_same_training_step(ours, oracle, input_ids=ids, labels=ids, **arguments)


@pytest.mark.parametrize("mask", [torch.tensor([1.0, 0, 1, 1]), (torch.rand(3, 4) < 0.6).float(), torch.rand(3, 4)])
def test_gpt_neo_head_mask(mask: Tensor, back_end: str) -> None:
    oracle, ours = language_models("GPTNeo", back_end)
    ids = token_ids(2, LENGTH)
    assert_same_training_step(ours, oracle, input_ids=ids, labels=ids, head_mask=mask)


def test_gpt_neo_token_types_and_last_logits(back_end: str) -> None:
    oracle, ours = language_models("GPTNeo", back_end)
    ids, types = token_ids(2, LENGTH), token_ids(2, LENGTH)
    expected = oracle(ids, token_type_ids=types).logits
    assert_close(ours(ids, token_type_ids=types).logits, expected)
    assert_close(ours(ids, token_type_ids=types, logits_to_keep=3).logits, expected[:, -3:])


def test_gpt_neox_last_logits(back_end: str) -> None:
    oracle, ours = language_models("GPTNeoX", back_end)
    ids = token_ids(2, LENGTH)
    for kept in (3, torch.tensor([0, 4, 10])):
        assert_close(ours(ids, logits_to_keep=kept).logits, oracle(ids, logits_to_keep=kept).logits)


@torch.no_grad()
@pytest.mark.parametrize("mask", [torch.tensor([1.0, 0, 1, 1]), (torch.rand(3, 4) < 0.6).float(), torch.rand(3, 4)])
def test_gpt_neox_head_mask_keeps_at_one_and_removes_at_zero(mask: Tensor, back_end: str) -> None:
    """The oracle's own head mask is wrong; what reaches `dense` from a head is scaled there instead."""
    oracle, ours = language_models("GPTNeoX", back_end)
    ids = token_ids(2, LENGTH)
    assert_close(ours(ids, head_mask=torch.ones(3, 4)).logits, oracle(ids).logits)
    for layer, kept in zip(oracle.gpt_neox.layers, mask.expand(3, 4), strict=True):
        layer.attention.dense.weight.mul_(kept.repeat_interleave(8))
    assert_close(ours(ids, head_mask=mask).logits, oracle(ids).logits)


def test_gpt_neox_has_no_token_types() -> None:
    oracle, ours = model_pair("GPTNeoXForTokenClassification")
    ids = token_ids()
    inputs.warn_once.cache_clear()
    with pytest.warns(gptrio.GptrioWarning, match="has no token types"):
        logits = ours(ids, token_type_ids=torch.ones_like(ids)).logits
    assert_close(logits, oracle(ids, token_type_ids=torch.ones_like(ids)).logits)


def test_inputs_embeds(family: str, back_end: str) -> None:
    oracle, ours = language_models(family, back_end)
    embeddings = torch.randn(2, LENGTH, 32)
    assert_same_output(ours(inputs_embeds=embeddings), oracle(inputs_embeds=embeddings))


# positions --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("length", [9, 16, 17, 45])
@pytest.mark.parametrize("name", SCALINGS)
def test_rope_scaling_past_the_trained_length(name: str, length: int, back_end: str) -> None:
    oracle, ours = language_models(
        "GPTNeoX", back_end, rope_scaling=SCALINGS[name], rotary_pct=0.5, max_position_embeddings=16
    )
    ids = token_ids(2, length)
    assert_close(ours(ids).logits, oracle(ids).logits)
    chunks = [length - 7, 1, 1, 5]
    fresh, _ = language_models("GPTNeoX", rope_scaling=SCALINGS[name], rotary_pct=0.5, max_position_embeddings=16)
    fresh.load_state_dict(oracle.state_dict())
    assert_close(run_in_chunks(ours, ids, chunks), run_in_chunks(fresh, ids, chunks))


@torch.no_grad()
def test_longrope_with_its_original_length_beside_it() -> None:
    scaling = {**SCALINGS["longrope"]}
    config = {"rope_scaling": scaling, "rotary_pct": 0.5, "original_max_position_embeddings": 12}
    oracle, ours = language_models("GPTNeoX", **config)
    for length in (9, 12, 13, 30):
        ids = token_ids(2, length)
        assert_close(ours(ids).logits, oracle(ids).logits)


@torch.no_grad()
def test_a_long_text_does_not_change_what_follows() -> None:
    """The oracle keeps the stretched tables of the longest text so far; here each call has its own."""
    config = {"rope_scaling": SCALINGS["dynamic"], "rotary_pct": 0.5, "max_position_embeddings": 16}
    oracle, ours = language_models("GPTNeoX", **config)
    shorter, longer = token_ids(1, 20), token_ids(1, 60)
    expected = oracle(shorter).logits
    ours(longer)
    assert_close(ours(shorter).logits, expected)


@torch.no_grad()
def test_gpt_neox_has_no_longest_sequence() -> None:
    oracle, ours = language_models("GPTNeoX", max_position_embeddings=4)
    ids = token_ids(1, 100)
    assert_close(ours(ids).logits, oracle(ids).logits)


# padding and caches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_positions", [True, False])
def test_padding(family: str, side: str, with_positions: bool, back_end: str) -> None:
    oracle, ours = language_models(family, back_end)
    mask = padded([LENGTH, 17, 1, 8], LENGTH, side)
    ids = token_ids(4, LENGTH)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    if with_positions:
        inputs["position_ids"] = positions_of(mask)
    expected, actual = oracle(**inputs), ours(**inputs)
    assert_close(actual.logits[mask.bool()], expected.logits[mask.bool()])
    assert actual.logits.isfinite().all()
    assert_close(actual.loss, expected.loss)


@torch.no_grad()
def test_left_padding_without_positions_is_told_where_it_matters(family: str) -> None:
    _, ours = language_models(family)
    ids, mask = token_ids(2, LENGTH), padded([LENGTH, 17], LENGTH, "left")
    inputs.warn_once.cache_clear()
    if family == "GPTNeo":
        with pytest.warns(gptrio.GptrioWarning, match="padded on the left"):
            ours(input_ids=ids, attention_mask=mask)
    else:  # rotations know distances only
        batch = ours(input_ids=ids, attention_mask=mask).logits
        assert_close(batch[1, -17:], ours(ids[1:, -17:]).logits[0])


@torch.no_grad()
def test_padded_rows_equal_rows_alone(family: str, back_end: str) -> None:
    _, ours = language_models(family, back_end)
    ids, lengths = token_ids(4, LENGTH), [LENGTH, 17, 1, 8]
    for side in ("left", "right"):
        mask = padded(lengths, LENGTH, side)
        batch = ours(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)).logits
        for row, real in enumerate(mask.bool()):
            assert_close(batch[row, real], ours(ids[row : row + 1, real]).logits[0])


@pytest.mark.parametrize(
    ("chunks", "side"),
    where(
        lambda chunks, side: side == "left" or chunks[0] in (5, 8),
        [[28, 1], [1] * 29, [5, 1, 20, 3], [2, 27], [17, 12], [8, 8, 8, 5]],
        [None, "left", "right"],
    ),
    ids=str,
)
def test_cached_in_uneven_chunks(family: str, chunks: list[int], side: str | None, back_end: str) -> None:
    oracle, ours = language_models(family, back_end)
    ids = token_ids(3, LENGTH)
    mask = None if side is None else padded([LENGTH, 13, 3], LENGTH, side)
    real = torch.ones(3, LENGTH, dtype=torch.bool) if mask is None else mask.bool()
    actual = run_in_chunks(ours, ids, chunks, mask)
    extra = {} if mask is None else {"attention_mask": mask, "position_ids": positions_of(mask)}
    assert_close(actual[real], oracle(ids, **extra).logits[real])
    assert_close(actual[real], run_in_chunks(oracle, ids, chunks, mask)[real])


def test_cache_under_autograd(family: str, back_end: str) -> None:
    oracle, ours = language_models(family, back_end)
    ids = token_ids(2, LENGTH)
    for model in (oracle, ours):
        past = model(ids[:, :20]).past_key_values
        model(ids[:, 20:], past_key_values=past, labels=ids[:, 20:]).loss.backward()
    for (name, one), (_, other) in zip(ours.named_parameters(), oracle.named_parameters(), strict=True):
        assert_close(one.grad, other.grad, 1e-4, name)


@torch.no_grad()
def test_legacy_tuples_of_the_whole_past(family: str, back_end: str) -> None:
    """The oracle no longer takes tuples for these families; those of its caches are the whole past of every layer."""
    oracle, ours = language_models(family, back_end)
    ids = token_ids(2, LENGTH)
    past = oracle(ids[:, :20]).past_key_values.to_legacy_cache()
    expected = oracle(ids).logits[:, 20:]
    assert_close(ours(ids[:, 20:], past_key_values=past).logits, expected)
    own = ours(ids[:, :20]).past_key_values.to_legacy_cache()
    assert_close(ours(ids[:, 20:], past_key_values=own, use_cache=False).logits, expected)
    step = ours(ids[:, 20:21], past_key_values=own).past_key_values.to_legacy_cache()
    assert_close(ours(ids[:, 21:], past_key_values=step).logits, expected[:, 1:])


@torch.no_grad()
def test_attention_weights_over_a_past_cover_all_of_it(family: str) -> None:
    oracle, ours = language_models(family)
    ids = token_ids(2, LENGTH)
    past, ours_past = oracle(ids[:, :20]).past_key_values, ours(ids[:, :20]).past_key_values
    options = {"output_attentions": True}
    expected = oracle(ids[:, 20:], past_key_values=past, **options).attentions
    actual = ours(ids[:, 20:], past_key_values=ours_past, **options).attentions
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


# precision and surgery --------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_the_truth_as_the_oracle(family: str, dtype: torch.dtype, back_end: str) -> None:
    exact, _ = language_models(family)
    oracle, ours = language_models(family, back_end, dtype=dtype)
    exact.load_state_dict(oracle.state_dict())
    ids, mask = token_ids(8, LENGTH), padded([29, 20, 17, 3, 29, 9, 12, 29], LENGTH, "left")
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}
    truth, theirs, actual = (model(**inputs).logits for model in (exact, oracle, ours))
    assert actual.isfinite().all()
    real = mask.bool()
    error, their_error = ((x[real].float() - truth[real]).square().mean() for x in (actual, theirs))
    assert error <= 1.2 * their_error


def test_selu_is_an_activation_here() -> None:
    config = gptrio.GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])
    config.activation_function = "selu"
    mlp = gptrio.GPTNeoModel(config).h[0].mlp
    x = torch.randn(2, 3, 32)
    expected = torch.nn.functional.selu(x @ mlp.c_fc.weight.T + mlp.c_fc.bias) @ mlp.c_proj.weight.T + mlp.c_proj.bias
    assert_close(mlp(x), expected)


@torch.no_grad()
def test_pruned_heads_equal_masked_heads(family: str, back_end: str) -> None:
    _, ours = language_models(family, back_end)
    ids, mask = token_ids(2, LENGTH), torch.ones(3, 4)
    mask[0, 1] = mask[2, 0] = mask[2, 3] = 0
    expected = ours(ids, head_mask=mask).logits
    ours.prune_heads({0: [1], 2: [0]})
    ours.prune_heads({2: [0, 3]})
    assert ours.config.pruned_heads == {0: [1], 2: [0, 3]}
    assert_close(ours(ids).logits, expected)
    assert_close(run_in_chunks(ours, ids, [20, 1, 8]), expected)


def test_resized_embeddings(family: str) -> None:
    oracle, ours = language_models(family)
    for count, multiple in ((80, None), (None, 64), (50, None)):
        oracle.resize_token_embeddings(count, pad_to_multiple_of=multiple)
        ours.resize_token_embeddings(count, pad_to_multiple_of=multiple)
        ours.load_state_dict(oracle.state_dict())
        ids = token_ids(vocabulary=50)
        assert_close(ours(ids).logits, oracle(ids).logits)
    assert (ours.get_output_embeddings().weight is ours.get_input_embeddings().weight) == (family == "GPTNeo")


def test_dropout_draws_what_the_oracle_draws(family: str) -> None:
    neo = {"resid_dropout": 0.2, "embed_dropout": 0.3, "attention_dropout": 0.25}
    neox = {"hidden_dropout": 0.2, "attention_dropout": 0.25}
    oracle, ours = language_models(family, "eager", **(neo if family == "GPTNeo" else neox))
    ids, results = token_ids(), []
    for model in (oracle, ours):
        torch.manual_seed(5)
        results.append(model.train()(ids, labels=ids))
    assert_same_output(results[1], results[0])


def test_autocast_is_as_near_the_truth_as_the_oracle(family: str, back_end: str) -> None:
    oracle, ours = language_models(family, back_end)
    ids = token_ids(8, LENGTH)
    truth = oracle(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        theirs, actual = oracle(ids).logits, ours(ids, labels=ids)
    assert actual.logits.dtype == theirs.dtype == torch.bfloat16
    error, their_error = ((x.float() - truth).square().mean() for x in (actual.logits, theirs))
    assert error <= 1.2 * their_error
    actual.loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in ours.parameters())


def test_training_with_checkpointed_gradients(family: str, back_end: str) -> None:
    oracle, ours = language_models(family, back_end)
    ids = token_ids(2, LENGTH)
    ours.gradient_checkpointing_enable()
    assert_same_training_step(ours.train(), oracle.train(), input_ids=ids, labels=ids, use_cache=False)
