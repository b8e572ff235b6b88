"""`QuestionAnsweringPipeline`: the part of a text that answers a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptrio.errors import InputError, OptionError, UnsupportedError, warn
from gptrio.generation.options.max_length import positions
from gptrio.pipelines.base import ChunkPipeline, Parameters, without_none
from gptrio.pipelines.batching import Row
from gptrio.pipelines.questions import SquadExample, to_example, to_examples
from gptrio.pipelines.spans import answer_span
from gptrio.tokenization.encoding import short

Answer = dict[str, Any]

_MOST_TOKENS = 384  # of a question and a part of its context
_MOST_OVERLAP = 128
_MASKED = -10000.0  # logit of a token that is in no answer


class QuestionAnsweringPipeline(ChunkPipeline):
    """Answers questions about texts by a part of the text, with a model of `AutoModelForQuestionAnswering`.

    Args:
        top_k: number of answers; the text may have fewer.
        max_seq_len: most tokens of a row, question and context together (384, or what the model takes); a longer
            context is split.
        doc_stride: tokens that parts of a context share (128, or half of `max_seq_len`).
        max_answer_len: most tokens of an answer (15).
        handle_impossible_answer: the empty answer is one, with the score of the row's first token.
        align_to_words: extend answers to whole words (True).
        padding: see `EncodeOptions`.
        max_question_len: accepted; fast tokenizers do not cut questions.

    Example:
        >>> qa = pipeline("question-answering", "my-model")
        >>> qa(question="Where do I live?", context="I live in Berlin")
        {'score': 0.92, 'start': 10, 'end': 16, 'answer': 'Berlin'}
    """

    default_input_names = "question,context"
    handle_impossible_answer = False
    _load_tokenizer = True
    _batches_by_length = True
    _outputs_by_token = ("start", "end")

    @staticmethod
    def create_sample(question: Any, context: Any) -> Any:
        """Make a `SquadExample`, or a list of them of two lists."""
        if isinstance(question, list):
            return [SquadExample(None, *pair) for pair in zip(question, context, strict=True)]
        return SquadExample(None, question, context)

    def _sanitize_parameters(
        self,
        padding: bool | str | None = None,
        topk: int | None = None,
        top_k: int | None = None,
        doc_stride: int | None = None,
        max_answer_len: int | None = None,
        max_seq_len: int | None = None,
        max_question_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        align_to_words: bool | None = None,
        **unknown: Any,
    ) -> Parameters:
        if unknown:
            warn(f"question answering has no argument {', '.join(map(repr, unknown))}; leave it out")
        if topk is not None and top_k is None:
            warn("topk is the older name of top_k; pass that")
            top_k = topk
        for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if value is not None and value < 1:
                raise OptionError(f"{name}={value} must be at least 1")
        preprocess = {
            "padding": padding,
            "doc_stride": doc_stride,
            "max_question_len": max_question_len,
            "max_seq_len": max_seq_len,
        }
        postprocess = {
            "top_k": top_k,
            "max_answer_len": max_answer_len,
            "handle_impossible_answer": handle_impossible_answer,
            "align_to_words": align_to_words,
        }
        return without_none(preprocess), {}, without_none(postprocess)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one question, or several.

        Args:
            args: `{"question": ..., "context": ...}`, a `SquadExample`, a list, generator or dataset of these; or a
                question and a context.
            kwargs: `question` and `context`: two texts, two lists, or a list of questions about one text; further
                arguments of this call: those of the class, and `batch_size`.

        Returns:
            `score`, `start`, `end` (characters of the context) and `answer`; a list of these with `top_k` over 1,
            and one such result for each question if there are several.

        Raises:
            InputError: an input of another form.
        """
        named: dict[str, Any] = {n: kwargs.pop(n) for n in ("X", "data", "question", "context") if n in kwargs}
        examples = to_examples(args, named)
        one = isinstance(examples, list) and len(examples) == 1
        return super().__call__(examples[0] if one else examples, **kwargs)

    def preprocess(
        self,
        example: Any,
        padding: bool | str = "do_not_pad",
        doc_stride: int | None = None,
        max_question_len: int = 64,
        max_seq_len: int | None = None,
    ) -> Iterator[Row]:
        """Yield a row for each part of the context; `p_mask` (1, T) is 0 for tokens of the context and 1 for others."""
        example = to_example(example)
        if not self.tokenizer.is_fast:
            raise UnsupportedError(
                "question answering needs a fast tokenizer, which knows where tokens are in the text; load it with "
                "use_fast=True, or use the class ending in Fast"
            )
        question_first = self.tokenizer.padding_side == "right"
        texts = (example.question_text, example.context_text)
        limit, stride = self._lengths(example.question_text, max_seq_len, doc_stride)
        encoded = self.tokenizer(
            *([text] for text in (texts if question_first else texts[::-1])),
            padding=padding,
            truncation="only_second" if question_first else "only_first",
            max_length=limit,
            stride=stride,
            return_overflowing_tokens=True,
        )
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        rows = encoded.encodings
        for i, row in enumerate(rows):
            mask = [int(sequence != int(question_first)) for sequence in row.sequence_ids]
            cls = self.tokenizer.cls_token_id
            if cls is not None:  # some models point at it for "no answer"
                mask = [0 if number == cls else masked for number, masked in zip(row.ids, mask, strict=True)]
            tensors = {name: torch.tensor([encoded[name][i]]) for name in names}
            others = {"example": example, "encoding": row, "is_last": i == len(rows) - 1}
            yield {**tensors, "p_mask": torch.tensor([mask]), **others}

    def _lengths(self, question: str, max_seq_len: int | None, doc_stride: int | None) -> tuple[int, int]:
        """Most tokens of a row, and how many of them two parts of a context share.

        A question that leaves less room for the context than the shared tokens gets parts that share half of it.
        """
        most = positions(self.model)
        limit = min(self.tokenizer.model_max_length, _MOST_TOKENS) if max_seq_len is None else max_seq_len
        limit = limit if most is None else min(limit, most)
        stride = min(limit // 2, _MOST_OVERLAP) if doc_stride is None else doc_stride
        if stride > limit:
            raise OptionError(f"doc_stride={stride} is larger than max_seq_len={limit}; pass less than that")
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        room = limit - special - len(self.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        if room < 1:
            raise InputError(
                f"the question {short(question)} leaves no room for the context in max_seq_len={limit} tokens"
            )
        return limit, stride if stride < room else room // 2

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in self.tokenizer.model_input_names if name in inputs]
        output = self.model(**{name: inputs[name] for name in names})
        is_named = isinstance(output, Mapping)
        start, end = (output["start_logits"], output["end_logits"]) if is_named else output[:2]
        return {**inputs, "start": start, "end": end}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        top_k: int = 1,
        handle_impossible_answer: bool = False,
        max_answer_len: int = 15,
        align_to_words: bool = True,
    ) -> Answer | list[Answer]:
        """Answers to a question, the likeliest first, from the outputs of its rows."""
        answers: dict[str, Answer] = {}
        no_answer = float("inf")
        candidates = top_k * 2 + 10 if align_to_words else top_k  # aligned, some become the same answer
        sequence = int(self.tokenizer.padding_side == "right")
        for output in model_outputs:
            is_context = _is_context(output)
            start, end = (
                output[name][0].float().masked_fill(~is_context, _MASKED).softmax(-1).numpy()
                for name in ("start", "end")
            )
            no_answer = min(no_answer, float(start[0] * end[0]))
            start[0] = end[0] = 0.0  # the place of "no answer"
            for first, last, score in _best_spans(start, end, is_context.numpy(), candidates, max_answer_len):
                span = answer_span(output["encoding"], first, last, sequence, align_to_words)
                text = output["example"].context_text[slice(*span)]
                new = {"score": 0.0, "start": span[0], "end": span[1], "answer": text}
                answers.setdefault(text.lower(), new)["score"] += score
        found = [*answers.values()]
        if handle_impossible_answer:
            found.append({"score": no_answer, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: -answer["score"])[:top_k]
        return found[0] if len(found) == 1 else found


def _is_context(output: Mapping[str, Any]) -> Tensor:
    """(T,), whether a token can be in an answer."""
    mask: Tensor = output["p_mask"][0] == 0
    attention_mask = output.get("attention_mask")
    return mask if attention_mask is None else mask & (attention_mask[0] != 0)


def _best_spans(
    start: NDArray[Any], end: NDArray[Any], is_context: NDArray[np.bool_], count: int, max_answer_len: int
) -> list[tuple[int, int, float]]:
    """First token, last token and score of the likeliest answers of at most `max_answer_len` tokens.

    Args:
        start, end: probabilities (T,) of the first and of the last token.
        is_context: (T,), whether a token can be in an answer.
        count: how many are looked at; those with a token outside the context are left out then.
        max_answer_len: most tokens of one.
    """
    scores = np.tril(np.triu(np.outer(start, end)), max_answer_len - 1).ravel()
    if count == 1:
        best = np.array([scores.argmax()])
    elif len(scores) < count:
        best = np.argsort(-scores)
    else:
        best = np.argpartition(-scores, count)[:count]
        best = best[np.argsort(-scores[best])]
    firsts, lasts = np.unravel_index(best, (len(start), len(end)))
    is_answer = is_context[firsts] & is_context[lasts] & (lasts >= firsts) & (lasts - firsts < max_answer_len)
    chosen = zip(firsts[is_answer], lasts[is_answer], scores[best][is_answer], strict=True)
    return [(int(first), int(last), float(score)) for first, last, score in chosen]
