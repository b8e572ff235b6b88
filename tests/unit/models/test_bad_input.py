"""What cannot be computed is refused with an error that names the thing, its value and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptrio
from gptrio import DynamicCache, GPT2Config, GPT2LMHeadModel
from gptrio.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    OptionError,
    TokenIdError,
    UnknownNameError,
    UnsupportedError,
)
from gptrio.testing import tiny_config

IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
POSITIONS = torch.arange(5)[None]
EMBEDDINGS = torch.zeros(2, 5, 32)
PAST = tuple((torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8)) for _ in range(2))


@pytest.fixture(scope="module")
def model() -> Any:
    return GPT2LMHeadModel(tiny_config()).eval()


def cases() -> dict[str, tuple[dict[str, Any], str]]:
    """Arguments of a forward beside `input_ids`, and what the error says."""
    ones = torch.ones
    return {
        "neither": ({"input_ids": None}, "either input_ids or inputs_embeds; neither given"),
        "both": ({"inputs_embeds": EMBEDDINGS}, "either input_ids or inputs_embeds; both given"),
        "one row without batch": ({"input_ids": IDS[0]}, r"input_ids must be integers \(batch, length\).*\(5,\)"),
        "ids that are no integers": ({"input_ids": IDS.float()}, "input_ids must be integers.*float32"),
        "embeddings without batch": (
            {"input_ids": None, "inputs_embeds": EMBEDDINGS[0]},
            r"inputs_embeds must be \(batch, length, width 32\); got shape \(5, 32\)",
        ),
        "embeddings too narrow": ({"input_ids": None, "inputs_embeds": EMBEDDINGS[..., :1]}, "width 32.*2, 5, 1"),
        "mask too short": ({"attention_mask": ones(2, 4)}, r"attention_mask has shape \(2, 4\); expected \(2, 5\)"),
        "mask too long": ({"attention_mask": ones(2, 6)}, r"attention_mask has shape \(2, 6\); expected \(2, 5\)"),
        "mask of other rows": ({"attention_mask": ones(3, 5)}, r"\(3, 5\); expected \(2, 5\)"),
        "mask without the past": (
            {"attention_mask": ones(2, 5), "past_key_values": PAST},
            r"expected \(2, 8\).*covers the past too",
        ),
        "4D mask of other rows": ({"attention_mask": ones(3, 1, 5, 5)}, r"4D mask must be \(batch 2 or 1"),
        "4D mask of other heads": ({"attention_mask": ones(2, 3, 5, 5)}, r"heads 4 or 1"),
        "4D mask of other queries": ({"attention_mask": ones(2, 1, 4, 5)}, r"5 queries"),
        "4D mask of too few keys": ({"attention_mask": ones(2, 1, 5, 4)}, r"5 keys"),
        "position_ids of other length": ({"position_ids": torch.arange(6)[None]}, r"position_ids have shape \(1, 6\)"),
        "position_ids of other rows": ({"position_ids": POSITIONS.expand(3, -1)}, r"expected \(batch 2 or 1, 5 new"),
        "position_ids turned round": ({"position_ids": POSITIONS.expand(2, -1).T}, r"shape \(5, 2\)"),
        "one position": ({"position_ids": torch.tensor(3)}, r"position_ids have shape \(\)"),
        "token types turned round": ({"token_type_ids": IDS.T}, r"token_type_ids have shape \(5, 2\)"),
        "head_mask of other heads": ({"head_mask": ones(3)}, r"head_mask must be \(4 heads,\) or \(2 layers, 4\)"),
        "head_mask of other layers": ({"head_mask": ones(3, 4)}, r"got shape \(3, 4\)"),
        "head_mask of another shape": ({"head_mask": ones(2, 2, 4)}, r"got shape \(2, 2, 4\)"),
        "a past that is none": ({"past_key_values": {"keys": 1}}, "past_key_values is a dict; expected a Cache"),
        "a past of fewer layers": ({"past_key_values": PAST[:1]}, "hold 1 layers, the model has 2"),
        "a past of more layers": ({"past_key_values": PAST + PAST}, "hold 4 layers, the model has 2"),
        "a past of other rows": (
            {"past_key_values": tuple((k[:1], v[:1]) for k, v in PAST)},
            r"past_key_values hold .*= \(1, 4, 8\), but this call has \(2, 4, 8\)",
        ),
        "a past of other heads": ({"past_key_values": tuple((k[:, :3], v[:, :3]) for k, v in PAST)}, r"\(2, 3, 8\)"),
        "encoder states without cross-attention": (
            {"encoder_hidden_states": EMBEDDINGS},
            "no cross-attention; build it with config.add_cross_attention=True",
        ),
        "labels of other length": ({"labels": IDS[:, :4]}, "8 labels do not fit logits"),
        "labels with fewer logits": ({"labels": IDS, "logits_to_keep": 2}, "10 labels do not fit logits"),
    }


@pytest.mark.parametrize("case", cases())
def test_forward_refuses(model: Any, case: str) -> None:
    arguments, message = cases()[case]
    with pytest.raises(InputError, match=message):
        model(**{"input_ids": IDS, **arguments})


@pytest.mark.parametrize("bad", [257, 1000, -1])
def test_ids_out_of_range(model: Any, bad: int) -> None:
    ids = IDS.clone()
    ids[1, 2] = bad
    for raised in (TokenIdError, IndexError, ValueError):
        with pytest.raises(raised, match=rf"token id {bad} is outside the table of 257 rows; expected 0 to 256"):
            model(input_ids=ids)
    with pytest.raises(TokenIdError, match=f"token id {bad} is outside"):
        model(input_ids=IDS, token_type_ids=ids)


@pytest.mark.parametrize("bad", [64, -1])
def test_positions_out_of_range(model: Any, bad: int) -> None:
    with pytest.raises(TokenIdError, match=f"position {bad} is outside the table of 64 rows"):
        model(input_ids=IDS, position_ids=torch.full((1, 5), bad))


@pytest.mark.parametrize("bad", [257, -1, -99])
def test_labels_out_of_range(model: Any, bad: int) -> None:
    labels = IDS.clone()
    labels[0, 3] = bad
    with pytest.raises(TokenIdError, match=f"label {bad} is none of the 257 classes; expected 0 to 256, or -100"):
        model(input_ids=IDS, labels=labels)


def test_too_long_a_sequence(model: Any) -> None:
    ids = torch.ones(1, 65, dtype=torch.long)
    with pytest.raises(InputError, match="the sequence has 65 positions, but the model has 64; shorten the input"):
        model(input_ids=ids)
    past = model(input_ids=ids[:, :64]).past_key_values
    with pytest.raises(InputError, match="the sequence has 65 positions"):
        model(input_ids=ids[:, :1], past_key_values=past)


def test_the_longest_sequence_works(model: Any) -> None:
    ids = torch.ones(1, 64, dtype=torch.long)
    assert model(input_ids=ids).logits.isfinite().all()


def test_a_cache_made_for_another_model(model: Any) -> None:
    other = GPT2LMHeadModel(tiny_config(num_hidden_layers=3)).eval()
    past = other(input_ids=IDS).past_key_values
    with pytest.raises(InputError, match="hold 3 layers, the model has 2"):
        model(input_ids=IDS, past_key_values=past)


def test_an_error_leaves_an_empty_cache_usable(model: Any) -> None:
    past = DynamicCache()
    with pytest.raises(TokenIdError):
        model(input_ids=IDS, position_ids=POSITIONS + 100, past_key_values=past)
    assert model(input_ids=IDS, past_key_values=past).logits.shape == (2, 5, 257)


def test_encoder_states_that_do_not_fit() -> None:
    model = GPT2LMHeadModel(tiny_config(add_cross_attention=True)).eval()
    for shape in ((2, 7, 16), (3, 7, 32), (7, 32)):
        with pytest.raises(InputError, match=r"encoder_hidden_states must be \(batch 2, length, width 32\)"):
            model(input_ids=IDS, encoder_hidden_states=torch.zeros(shape))
    with pytest.raises(InputError, match=r"expected \(2, 7\)"):
        model(input_ids=IDS, encoder_hidden_states=torch.zeros(2, 7, 32), encoder_attention_mask=torch.ones(2, 6))


def test_a_pruned_model_takes_no_head_mask() -> None:
    model = GPT2LMHeadModel(tiny_config()).eval()
    model.prune_heads({0: [1]})
    with pytest.raises(InputError, match="head_mask is for a model with all its heads"):
        model(input_ids=IDS, head_mask=torch.ones(4))


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (torch.tensor([1, 2, 3]), {"num_labels": 4}, "3 labels do not fit logits"),
        (torch.tensor([1, 4]), {"num_labels": 4}, "label 4 is none of the 4 classes"),
        (torch.tensor([1.0]), {"num_labels": 1}, "do not fit regression"),
        (torch.tensor([1.0, 0.0]), {"num_labels": 4}, "do not fit multi_label_classification"),
        (torch.zeros(2, 3), {"num_labels": 4, "problem_type": "regression"}, "do not fit regression"),
    ],
)
def test_class_labels_that_do_not_fit(labels: torch.Tensor, settings: dict[str, Any], message: str) -> None:
    model = gptrio.GPT2ForSequenceClassification(tiny_config(pad_token_id=0, **settings)).eval()
    with pytest.raises(InputError, match=message):
        model(input_ids=IDS, labels=labels)


def test_class_labels_may_be_integers_where_values_are_meant() -> None:
    model = gptrio.GPT2ForSequenceClassification(tiny_config(pad_token_id=0, num_labels=1)).eval()
    assert torch.equal(
        model(input_ids=IDS, labels=torch.tensor([1, 3])).loss,
        model(input_ids=IDS, labels=torch.tensor([1.0, 3.0])).loss,
    )
    settings = tiny_config(pad_token_id=0, num_labels=2, problem_type="multi_label_classification")
    model = gptrio.GPT2ForSequenceClassification(settings).eval()
    labels = torch.tensor([[1, 0], [0, 1]])
    assert torch.equal(model(input_ids=IDS, labels=labels).loss, model(input_ids=IDS, labels=labels.float()).loss)


def test_rows_cannot_be_classified_without_a_padding_token() -> None:
    model = gptrio.GPT2ForSequenceClassification(tiny_config()).eval()
    with pytest.raises(InputError, match=r"a batch of 2 rows .* without config\.pad_token_id"):
        model(input_ids=IDS)


@pytest.mark.parametrize(
    ("build", "raised", "message"),
    [
        (lambda: GPT2LMHeadModel(tiny_config("gpt_neox")), ConfigError, "needs a GPT2Config, got GPTNeoXConfig"),
        (lambda: GPT2LMHeadModel("gpt2"), ConfigError, r"from_pretrained\(name\) loads a model by name"),
        (lambda: GPT2Config(n_embd=30, n_head=4), ConfigError, "n_head"),
        (lambda: GPT2LMHeadModel(tiny_config(activation_function="swoosh")), UnknownNameError, "'swoosh' is not known"),
        (lambda: GPT2LMHeadModel(tiny_config()).set_attn_implementation("fast"), UnsupportedError, "use one of eager"),
    ],
)
def test_models_that_cannot_be_built(build: Callable[[], Any], raised: type[Exception], message: str) -> None:
    with pytest.raises(raised, match=message):
        build()


@pytest.mark.parametrize(
    ("arguments", "raised", "message"),
    [
        ({"num_label": 3}, OptionError, "from_pretrained does not know num_label"),
        ({"dtype": "float31"}, OptionError, "dtype='float31' is not a type"),
        ({"n_head": 5}, ConfigError, "n_head"),
        ({"attn_implementation": "fast"}, (UnsupportedError, ConfigError), "fast"),
        ({"variant": "fp8"}, CheckpointNotFoundError, r"model\.fp8\.safetensors"),
        ({"subfolder": "elsewhere"}, CheckpointNotFoundError, "elsewhere"),
        ({"device_map": {"h": "cpu"}}, OptionError, "device_map has no device for transformer"),
    ],
    ids=str,
)
def test_loading_refuses(tmp_path: Path, arguments: dict[str, Any], raised: type[Exception], message: str) -> None:
    GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(raised, match=message):
        GPT2LMHeadModel.from_pretrained(tmp_path, **arguments)


def test_loading_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        GPT2LMHeadModel.from_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="no weights in folder"):
        GPT2LMHeadModel.from_pretrained(tmp_path)
    with pytest.raises(OptionError, match="needs a name, a folder, or config and state_dict"):
        GPT2LMHeadModel.from_pretrained(None)
    with pytest.raises(OptionError, match="needs a name or folder to read weights from, or state_dict"):
        GPT2LMHeadModel.from_pretrained(None, config=tiny_config())


def test_another_familys_checkpoint_is_refused(tmp_path: Path) -> None:
    gptrio.GPTNeoXForCausalLM(tiny_config("gpt_neox")).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="gpt_neox"):
        GPT2LMHeadModel.from_pretrained(tmp_path)


def test_saving_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("precious")
    with pytest.raises(CheckpointError, match="is a file; expected a folder"):
        GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "precious"


def test_saving_with_an_impossible_size_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="max_shard_size='5 parsecs' is not possible"):
        GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path / "model", max_shard_size="5 parsecs")
    assert not (tmp_path / "model").exists()


def test_saving_without_data_writes_nothing(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(tiny_config())
    with pytest.raises(CheckpointError, match="meta device: it has no data to save"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
