"""From examples to rows of a model: language modelling, classification of texts and of tokens, question answering."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gptrio.errors import OptionError, counted
from gptrio.training.answers import answer_tokens, best_answers, check_answers, mean_scores, pieces_of
from gptrio.training.collators import IGNORE
from gptrio.training.files import shown

Example = Mapping[str, Any]  # what a task calls the columns of a record, and their values
Row = dict[str, Any]


class Task(ABC):
    """What a model learns from examples.

    Args:
        tokenizer: turns texts into token ids.
        context: most tokens of a row.
        labels: names of the classes, in the order of their ids; empty where there are none.

    Attributes:
        model_class: name of the auto class of its models.
        columns: what an example holds.
    """

    model_class: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    pipeline: ClassVar[str]

    def __init__(self, tokenizer: Any, context: int, labels: Sequence[str] = ()) -> None:
        self.tokenizer, self.context, self.labels = tokenizer, context, list(labels)

    @staticmethod
    def label_names(examples: Sequence[Example]) -> list[str]:
        """Names of the classes that examples have, sorted; none for tasks without classes."""
        return []

    @staticmethod
    @abstractmethod
    def check(example: Example) -> None:
        """Raise OptionError unless the parts of an example are of their types, and fit each other."""

    @staticmethod
    def doubt(example: Example) -> str:
        """What is probably not meant in an example, which can be learnt from all the same; empty if it is fine."""
        return ""

    @abstractmethod
    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Rows (input_ids, labels or positions of answers) of at most `context` tokens.

        Raises:
            OptionError: an example does not fit the model; its `index` is the example's.
        """

    def metrics(self, examples: Sequence[Example]) -> Callable[[Any], dict[str, float]] | None:
        """What is computed of the predictions for the rows of examples beside the loss; None for the loss alone."""
        return None

    def _label_id(self, name: str, index: int) -> int:
        """The id of a label that the example with a number from 0 has."""
        if name not in self.labels:
            known = ", ".join(map(repr, self.labels[:8])) + (", ..." if len(self.labels) > 8 else "")
            raise _refused(index, f"label {name!r} is none of the {len(self.labels)} that the model learns: {known}")
        return self.labels.index(name)


class LanguageModeling(Task):
    """Every next token of texts, which are ended by the end-of-text token, joined, and cut into rows of `context`."""

    model_class = "AutoModelForCausalLM"
    columns = ("text",)
    pipeline = "text-generation"

    @staticmethod
    def check(example: Example) -> None:
        """A text, which may be empty."""
        _check_text(example, "text", may_be_empty=True)

    def documents(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of each text, with the end-of-text token."""
        end = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        return [ids + end for ids in self.tokenizer([row["text"] for row in examples], verbose=False)["input_ids"]]

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Rows of exactly `context` tokens but for the last."""
        ids = [token for document in self.documents(examples) for token in document]
        pieces = [ids[start : start + self.context] for start in range(0, len(ids), self.context)]
        return [{"input_ids": piece, "labels": piece} for piece in pieces if len(piece) > 1]


class TextClassification(Task):
    """One label for a text, which is cut where it is longer than the context."""

    model_class = "AutoModelForSequenceClassification"
    columns = ("text", "label")
    pipeline = "text-classification"

    @staticmethod
    def check(example: Example) -> None:
        """A text and a label."""
        _check_text(example, "text")
        _check_label(example["label"], "label")

    @staticmethod
    def label_names(examples: Sequence[Example]) -> list[str]:
        """The labels, in the order of numbers where all are numbers, else of the alphabet."""
        names = {str(example["label"]) for example in examples}
        return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """A row for each text."""
        texts = [example["text"] for example in examples]
        ids = self.tokenizer(texts, truncation=True, max_length=self.context)["input_ids"]
        found = [self._label_id(str(example["label"]), index) for index, example in enumerate(examples)]
        return [{"input_ids": row, "labels": label} for row, label in zip(ids, found, strict=True)]

    def metrics(self, examples: Sequence[Example]) -> Callable[[Any], dict[str, float]]:
        """The share of labels that are right."""
        return lambda found: {"accuracy": float((np.argmax(found.predictions, -1) == found.label_ids).mean())}


class TokenClassification(Task):
    """A tag for each word, learnt at the word's first token."""

    model_class = "AutoModelForTokenClassification"
    columns = ("tokens", "tags")
    pipeline = "token-classification"

    @staticmethod
    def check(example: Example) -> None:
        """Words, and a tag for each."""
        words, tags = example["tokens"], example["tags"]
        for name, value in (("tokens", words), ("tags", tags)):
            if not isinstance(value, list):
                raise OptionError(f"{name} is {shown(value)}; expected a list with an entry for each word")
        if not words:
            raise OptionError("there is no word; leave the record out")
        if len(words) != len(tags):
            raise OptionError(f"{counted(len(words), 'word')}, and {counted(len(tags), 'tag')}; give each word one")
        for number, (word, tag) in enumerate(zip(words, tags, strict=True), start=1):
            if not isinstance(word, str):
                raise OptionError(f"word {number} is {shown(word)}; expected a text")
            _check_label(tag, f"tag {number}")

    @staticmethod
    def label_names(examples: Sequence[Example]) -> list[str]:
        """The tags, "O" first."""
        names = {str(tag) for example in examples for tag in example["tags"]}
        return sorted(names, key=lambda name: (name != "O", name))

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """A row for each sentence, which is cut where it is longer than the context."""
        return [
            self._row(example["tokens"], [self._label_id(str(tag), index) for tag in example["tags"]])
            for index, example in enumerate(examples)
        ]

    def _row(self, words: list[str], tags: list[int]) -> Row:
        encoded = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.context)
        of_tokens = encoded.word_ids()
        starts = [
            word is not None and word != before for before, word in zip([None, *of_tokens], of_tokens, strict=False)
        ]
        pairs = zip(of_tokens, starts, strict=True)
        labels = [tags[word] if start else IGNORE for word, start in pairs]
        return {"input_ids": encoded["input_ids"], "labels": labels}

    def metrics(self, examples: Sequence[Example]) -> Callable[[Any], dict[str, float]]:
        """Precision, recall and F1 of whole entities, and the share of tags that are right."""

        def compute(found: Any) -> dict[str, float]:
            pairs = zip(np.argmax(found.predictions, -1), found.label_ids, strict=True)
            kept = [(guess[gold != IGNORE], gold[gold != IGNORE]) for guess, gold in pairs]
            guesses, golds = ([[self.labels[tag] for tag in row] for row in side] for side in zip(*kept, strict=True))
            right = np.concatenate([guess == gold for guess, gold in kept])
            return {**entity_scores(guesses, golds), "accuracy": float(right.mean())}

        return compute


class QuestionAnswering(Task):
    """First and last token of an answer in a context, which is split with an overlap where it is too long."""

    model_class = "AutoModelForQuestionAnswering"
    columns = ("question", "context", "answers")
    pipeline = "question-answering"

    @staticmethod
    def check(example: Example) -> None:
        """A question, a context and the places of answers in it."""
        _check_text(example, "question")
        _check_text(example, "context")
        check_answers(example["answers"], example["context"])

    @staticmethod
    def doubt(example: Example) -> str:
        """The first answer that is learnt as another text, since it does not stand where it should."""
        for text, start in zip(*(example["answers"][name] for name in ("text", "answer_start")), strict=True):
            found = example["context"][start : start + len(text)]
            if found != text:
                return f"answer {shown(text)} does not stand at character {start}, where the context has {shown(found)}"
        return ""

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """A row for each piece of a context; a piece without the answer has it at position 0."""
        encoded = self._encoded(examples)
        rows = []
        for ids, piece in zip(encoded["input_ids"], pieces_of(encoded), strict=True):
            start, end = answer_tokens(examples[piece.example]["answers"], piece)
            rows.append({"input_ids": ids, "start_positions": start, "end_positions": end})
        return rows

    def metrics(self, examples: Sequence[Example]) -> Callable[[Any], dict[str, float]]:
        """Exact match and F1 of the likeliest answers, as SQuAD counts them."""
        pieces, contexts = pieces_of(self._encoded(examples)), [example["context"] for example in examples]
        answers = [example["answers"]["text"] for example in examples]

        def compute(found: Any) -> dict[str, float]:
            starts, ends = found.predictions
            guesses = best_answers(pieces, starts, ends, contexts, may_be_none=not all(answers))
            return mean_scores(guesses, answers)

        return compute

    def _encoded(self, examples: Sequence[Example]) -> Any:
        questions = [example["question"].strip() for example in examples]
        contexts = [example["context"] for example in examples]
        stride = self.context // 4
        room = self.context - stride - self.tokenizer.num_special_tokens_to_add(pair=True)
        for index, ids in enumerate(self.tokenizer(questions, verbose=False)["input_ids"]):
            if len(ids) >= room and not self._fits(questions[index], contexts[index]):
                raise _refused(
                    index,
                    f"the question has {len(ids)} tokens, and {room - 1} leave room for a part of the context in "
                    f"{self.context}; shorten it",
                )
        return self.tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=self.context,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def _fits(self, question: str, context: str) -> bool:
        return len(self.tokenizer(question, context, verbose=False)["input_ids"]) <= self.context


def _refused(index: int, message: str) -> OptionError:
    """An error of the example with a number from 0."""
    error = OptionError(message)
    error.index = index
    return error


def _check_text(example: Example, name: str, may_be_empty: bool = False) -> None:
    text = example[name]
    if not isinstance(text, str):
        raise OptionError(f"the {name} is {shown(text)}; expected a text")
    if not (may_be_empty or text.strip()):
        raise OptionError(f"the {name} is empty; leave the record out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"the {name} holds half of a character, \\u{ord(text[error.start]):04x}, at {error.start}; repair it"
        ) from error


def _check_label(label: Any, name: str) -> None:
    if not isinstance(label, (str, int, float)) or label == "":
        raise OptionError(f"{name} is {shown(label)}; expected a text or a number")


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities of a sentence in the scheme B-, I-, O: (kind, first word, word after the last).

    "I-" after another kind, or after "O", begins an entity, as conlleval counts.
    """
    found, kind, first = set(), "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.add((kind, first, place))
            kind = ""
        if prefix in ("B", "I") and not kind:
            kind, first = name, place
    return found


def entity_scores(guesses: Sequence[Sequence[str]], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities over all sentences."""
    right = guessed = true = 0
    for guess, gold in zip(guesses, golds, strict=True):
        one, other = entities(guess), entities(gold)
        right, guessed, true = right + len(one & other), guessed + len(one), true + len(other)
    precision, recall = right / max(guessed, 1), right / max(true, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * right / max(guessed + true, 1)}


TASKS: dict[str, type[Task]] = {
    "lm": LanguageModeling,
    "classify": TextClassification,
    "tokens": TokenClassification,
    "qa": QuestionAnswering,
}
