"""`QuestionAnsweringPipeline`: the part of a text that answers a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptrio.errors import InputError, OptionError, UnsupportedError, warn
from gptrio.generation.options.max_length import positions
from gptrio.pipelines.base import ChunkPipeline, Parameters, without_none
from gptrio.pipelines.batching import Row
from gptrio.pipelines.questions import QuestionAnsweringArgumentHandler, SquadExample
from gptrio.pipelines.spans import Span
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
    _args_parser = QuestionAnsweringArgumentHandler()
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
        examples = self._args_parser(*args, **named)
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
        example = self._args_parser.normalize(example)
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
            logits_and_masks = (output["start"], output["end"], output["p_mask"], output.get("attention_mask"))
            *spans, no_answer = select_starts_ends(
                *logits_and_masks, no_answer, candidates, handle_impossible_answer, max_answer_len
            )
            for first, last, score in zip(*(values.tolist() for values in spans), strict=True):
                span = self.get_indices(output["encoding"], first, last, sequence, align_to_words)
                text = output["example"].context_text[slice(*span)]
                new = {"score": 0.0, "start": span[0], "end": span[1], "answer": text}
                answers.setdefault(text.lower(), new)["score"] += score
        found = [*answers.values()]
        if handle_impossible_answer:
            found.append({"score": no_answer, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: -answer["score"])[:top_k]
        return found[0] if len(found) == 1 else found

    def get_indices(self, enc: Any, s: int, e: int, sequence_index: int, align_to_words: bool) -> Span:
        """Place of an answer in its text.

        Args:
            enc: the row's encoding, of the `tokenizers` library.
            s, e: first and last token of the answer.
            sequence_index: 0 or 1, the text of the pair that they are in.
            align_to_words: extend the answer to whole words, if both tokens are in words.
        """
        words = (enc.token_to_word(s), enc.token_to_word(e)) if align_to_words else (None, None)
        if None not in words:
            places = [enc.word_to_chars(word, sequence_index) for word in words]
            if None not in places:
                return places[0][0], places[1][1]
        return enc.offsets[s][0], enc.offsets[e][1]

    def span_to_answer(self, text: str, start: int, end: int) -> Answer:
        """The words of a text, split at spaces, that begin between two of its tokens, and their place.

        Args:
            text: the text.
            start, end: numbers of the tokens, both included; the place is exact where both begin a word.
        """
        words, places, token, place = [], [0, 0], 0, 0
        for word in text.split(" "):
            if start <= token <= end:
                words.append(word)
            if token == start <= end:
                places[0] = place
            if token == end >= start:
                places[1] = place + len(word)
            token += len(self.tokenizer.tokenize(word))
            place += len(word) + 1
        return {"answer": " ".join(words), "start": places[0], "end": places[1]}


def select_starts_ends(
    start: Any,
    end: Any,
    p_mask: Any,
    attention_mask: Any,
    min_null_score: float = 1000000,
    top_k: int = 1,
    handle_impossible_answer: bool = False,
    max_answer_len: int = 15,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any], float]:
    """The likeliest answers of one row, by the logits of its tokens.

    Args:
        start, end: logits (1, T) of the first and of the last token of an answer.
        p_mask: (1, T), 0 for tokens that can be in an answer.
        attention_mask: (1, T), 0 for padding, or None.
        min_null_score: lowest score of "no answer" in the rows before.
        top_k, max_answer_len: see `decode_spans`.
        handle_impossible_answer: whether "no answer" counts.

    Returns:
        The first three of `decode_spans`, and the lowest score of "no answer" so far.
    """
    is_context = torch.as_tensor(p_mask).reshape(-1) == 0
    if attention_mask is not None:
        is_context &= torch.as_tensor(attention_mask).reshape(-1) != 0
    firsts, lasts = (
        torch.as_tensor(logits).float().reshape(-1).masked_fill(~is_context, _MASKED).softmax(-1).numpy()
        for logits in (start, end)
    )
    if handle_impossible_answer:
        min_null_score = min(min_null_score, float(firsts[0] * lasts[0]))
    firsts[0] = lasts[0] = 0.0  # the place of "no answer"
    return *decode_spans(firsts, lasts, top_k, max_answer_len, is_context.numpy()), min_null_score


def decode_spans(
    start: NDArray[Any], end: NDArray[Any], topk: int, max_answer_len: int, undesired_tokens: NDArray[Any]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any]]:
    """First tokens, last tokens and scores of the likeliest answers.

    Args:
        start, end: probabilities (T,) or (1, T) of the first and of the last token.
        topk: most answers; fewer if the context has fewer spans.
        max_answer_len: most tokens of one.
        undesired_tokens: (T,) or (1, T), 1 for tokens of the context.
    """
    is_context = undesired_tokens.ravel().astype(bool)
    is_span = np.tril(np.triu(np.outer(is_context, is_context)), max_answer_len - 1)
    scores = np.where(is_span, np.outer(start, end), -1.0)
    flat = scores.ravel()
    if topk == 1:
        best = np.array([flat.argmax()])
    elif len(flat) < topk:
        best = np.argsort(-flat)
    else:
        best = np.argpartition(-flat, topk)[:topk]
        best = best[np.argsort(-flat[best])]
    firsts, lasts = np.unravel_index(best, scores.shape)
    firsts, lasts = firsts[is_span[firsts, lasts]], lasts[is_span[firsts, lasts]]
    return firsts, lasts, scores[firsts, lasts]
