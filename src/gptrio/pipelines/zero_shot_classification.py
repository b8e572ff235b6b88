"""`ZeroShotClassificationPipeline`: labels chosen at the call, by a model that knows what follows from a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from gptrio.errors import InputError, InputTypeError, OptionError, TokenizationError
from gptrio.pipelines.base import ArgumentHandler, ChunkPipeline, Parameters
from gptrio.pipelines.classifying import classifier_logits, most_tokens
from gptrio.tokenization.encoding import short
from gptrio.utils import logging

_log = logging.get_logger(__name__)

Labels = str | Iterable[str]


class ZeroShotClassificationArgumentHandler(ArgumentHandler):
    """Pairs of a text and a hypothesis about each label."""

    def _parse_labels(self, labels: Labels | None) -> list[str]:
        if isinstance(labels, str):
            return [label.strip() for label in labels.split(",") if label.strip()]
        if labels is None:
            raise InputTypeError("candidate_labels is None; expected labels in a list, or in a text with commas")
        return list(labels)

    def __call__(
        self, sequences: str | list[str], labels: list[str], hypothesis_template: str
    ) -> tuple[list[list[str]], list[str]]:
        """All pairs [text, hypothesis], and the texts as a list.

        Raises:
            InputError: no texts or no labels.
            OptionError: the template has no place for a label.
        """
        if not labels or not sequences:
            raise InputError("zero-shot classification needs at least one text and one label in candidate_labels")
        if hypothesis_template.format(labels[0]) == hypothesis_template:
            raise OptionError(f"hypothesis_template={hypothesis_template!r} has no {{}} where the label should go")
        texts = [sequences] if isinstance(sequences, str) else sequences
        return [[text, hypothesis_template.format(label)] for text in texts for label in labels], texts


class ZeroShotClassificationPipeline(ChunkPipeline):
    """Classifies texts by labels of the call, with a sequence classifier for natural language inference.

    Each label becomes a hypothesis, such as "This example is sports.", which the model reads after the text. The logit
    of the label of `config.label2id` that begins with "entail" says how far the hypothesis follows.
    """

    _args_parser = ZeroShotClassificationArgumentHandler()
    _load_tokenizer = True
    _batches_by_length = True

    def __init__(
        self,
        args_parser: ZeroShotClassificationArgumentHandler | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, args_parser=args_parser, **kwargs)
        if self.entailment_id == -1:
            _log.warning(
                "none of the model's labels %s begins with 'entail', so the last one is taken; set config.label2id",
                list(self.model.config.label2id),
            )

    @property
    def entailment_id(self) -> int:
        """Index of the label for a hypothesis that follows; -1 if no label has such a name."""
        labels = self.model.config.label2id.items()
        return next((index for label, index in labels if label.lower().startswith("entail")), -1)

    def _sanitize_parameters(self, **kwargs: Any) -> Parameters:
        if kwargs.get("multi_class") is not None:
            _log.warning("multi_class is an older name of multi_label; pass multi_label")
            kwargs["multi_label"] = kwargs["multi_class"]
        preprocess = {}
        if "candidate_labels" in kwargs:
            preprocess["candidate_labels"] = self._args_parser._parse_labels(kwargs["candidate_labels"])
        if "hypothesis_template" in kwargs:
            preprocess["hypothesis_template"] = kwargs["hypothesis_template"]
        return preprocess, {}, {"multi_label": kwargs["multi_label"]} if "multi_label" in kwargs else {}

    def __call__(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        """Classify one text or several.

        Args:
            sequences: a text, or a list, a generator or a dataset of texts; too long ones are cut.
            args: `candidate_labels`.
            kwargs: any of

                - candidate_labels: labels in a list or an array, or one text with commas between them.
                - hypothesis_template: a text with {} where a label goes; "This example is {}."
                - multi_label: several labels may hold, so each has a score of its own; otherwise scores sum up to 1.
                - batch_size: see `Pipeline`; rows are pairs of text and label.

        Returns:
            For each text a dictionary with "sequence", "labels", the likeliest first, and their "scores".

        Raises:
            InputError: there are no labels, or no text.
            OptionError: the template has no place for a label, or arguments are not known.
        """
        if args and (len(args) > 1 or "candidate_labels" in kwargs):
            raise OptionError(f"too many arguments without a name: {args}; only candidate_labels may follow the texts")
        if args:
            kwargs["candidate_labels"] = args[0]
        return super().__call__(sequences, **kwargs)

    def preprocess(
        self, inputs: str, candidate_labels: list[str] | None = None, hypothesis_template: str = "This example is {}."
    ) -> Iterator[dict[str, Any]]:
        """Encode the text with the hypothesis of each label."""
        if not isinstance(inputs, (str, list)):
            raise InputTypeError(f"an input is {short(inputs)}; expected a text")
        labels = candidate_labels or []
        pairs, texts = self._args_parser(inputs, labels, hypothesis_template)
        for i, (label, pair) in enumerate(zip(labels, pairs, strict=False)):
            row = self._encode(*pair)
            yield {"candidate_label": label, "sequence": texts[0], "is_last": i == len(labels) - 1, **row}

    def _encode(self, text: str, hypothesis: str) -> Any:
        """A pair, of whose text the end is cut if both are too long for the model."""
        limit = most_tokens(self.tokenizer, self.model)
        cut = {} if limit is None else {"truncation": "only_first", "max_length": limit}
        try:
            return self.tokenizer(text, hypothesis, return_tensors="pt", **cut)
        except TokenizationError:  # the text is too short to be cut
            return self.tokenizer(text, hypothesis, return_tensors="pt")

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        kept = {name: inputs[name] for name in ("candidate_label", "sequence", "is_last")}
        row = {name: inputs[name] for name in self.tokenizer.model_input_names}
        return {**kept, "logits": classifier_logits(self.model, row)["logits"]}

    def postprocess(self, model_outputs: list[dict[str, Any]], multi_label: bool = False) -> dict[str, Any]:
        """Turn the logits of all labels into their scores."""
        labels = [output["candidate_label"] for output in model_outputs]
        logits = torch.cat([output["logits"] for output in model_outputs]).float()  # (labels, classes)
        if multi_label or len(labels) == 1:
            against = -1 if self.entailment_id == 0 else 0
            scores = logits[:, [against, self.entailment_id]].softmax(-1)[:, 1].numpy()
        else:
            scores = logits[:, self.entailment_id].softmax(0).numpy()
        order = np.argsort(scores)[::-1]
        return {
            "sequence": model_outputs[0]["sequence"],
            "labels": [labels[i] for i in order],
            "scores": scores[order].tolist(),
        }
