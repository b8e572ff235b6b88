"""GPT-2 against Transformers' eager path: every class, every flag, every input, both back ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from gptrio.nn.activations import ACT2FN
from gptrio.testing import assert_close, relative_difference
from tests.reference import (
    assert_same_gradients,
    assert_same_output,
    assert_same_training_step,
    loss_of,
    model_pair,
    padded,
    positions_of,
    run_in_chunks,
    task_inputs,
    token_ids,
)

BACK_ENDS = ["eager", "sdpa"]
CLASSES = [
    "GPT2Model",
    "GPT2LMHeadModel",
    "GPT2DoubleHeadsModel",
    "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification",
    "GPT2ForQuestionAnswering",
]
FLAGS: list[dict[str, Any]] = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    {"n_inner": 48},
    {"n_head": 1},
    {"n_head": 8},
    {"n_layer": 1},
    {"layer_norm_epsilon": 0.1},
    {"tie_word_embeddings": False},
    {"pad_token_id": 60},
]
THEIR_ACTIVATIONS = [name for name in ACT2FN if name in transformers.activations.ACT2FN]
pytestmark = pytest.mark.filterwarnings("ignore:the batch is padded on the left")


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# classes and flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_flags(flags: dict[str, Any], back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end, **flags)
    assert_same_training_step(ours, oracle, **task_inputs("GPT2LMHeadModel"))


@pytest.mark.parametrize("name", THEIR_ACTIVATIONS)
def test_activations(name: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", activation_function=name)
    assert_same_training_step(ours, oracle, **task_inputs("GPT2LMHeadModel"))


@pytest.mark.parametrize("class_name", CLASSES)
def test_classes(class_name: str, back_end: str) -> None:
    oracle, ours = model_pair(class_name, back_end, num_labels=4, pad_token_id=60)
    inputs = task_inputs(class_name)
    assert_same_training_step(ours, oracle, **inputs)
    everything = {"output_hidden_states": True, "output_attentions": True}
    assert_same_output(ours(**inputs, **everything), oracle(**inputs, **everything))


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("with_labels", [True, False])
def test_tuples(class_name: str, with_labels: bool) -> None:
    oracle, ours = model_pair(class_name, num_labels=4, pad_token_id=60)
    inputs = {k: v for k, v in task_inputs(class_name).items() if with_labels or k in ("input_ids", "mc_token_ids")}
    options = {"output_hidden_states": True, "output_attentions": True}
    for extra in (options, {}):
        expected, actual = oracle(**inputs, **extra, return_dict=False), ours(**inputs, **extra, return_dict=False)
        assert isinstance(actual, tuple)
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            if isinstance(other, Tensor):
                assert_close(one, other)
    ours.config.return_dict = False
    assert isinstance(ours(**inputs), tuple)


@pytest.mark.parametrize("class_name", CLASSES)
def test_state_dict_names_and_shapes(class_name: str) -> None:
    for cross in (False, True):
        oracle, ours = model_pair(class_name, num_labels=4, add_cross_attention=cross)
        shapes = {name: tuple(tensor.shape) for name, tensor in oracle.state_dict().items()}
        assert {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()} == shapes
        assert [name for name, _ in ours.named_parameters()] == [name for name, _ in oracle.named_parameters()]
        assert ours.num_parameters() == oracle.num_parameters()
        assert ours.num_parameters(exclude_embeddings=True) == oracle.num_parameters(exclude_embeddings=True)


@pytest.mark.parametrize(
    "options",
    [
        {"summary_type": "cls_index"},
        {"summary_type": "last"},
        {"summary_type": "first"},
        {"summary_type": "mean"},
        {"summary_use_proj": False},
        {"summary_proj_to_labels": False},
        {"summary_activation": "tanh"},
        {"summary_activation": "tanh", "summary_proj_to_labels": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_places", [True, False])
def test_summary_options(options: dict[str, Any], with_places: bool) -> None:
    oracle, ours = model_pair("GPT2DoubleHeadsModel", **options)
    inputs = task_inputs("GPT2DoubleHeadsModel")
    del inputs["mc_labels"]  # several of these options give no score per choice, there or here
    if not with_places:
        del inputs["mc_token_ids"]
    expected, actual = oracle(**inputs), ours(**inputs)
    assert_same_output(actual, expected)
    (expected.loss + expected.mc_logits.sum()).backward()
    (actual.loss + actual.mc_logits.sum()).backward()
    assert_same_gradients(ours, oracle)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        (None, 1, torch.tensor([0.3, -1.2, 2.0])),
        (None, 4, torch.tensor([3, 0, 1])),
        (None, 4, torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]])),
        ("regression", 1, torch.tensor([0.3, -1.2, 2.0])),
        ("regression", 4, torch.arange(12.0).view(3, 4)),
        ("single_label_classification", 4, torch.tensor([3, 0, 1])),
        ("multi_label_classification", 4, torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]])),
    ],
)
def test_problem_types(problem_type: str | None, num_labels: int, labels: Tensor) -> None:
    settings = {"num_labels": num_labels, "problem_type": problem_type, "pad_token_id": 60}
    oracle, ours = model_pair("GPT2ForSequenceClassification", **settings)
    ids = token_ids(3)
    ids[1, 7:] = 60
    ids[2, :4] = 60
    mask = (ids != 60).long()
    assert_same_training_step(ours, oracle, input_ids=ids, attention_mask=mask, labels=labels)
    assert ours.config.problem_type == oracle.config.problem_type


def test_one_row_is_classified_without_a_padding_token() -> None:
    oracle, ours = model_pair("GPT2ForSequenceClassification", num_labels=3)
    ids = token_ids(1)
    assert_close(ours(ids).logits, oracle(ids).logits)
    embeddings = torch.randn(1, 6, 32)
    assert_close(ours(inputs_embeds=embeddings).logits, oracle(inputs_embeds=embeddings).logits)


# arguments --------------------------------------------------------------------------------------------------------


def argument_cases() -> dict[str, dict[str, Any]]:
    torch.manual_seed(1)
    heads = (torch.rand(3, 4) < 0.6).float()
    causal = torch.full((11, 11), torch.finfo(torch.float32).min).triu(1)
    holes = causal.masked_fill(torch.rand(2, 1, 11, 11).tril(-1) > 0.7, torch.finfo(torch.float32).min)
    restarted = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    return {
        "token_type_ids": {"token_type_ids": token_ids()},
        "position_ids": {"position_ids": torch.randint(0, 32, (2, 11))},
        "one row of position_ids": {"position_ids": torch.arange(20, 31)[None]},
        "packed position_ids": {"position_ids": restarted, "use_cache": False},
        "packed position_ids with a cache": {"position_ids": restarted},
        "packed position_ids with a mask": {"position_ids": restarted, "attention_mask": torch.ones(2, 11)},
        "head_mask of heads": {"head_mask": heads[0]},
        "head_mask of layers": {"head_mask": heads},
        "fractional head_mask": {"head_mask": torch.rand(3, 4)},
        "no head": {"head_mask": torch.zeros(3, 4)},
        "4D mask": {"attention_mask": causal[None, None].expand(2, 1, -1, -1)},
        "4D mask of one row": {"attention_mask": causal[None, None]},
        "4D mask with holes": {"attention_mask": holes},
        "4D mask per head": {"attention_mask": holes.expand(-1, 4, -1, -1) + torch.randn(2, 4, 11, 11)},
        "4D mask that looks ahead": {"attention_mask": torch.zeros(2, 1, 11, 11)},
        "all-ones mask": {"attention_mask": torch.ones(2, 11, dtype=torch.long)},
        "no cache": {"use_cache": False},
        "last logits": {"logits_to_keep": 3},
        "chosen logits": {"logits_to_keep": torch.tensor([0, 4, 10])},
    }


@pytest.mark.parametrize("case", argument_cases())
def test_arguments(case: str, back_end: str) -> None:
    arguments = argument_cases()[case]
    oracle, ours = model_pair("GPT2LMHeadModel", back_end)
    ids = token_ids()
    assert_same_output(ours(ids, **arguments), oracle(ids, **arguments))
    if "logits_to_keep" not in arguments:
        assert_same_training_step(ours, oracle, input_ids=ids, labels=ids, **arguments)
    shown = {**arguments, "output_attentions": True, "output_hidden_states": True}
    if "4D" in case or case == "no head":
        del shown["output_attentions"]
    assert_same_output(ours(ids, **shown), oracle(ids, **shown))


@pytest.mark.parametrize("class_name", CLASSES)
def test_positions_that_start_anew_in_every_class(class_name: str) -> None:
    """They separate sequences where no cache is made; question answering always makes one there."""
    oracle, ours = model_pair(class_name, num_labels=4, pad_token_id=60)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    inputs = {**task_inputs(class_name), "position_ids": positions}
    assert_same_output(ours(**inputs), oracle(**inputs))
    if "QuestionAnswering" not in class_name:
        assert_same_output(ours(**inputs, use_cache=False), oracle(**inputs, use_cache=False))


def test_results_say_that_there_is_no_cross_attention() -> None:
    for class_name in ("GPT2Model", "GPT2LMHeadModel"):
        oracle, ours = model_pair(class_name)
        expected, actual = oracle(token_ids()), ours(token_ids())
        assert type(actual).__name__ == type(expected).__name__
        assert actual.cross_attentions is expected.cross_attentions is None


def test_bool_4d_mask_is_the_additive_one(back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end)
    ids = token_ids()
    allowed = (torch.rand(2, 1, 11, 11) < 0.7) | torch.eye(11, dtype=torch.bool)
    added = torch.zeros(2, 1, 11, 11).masked_fill(~allowed, torch.finfo(torch.float32).min)
    expected = oracle(ids, attention_mask=added).logits
    assert_close(ours(ids, attention_mask=allowed).logits, expected)
    assert_close(ours(ids, attention_mask=added).logits, expected)


def test_inputs_embeds(back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end)
    embeddings = torch.randn(2, 9, 32)
    one, other = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    actual, expected = ours(inputs_embeds=one), oracle(inputs_embeds=other)
    assert_same_output(actual, expected)
    actual.logits.sum().backward()
    expected.logits.sum().backward()
    assert_close(one.grad, other.grad, 2e-5)


@pytest.mark.parametrize("count", [5, torch.tensor(13)])
def test_loss_over_a_count_of_items(count: int | Tensor) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel")
    inputs = task_inputs("GPT2LMHeadModel")
    assert_same_training_step(ours, oracle, **inputs, num_items_in_batch=count)


def test_double_heads_take_every_input_per_choice(back_end: str) -> None:
    oracle, ours = model_pair("GPT2DoubleHeadsModel", back_end)
    inputs = {
        **task_inputs("GPT2DoubleHeadsModel"),
        "attention_mask": padded([11, 7], 11, "right")[None],
        "position_ids": torch.randint(0, 32, (2, 11)),  # the oracle wants them flat
        "token_type_ids": torch.randint(0, 59, (1, 2, 11)),
        "head_mask": torch.rand(4),
    }
    assert_same_training_step(ours, oracle, **inputs)
    per_choice = ours(**{**inputs, "position_ids": inputs["position_ids"][None]})
    assert torch.equal(per_choice.logits, ours(**inputs).logits)


@pytest.mark.parametrize("class_name", CLASSES)
def test_dropout_draws_what_the_oracle_draws(class_name: str) -> None:
    rates = {"resid_pdrop": 0.2, "embd_pdrop": 0.3, "attn_pdrop": 0.25, "summary_first_dropout": 0.4}
    oracle, ours = model_pair(class_name, num_labels=4, pad_token_id=60, **rates)
    inputs = task_inputs(class_name)
    results = []
    for model in (oracle, ours):
        torch.manual_seed(5)
        results.append(model.train()(**inputs))
        loss_of(results[-1]).backward()
    assert_same_output(results[1], results[0])
    assert_same_gradients(ours, oracle)


@pytest.mark.parametrize("flags", [{}, {"reorder_and_upcast_attn": True}], ids=str)
def test_autocast_is_as_near_the_truth_as_the_oracle(flags: dict[str, Any], back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end, **flags)
    inputs = task_inputs("GPT2LMHeadModel", 8, 24)
    truth = oracle(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, actual = oracle(**inputs), ours(**inputs)
    assert actual.logits.dtype == theirs.logits.dtype == torch.bfloat16
    assert relative_error(actual.logits, truth.logits) <= 1.1 * relative_error(theirs.logits, truth.logits)
    actual.loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in ours.parameters())


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Root of the mean squared difference, relative to the exact values."""
    return ((actual.float() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()).item()


# padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_positions", [True, False])
@pytest.mark.parametrize("flags", [{}, {"reorder_and_upcast_attn": True}], ids=str)
def test_padding(side: str, with_positions: bool, flags: dict[str, Any], back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end, **flags)
    mask = padded([11, 7, 1, 4], 11, side)
    ids = token_ids(4)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    if with_positions:
        inputs["position_ids"] = positions_of(mask)
    everywhere = torch.ones_like(mask) if back_end == "eager" else mask
    shown = {"output_hidden_states": True}
    assert_same_output(ours(**inputs, **shown), oracle(**inputs, **shown), real=everywhere)
    loss_of(oracle(**inputs)).backward()
    loss_of(ours(**inputs)).backward()
    assert_same_gradients(ours, oracle)


def test_padding_in_all_places_at_once(back_end: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end)
    mask = torch.rand(5, 11) < 0.6
    ids = token_ids(5)
    assert_same_output(ours(ids, attention_mask=mask), oracle(ids, attention_mask=mask.long()), real=mask)


# precision, new weights, surgery ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", FLAGS[:5], ids=str)
def test_bfloat16_is_as_near_the_truth_as_the_oracle(flags: dict[str, Any], back_end: str) -> None:
    """Two bfloat16 runs differ by rounding, so both are held to float32: ours may be no farther off than the oracle."""
    exact, _ = model_pair("GPT2LMHeadModel", back_end, **flags)
    oracle, ours = model_pair("GPT2LMHeadModel", back_end, torch.bfloat16, **flags)
    exact.load_state_dict(oracle.state_dict())  # the same rounded weights
    ids = token_ids(8, 24)
    mask = padded([24, 20, 17, 3, 24, 9, 12, 24], 24, "right")
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    truth, theirs, actual = exact(**inputs), oracle(**inputs), ours(**inputs)
    real = mask.bool()
    assert actual.logits.dtype == torch.bfloat16
    error, their_error = (relative_error(out.logits[real], truth.logits[real]) for out in (actual, theirs))
    assert error <= 1.1 * their_error
    assert error < 0.03  # 2^-8 a rounding, over some tens of roundings in three layers
    assert_close(actual.loss, truth.loss, 0.02)
    for out in (truth, theirs, actual):
        out.loss.backward()
    exact_gradients = [p.grad for p in exact.parameters()]
    assert gradient_error(ours, exact_gradients) <= 1.1 * gradient_error(oracle, exact_gradients)


def gradient_error(model: Any, exact: list[Tensor]) -> float:
    """Root of the summed squared error of all gradients."""
    pairs = zip(model.parameters(), exact, strict=True)
    return float(sum((p.grad.float() - gradient).pow(2).sum() for p, gradient in pairs) ** 0.5)


def test_new_weights_are_drawn_as_the_oracle_draws_them() -> None:
    sizes = {"n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": 512, "n_positions": 128, "initializer_range": 0.05}
    oracle = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, add_cross_attention=True))
    _, ours = model_pair("GPT2LMHeadModel")
    ours = type(ours)(type(ours.config)(**sizes, add_cross_attention=True))
    expected = oracle.state_dict()
    for name, tensor in ours.state_dict().items():
        assert tensor.mean().item() == pytest.approx(expected[name].mean().item(), abs=5e-3), name
        if tensor.numel() >= 10_000:
            assert tensor.std().item() == pytest.approx(expected[name].std().item(), rel=0.03), name
        elif "weight" in name and "ln_" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            assert torch.equal(tensor, torch.zeros_like(tensor)), name


@pytest.mark.parametrize("back_end_after", BACK_ENDS)
def test_pruned_heads(back_end_after: str) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel", back_end_after)
    for heads in ({0: [1], 2: [0, 3]}, {0: [1, 2]}):
        oracle.prune_heads(heads)
        ours.prune_heads(heads)
    assert ours.config.pruned_heads == {int(k): list(v) for k, v in oracle.config.pruned_heads.items()}
    assert_same_training_step(ours, oracle, **task_inputs("GPT2LMHeadModel"))
    ids = token_ids()
    assert_close(run_in_chunks(ours, ids, [6, 1, 4]), oracle(ids).logits)


def test_resized_embeddings() -> None:
    oracle, ours = model_pair("GPT2LMHeadModel")
    for count, multiple in ((80, None), (None, 64), (50, None), (70, 8)):
        oracle.resize_token_embeddings(count, pad_to_multiple_of=multiple)
        ours.resize_token_embeddings(count, pad_to_multiple_of=multiple)
        assert ours.config.vocab_size == oracle.config.vocab_size
        assert ours.lm_head.weight is ours.transformer.wte.weight
        assert_close(ours.transformer.wte.weight, oracle.transformer.wte.weight, 1e-3)  # new rows: 1e-9 of covariance
        ours.load_state_dict(oracle.state_dict())
        ids = token_ids(vocabulary=50)
        assert_close(ours(ids).logits, oracle(ids).logits)


@pytest.mark.parametrize("flags", [{}, {"add_cross_attention": True}], ids=str)
def test_training_with_checkpointed_gradients(flags: dict[str, Any], back_end: str) -> None:
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    oracle, ours = model_pair("GPT2LMHeadModel", back_end, **rates, **flags)
    inputs: dict[str, Any] = {**task_inputs("GPT2LMHeadModel"), "use_cache": False}
    if flags:
        inputs["encoder_hidden_states"] = torch.randn(2, 7, 32)
    ours.gradient_checkpointing_enable()
    assert_same_training_step(ours.train(), oracle.train(), **inputs)


def test_difference_is_measured() -> None:
    """The comparison itself: a wrong flag is seen."""
    oracle, _ = model_pair("GPT2LMHeadModel")
    _, ours = model_pair("GPT2LMHeadModel", scale_attn_weights=False)
    ours.load_state_dict(oracle.state_dict())
    ids = token_ids()
    assert relative_difference(ours(ids).logits, oracle(ids).logits) > 0.01
