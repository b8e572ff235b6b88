"""`FeatureExtractionPipeline`: the hidden states of texts."""

from __future__ import annotations

from typing import Any

from gptrio.errors import OptionError
from gptrio.pipelines.base import Parameters, Pipeline
from gptrio.pipelines.classifying import check_has_tokens


class FeatureExtractionPipeline(Pipeline):
    """Gives the last hidden states of texts, or the first output of a model with a head.

    Example:
        >>> extractor = pipeline("feature-extraction", "gptrio/stdlib-gpt2")
        >>> extractor("import os", return_tensors=True).shape
        torch.Size([1, 3, 384])
    """

    _load_tokenizer = True
    _batches_by_length = True
    _outputs_by_token = ("last_hidden_state", "logits")

    def _sanitize_parameters(
        self,
        truncation: Any = None,
        tokenize_kwargs: dict[str, Any] | None = None,
        return_tensors: bool | None = None,
        **kwargs: Any,
    ) -> Parameters:
        preprocess = dict(tokenize_kwargs or {})
        if truncation is not None:
            if "truncation" in preprocess:
                raise OptionError(f"truncation={truncation!r} was given, and another one in tokenize_kwargs")
            preprocess["truncation"] = truncation
        return preprocess, {}, {} if return_tensors is None else {"return_tensors": return_tensors}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Features of one text or several.

        Args:
            inputs: a text, or a list, a generator or a dataset of texts.
            args: ignored, with a warning.
            kwargs: any of

                - truncation: of the tokenizer.
                - tokenize_kwargs: further arguments of the tokenizer, a dictionary.
                - return_tensors: tensors in place of lists.
                - batch_size: see `Pipeline`.

        Returns:
            For each text nested lists or a tensor (1, T, C).

        Raises:
            OptionError: truncation is given twice.
            InputError: a text has no tokens.
        """
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(self, inputs: str, **tokenize_kwargs: Any) -> Any:
        """Encode a text."""
        row = self.tokenizer(inputs, return_tensors="pt", **tokenize_kwargs)
        check_has_tokens(row, inputs)
        return row

    def _forward(self, model_inputs: dict[str, Any]) -> Any:
        return self.model(**model_inputs)

    def postprocess(self, model_outputs: Any, return_tensors: bool = False) -> Any:
        """The first output, which is the last hidden state or the logits of a head."""
        return model_outputs[0] if return_tensors else model_outputs[0].tolist()
