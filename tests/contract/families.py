"""The families that keep the contract: a row for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import gptrio
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.testing import tiny_config
from tests.reference import randomise


@dataclass(frozen=True)
class Family:
    """A family as the contract sees it.

    Attributes:
        model_type: in `config.json`.
        prefix: of the class names.
        causal_lm: name of the language model.
        head: name of the language model's output layer.
    """

    model_type: str
    prefix: str
    causal_lm: str
    head: str

    def __str__(self) -> str:
        return self.model_type

    @property
    def class_names(self) -> list[str]:
        """The classes that all families have."""
        heads = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
        return [f"{self.prefix}Model", self.causal_lm, *(self.prefix + head for head in heads)]

    def class_of(self, name: str) -> Any:
        """A class by the part of its name after the prefix, "lm" or "base"."""
        return getattr(gptrio, {"lm": self.causal_lm, "base": f"{self.prefix}Model"}.get(name, self.prefix + name))

    def build(self, name: str = "lm", **config: Any) -> Any:
        """A tiny model with random weights in evaluation mode."""
        attn_implementation = config.pop("attn_implementation", None)
        settings = tiny_config(self.model_type, **config)
        settings._attn_implementation = attn_implementation
        model: PreTrainedModel = self.class_of(name)(settings)
        randomise(model)
        return model.eval()


FAMILIES = [
    Family("gpt2", "GPT2", "GPT2LMHeadModel", "lm_head"),
    Family("gpt_neo", "GPTNeo", "GPTNeoForCausalLM", "lm_head"),
    Family("gpt_neox", "GPTNeoX", "GPTNeoXForCausalLM", "embed_out"),
]


def tokens(rows: int = 2, length: int = 21) -> torch.Tensor:
    """(rows, length) ids, none of them special; longer than two windows of the local layers."""
    return torch.randint(1, 250, (rows, length))
