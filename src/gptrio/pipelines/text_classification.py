"""`TextClassificationPipeline`: labels of texts, or of pairs of texts."""

from __future__ import annotations

from typing import Any

from gptrio.errors import InputError, UnknownNameError, warn
from gptrio.pipelines.base import Parameters, Pipeline
from gptrio.pipelines.classifying import ClassificationFunction, check_has_tokens, classifier_logits


class TextClassificationPipeline(Pipeline):
    """Classifies texts by a model with a sequence-classification head.

    Scores are a softmax over the labels; a sigmoid for one label and for `problem_type="multi_label_classification"`;
    the logits themselves for `problem_type="regression"`. `pad_token_id` need not be set for batches.

    Example:
        >>> classifier = pipeline("text-classification", folder)  # doctest: +SKIP
        >>> classifier("a fine film")  # doctest: +SKIP
        [{'label': 'POSITIVE', 'score': 0.99}]
    """

    _load_tokenizer = True
    _batches_by_length = True

    return_all_scores = False
    function_to_apply = ClassificationFunction.NONE

    def _sanitize_parameters(
        self,
        return_all_scores: bool | None = None,
        function_to_apply: str | ClassificationFunction | None = None,
        top_k: Any = "",  # not given; None means all labels
        **tokenizer_kwargs: Any,
    ) -> Parameters:
        postprocess: dict[str, Any] = {}
        if return_all_scores is None:
            return_all_scores = getattr(self.model.config, "return_all_scores", None)
        if isinstance(top_k, int) or top_k is None:
            postprocess = {"top_k": top_k, "_legacy": False}
        elif return_all_scores is not None:
            warn("return_all_scores is deprecated; pass top_k=None for all scores, or top_k=1 for the best")
            postprocess = {"top_k": None if return_all_scores else 1}
        if isinstance(function_to_apply, str):
            function_to_apply = _function(function_to_apply)
        if function_to_apply is not None:
            postprocess["function_to_apply"] = function_to_apply
        return tokenizer_kwargs, {}, postprocess

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Classify one text or several.

        Args:
            inputs: a text; a pair, which is a dictionary with "text" and "text_pair"; or a list, a generator or a
                dataset of either.
            kwargs: any of

                - top_k: number of labels in each result, the likeliest first; None for all.
                - function_to_apply: "softmax", "sigmoid" or "none"; "default", see the class.
                - return_all_scores: older name of `top_k=None`.
                - batch_size: see `Pipeline`.
                - arguments of the tokenizer, such as `truncation`.

        Returns:
            For each input a dictionary with "label" and "score", or with `top_k` a list of such dictionaries. A single
            text without `top_k` gives a list of one.

        Raises:
            InputError: a text has no tokens, or a pair is a list.
            UnknownNameError: no such function.
        """
        result = super().__call__(inputs, **kwargs)
        return [result] if isinstance(inputs, str) and "top_k" not in kwargs else result

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:
        """Encode a text or a pair."""
        texts: dict[str, Any] = {"text": inputs}
        if isinstance(inputs, dict):
            texts = inputs
        elif isinstance(inputs, list):
            if len(inputs) != 1 or not isinstance(inputs[0], list) or len(inputs[0]) != 2:
                raise InputError(
                    f"a list was given as one text: {inputs!r}; for a pair pass a dictionary "
                    '{"text": ..., "text_pair": ...}'
                )
            texts = dict(zip(("text", "text_pair"), inputs[0], strict=True))
        row = self.tokenizer(**texts, return_tensors="pt", **tokenizer_kwargs)
        check_has_tokens(row, inputs)
        return row

    def _forward(self, model_inputs: dict[str, Any]) -> Any:
        return classifier_logits(self.model, model_inputs)

    def postprocess(
        self,
        model_outputs: Any,
        function_to_apply: ClassificationFunction | None = None,
        top_k: int | None = 1,
        _legacy: bool = True,
    ) -> Any:
        """Turn logits (1, labels) into scores with labels."""
        function = function_to_apply or self._default_function()
        scores = function(model_outputs["logits"][0].float()).tolist()
        names = self.model.config.id2label
        labels = [{"label": names[index], "score": score} for index, score in enumerate(scores)]
        if top_k == 1 and _legacy:
            return max(labels, key=_score)
        return labels if _legacy else sorted(labels, key=_score, reverse=True)[:top_k]

    def _default_function(self) -> ClassificationFunction:
        config = self.model.config
        if config.problem_type == "regression":
            return ClassificationFunction.NONE
        is_multi_label = config.problem_type == "multi_label_classification" or config.num_labels == 1
        return ClassificationFunction.SIGMOID if is_multi_label else ClassificationFunction.SOFTMAX


def _score(label: dict[str, Any]) -> float:
    return float(label["score"])


def _function(name: str) -> ClassificationFunction | None:
    if name.lower() == "default":
        return None
    if name.upper() not in ClassificationFunction.__members__:
        known = ["default", *(member.value for member in ClassificationFunction)]
        raise UnknownNameError(f"function_to_apply={name!r} is not known; expected one of {known}")
    return ClassificationFunction[name.upper()]
