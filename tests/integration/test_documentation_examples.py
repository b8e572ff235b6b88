"""The GPT-2 examples of the Transformers documentation, with the model that ships; what they compute is checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from gptrio import (
    AutoTokenizer,
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GptrioWarning,
)
from gptrio.testing import assert_close

NAME = "gptrio/stdlib-gpt2"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(NAME)


def with_new_head(model_class: Any, missing: str, **kwargs: Any) -> Any:
    """The model under a head that the checkpoint lacks, of which one warning tells."""
    with pytest.warns(GptrioWarning, match=missing) as caught:
        model = model_class.from_pretrained(NAME, **kwargs)
    assert len(caught) == 1
    return model


def assert_as_in_transformers(model: Any, outputs: Any, **inputs: Any) -> None:
    """The same weights give the same result there."""
    oracle_class = getattr(transformers, type(model).__name__)
    config = transformers.GPT2Config(**model.config.to_dict(), attn_implementation="eager")
    oracle = oracle_class(config).eval()
    oracle.load_state_dict(model.state_dict())
    for name, value in oracle(**inputs).items():
        if isinstance(value, Tensor):
            assert_close(outputs[name], value, name=name)


def test_language_model_loss(tokenizer: Any) -> None:
    model = GPT2LMHeadModel.from_pretrained(NAME)
    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    outputs = model(**inputs, labels=inputs["input_ids"])
    ids = inputs["input_ids"]
    assert outputs.logits.shape == (1, ids.shape[1], len(tokenizer))
    assert_close(outputs.loss, F.cross_entropy(outputs.logits[0, :-1], ids[0, 1:]))
    assert_as_in_transformers(model, outputs, **inputs, labels=ids)


def test_double_heads_with_an_added_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(NAME)
    model = with_new_head(GPT2DoubleHeadsModel, r"multiple_choice_head\.summary\.weight")
    rows = model.get_input_embeddings().weight.detach().clone()
    assert tokenizer.add_special_tokens({"cls_token": "[CLS]"}) == 1
    table = model.resize_token_embeddings(len(tokenizer))
    assert table.weight.shape == (len(rows) + 1, 256)
    assert torch.equal(table.weight[:-1], rows)
    assert model.lm_head.weight is table.weight
    encoded = [tokenizer.encode(text) for text in ("Hello, my dog is cute [CLS]", "Hello, my cat is cute [CLS]")]
    places = [ids.index(tokenizer.cls_token_id) for ids in encoded]
    length = max(map(len, encoded))
    input_ids = torch.tensor([[ids + [tokenizer.eos_token_id] * (length - len(ids)) for ids in encoded]])
    mc_token_ids = torch.tensor([places])
    outputs = model(input_ids, mc_token_ids=mc_token_ids)
    assert outputs.logits.shape == (1, 2, length, len(tokenizer))
    assert outputs.mc_logits.shape == (1, 2)
    assert_as_in_transformers(model, outputs, input_ids=input_ids, mc_token_ids=mc_token_ids)


def test_question_answering(tokenizer: Any) -> None:
    model = with_new_head(GPT2ForQuestionAnswering, r"qa_outputs\.weight")
    inputs = tokenizer("Who was Jim Henson?", "Jim Henson was a nice puppet", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    first, last = outputs.start_logits.argmax(), outputs.end_logits.argmax()
    answer = tokenizer.decode(inputs.input_ids[0, first : last + 1], skip_special_tokens=True)
    assert answer in tokenizer.decode(inputs.input_ids[0])
    targets = {"start_positions": torch.tensor([14]), "end_positions": torch.tensor([15])}
    outputs = model(**inputs, **targets)
    ends = [
        F.cross_entropy(outputs.start_logits, torch.tensor([14])),
        F.cross_entropy(outputs.end_logits, torch.tensor([15])),
    ]
    assert_close(outputs.loss, (ends[0] + ends[1]) / 2)
    assert_as_in_transformers(model, outputs, **inputs, **targets)


def test_single_label_classification(tokenizer: Any) -> None:
    model = with_new_head(GPT2ForSequenceClassification, r"score\.weight")
    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    with torch.no_grad():
        predicted = model(**inputs).logits.argmax().item()
    assert model.config.id2label[predicted] in ("LABEL_0", "LABEL_1")
    num_labels = len(model.config.id2label)
    model = with_new_head(GPT2ForSequenceClassification, r"score\.weight", num_labels=num_labels)
    labels = torch.tensor([1])
    outputs = model(**inputs, labels=labels)
    assert model.config.problem_type == "single_label_classification"
    assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    assert_as_in_transformers(model, outputs, **inputs, labels=labels)


def test_multi_label_classification(tokenizer: Any) -> None:
    problem = {"problem_type": "multi_label_classification"}
    model = with_new_head(GPT2ForSequenceClassification, r"score\.weight", **problem)
    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted = torch.arange(logits.shape[-1])[torch.sigmoid(logits).squeeze(0) > 0.5]
    num_labels = len(model.config.id2label)
    model = with_new_head(GPT2ForSequenceClassification, r"score\.weight", num_labels=num_labels, **problem)
    labels = F.one_hot(predicted[None], num_classes=num_labels).sum(1).float()
    outputs = model(**inputs, labels=labels)
    assert_close(outputs.loss, F.binary_cross_entropy_with_logits(outputs.logits, labels))
    assert_as_in_transformers(model, outputs, **inputs, labels=labels)


def test_token_classification(tokenizer: Any) -> None:
    model = with_new_head(GPT2ForTokenClassification, r"classifier\.(bias|weight)")
    text = "HuggingFace is a company based in Paris and New York"
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        predicted = model(**inputs).logits.argmax(-1)
    classes = [model.config.id2label[index.item()] for index in predicted[0]]
    assert len(classes) == inputs.input_ids.shape[1]
    outputs = model(**inputs, labels=predicted)
    assert_close(outputs.loss, F.cross_entropy(outputs.logits[0], predicted[0]))
    assert_as_in_transformers(model, outputs, **inputs, labels=predicted)
