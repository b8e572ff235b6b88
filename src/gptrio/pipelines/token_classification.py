"""`TokenClassificationPipeline`: a label for each token, or entities of several tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import GeneratorType
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from gptrio.errors import InputError, OptionError, UnknownNameError, warn
from gptrio.pipelines.base import ArgumentHandler, ChunkPipeline, Parameters, without_none
from gptrio.pipelines.batching import Row
from gptrio.pipelines.classifying import most_tokens
from gptrio.pipelines.entities import BY_WORD, AggregationStrategy, Entity, EntityMixin
from gptrio.pipelines.results import is_column
from gptrio.pipelines.spans import Span, join_words
from gptrio.tokenization.encoding import short


class _Placed(NamedTuple):
    """An input with the places of its tokens."""

    sentence: Any
    offset_mapping: Sequence[Span]


class TokenClassificationArgumentHandler(ArgumentHandler):
    """The inputs of a call as a list, and what says how to read them."""

    def __call__(self, inputs: Any, **kwargs: Any) -> tuple[Any, bool, Any, str | None]:
        """The inputs (generators and datasets unchanged), `is_split_into_words`, the places of tokens, `delimiter`.

        Raises:
            InputError: inputs of another form, or none, or places of another number of texts.
        """
        options = kwargs.get("is_split_into_words", False), kwargs.get("delimiter")
        if isinstance(inputs, (Dataset, GeneratorType)) or is_column(inputs):
            return inputs, options[0], None, options[1]
        if not isinstance(inputs, (str, list, tuple)) or (not inputs and not isinstance(inputs, str)):
            raise InputError(f"inputs is {short(inputs)}; expected a text, or a list of at least one")
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        offsets = kwargs.get("offset_mapping")
        if not offsets:
            return texts, options[0], None, options[1]
        offsets = [offsets] if isinstance(offsets[0], tuple) else offsets
        if len(offsets) != len(texts):
            raise InputError(
                f"offset_mapping is of {len(offsets)} texts, and inputs has {len(texts)}; expected as many"
            )
        return texts, options[0], offsets, options[1]


class TokenClassificationPipeline(EntityMixin, ChunkPipeline):
    """Names entities, or gives a label to each token, with a model of `AutoModelForTokenClassification`.

    Args:
        ignore_labels: labels that are left out (["O"]).
        aggregation_strategy: an `AggregationStrategy`, or its value as text.
        stride: split texts that are too long into parts, which overlap by this number of tokens; without it, the rest
            of a long text is left out. Fast tokenizers only.
        is_split_into_words: inputs are lists of words. Fast tokenizers only.
        delimiter: joins those words to the text in which `start` and `end` count (a space).
        offset_mapping: (start, end) of each token, if the tokenizer does not know it.
        grouped_entities, ignore_subwords: older names of "simple", and with both "first".

    Example:
        >>> ner = pipeline("ner", "my-model", aggregation_strategy="simple")
        >>> ner("My name is Sarah")
        [{'entity_group': 'PER', 'score': 0.99, 'word': ' Sarah', 'start': 11, 'end': 16}]
    """

    default_input_names = "sequences"
    _args_parser = TokenClassificationArgumentHandler()
    _load_tokenizer = True
    _batches_by_length = True
    _outputs_by_token = ("logits",)

    def _sanitize_parameters(
        self,
        ignore_labels: Sequence[str] | None = None,
        grouped_entities: bool | None = None,
        ignore_subwords: bool | None = None,
        aggregation_strategy: AggregationStrategy | str | None = None,
        offset_mapping: Sequence[Span] | None = None,
        is_split_into_words: bool | None = None,
        stride: int | None = None,
        delimiter: str | None = None,
        **unknown: Any,
    ) -> Parameters:
        if unknown:
            raise OptionError(f"token classification has no argument {', '.join(map(repr, unknown))}; leave it out")
        if grouped_entities is not None or ignore_subwords is not None:
            aggregation_strategy = _older_strategy(grouped_entities, ignore_subwords)
        strategy = None if aggregation_strategy is None else _strategy(aggregation_strategy)
        self._check(strategy, stride)
        preprocess = {
            "is_split_into_words": is_split_into_words,
            "delimiter": delimiter,
            "offset_mapping": offset_mapping,
            "stride": stride,
        }
        postprocess = {"aggregation_strategy": strategy, "ignore_labels": ignore_labels}
        return without_none(preprocess), {}, without_none(postprocess)

    def _check(self, strategy: AggregationStrategy | None, stride: int | None) -> None:
        if strategy in BY_WORD and not self.tokenizer.is_fast:
            raise OptionError(
                f"aggregation_strategy={strategy.value!r} needs a fast tokenizer, which knows where words begin; use "
                "'simple', or a tokenizer whose class ends in Fast"
            )
        if stride is None:
            return
        limit = most_tokens(self.tokenizer, self.model)
        if limit is None or not 0 <= stride < limit:
            raise OptionError(f"stride={stride} must be from 0 to less than the most tokens of a text, {limit}")
        if strategy == AggregationStrategy.NONE:
            raise OptionError(
                "stride joins entities of overlapping parts; aggregation_strategy='none' makes none, pass 'simple'"
            )
        if not self.tokenizer.is_fast:
            raise OptionError("stride needs a fast tokenizer; use one whose class ends in Fast")

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Entities, or labels of tokens, of a text, or a list of them for each text.

        Args:
            inputs: text, list of texts, or with `is_split_into_words` list(s) of words; generator or dataset.
            kwargs: of this call: those of the class, and `batch_size`.

        Returns:
            Dictionaries of `entity` and `index` for tokens, or `entity_group` for entities; and `score`, `word` (as the
            tokenizer writes it), `start` and `end` (characters; None if the tokenizer does not know them).

        Raises:
            InputError: inputs of another form, or none.
        """
        given = {"offset_mapping": kwargs.pop("offset_mapping", None)}
        is_split = kwargs.get("is_split_into_words", self._preprocess_params.get("is_split_into_words", False))
        if is_split and isinstance(inputs, (list, tuple)) and not all(isinstance(item, list) for item in inputs):
            inputs = [list(inputs)]
        texts, _, offsets, _ = self._args_parser(inputs, is_split_into_words=is_split, **given)
        if offsets is not None:
            texts = [_Placed(*pair) for pair in zip(texts, offsets, strict=True)]
        return super().__call__(texts[0] if isinstance(inputs, str) else texts, **kwargs)

    def preprocess(
        self,
        sentence: Any,
        offset_mapping: Sequence[Span] | None = None,
        is_split_into_words: bool = False,
        delimiter: str = " ",
        stride: int | None = None,
    ) -> Iterator[Row]:
        """Yield the rows of a text: one, with `stride` as many as needed, and none if it has no tokens."""
        if isinstance(sentence, _Placed):
            sentence, offset_mapping = sentence
        _check_text(sentence, is_split_into_words, self.tokenizer.is_fast)
        text, words = join_words(sentence, delimiter) if is_split_into_words else (sentence, [])
        limit = most_tokens(self.tokenizer, self.model)
        encoded = self.tokenizer(
            [sentence],
            is_split_into_words=is_split_into_words,
            truncation=limit is not None,
            max_length=limit,
            stride=stride or 0,
            return_overflowing_tokens=stride is not None,
            return_special_tokens_mask=True,
            return_offsets_mapping=self.tokenizer.is_fast,
        )
        names = [name for name in (*self.tokenizer.model_input_names, "special_tokens_mask") if name in encoded]
        count = len(encoded["input_ids"])
        for i in range(count if encoded["input_ids"][0] else 0):
            row: dict[str, Any] = {name: torch.tensor([encoded[name][i]]) for name in names}
            offsets = offset_mapping or (encoded["offset_mapping"][i] if self.tokenizer.is_fast else None)
            row["offset_mapping"] = None if offsets is None else torch.tensor([offsets])
            if is_split_into_words:
                row |= {"word_ids": encoded.word_ids(i), "word_to_chars_map": words}
            yield {**row, "sentence": text, "is_last": i == count - 1}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in self.tokenizer.model_input_names if name in model_inputs]
        output = self.model(**{name: model_inputs[name] for name in names}, use_cache=False)
        return {**model_inputs, "logits": output["logits"] if isinstance(output, dict) else output[0]}

    def postprocess(
        self,
        all_outputs: list[dict[str, Any]],
        aggregation_strategy: AggregationStrategy = AggregationStrategy.NONE,
        ignore_labels: Sequence[str] | None = None,
    ) -> list[Entity]:
        """Entities of a text, from the outputs of its rows."""
        ignored = ["O"] if ignore_labels is None else ignore_labels
        entities: list[Entity] = []
        for output in all_outputs:
            offsets = output["offset_mapping"]
            tokens = self.gather_pre_entities(
                output["sentence"],
                output["input_ids"][0].numpy(),
                output["logits"][0].float().softmax(-1).numpy(),
                None if offsets is None else [(start, end) for start, end in offsets[0].tolist()],
                output["special_tokens_mask"][0].numpy(),
                aggregation_strategy,
                output.get("word_ids"),
                output.get("word_to_chars_map"),
            )
            found = self.aggregate(tokens, aggregation_strategy)
            entities += [e for e in found if e.get("entity") not in ignored and e.get("entity_group") not in ignored]
        return self.aggregate_overlapping_entities(entities) if len(all_outputs) > 1 else entities


NerPipeline = TokenClassificationPipeline


def _strategy(value: AggregationStrategy | str) -> AggregationStrategy:
    """A strategy by its value.

    Raises:
        UnknownNameError: there is none.
    """
    try:
        return AggregationStrategy(value.lower() if isinstance(value, str) else value)
    except ValueError:
        names = ", ".join(repr(strategy.value) for strategy in AggregationStrategy)
        raise UnknownNameError(f"aggregation_strategy={value!r} is not known; expected one of {names}") from None


def _older_strategy(grouped: bool | None, ignore_subwords: bool | None) -> AggregationStrategy:
    whole_words = AggregationStrategy.FIRST if ignore_subwords else AggregationStrategy.SIMPLE
    strategy = whole_words if grouped else AggregationStrategy.NONE
    warn(f"grouped_entities and ignore_subwords are older names; pass aggregation_strategy={strategy.value!r}")
    return strategy


def _check_text(sentence: Any, is_split: bool, is_fast: bool) -> None:
    if is_split and not is_fast:
        raise InputError("is_split_into_words=True needs a fast tokenizer; use one whose class ends in Fast")
    if is_split and not isinstance(sentence, list):
        raise InputError(f"the input is {short(sentence)}; with is_split_into_words=True a list of words is expected")
    if not is_split and not isinstance(sentence, str):
        raise InputError(f"the input is {short(sentence)}; expected a text, or pass is_split_into_words=True for words")
