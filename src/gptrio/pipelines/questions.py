"""Questions about texts, in every form in which they can be asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset

from gptrio.errors import InputError
from gptrio.pipelines.base import ArgumentHandler
from gptrio.pipelines.results import is_column
from gptrio.tokenization.encoding import short


@dataclass
class SquadExample:
    """A question about a text, with what data sets know about its answer.

    Args:
        qas_id: its number in a data set.
        question_text: the question.
        context_text: the text with the answer.
        answer_text, start_position_character: the answer, and where it starts.
        title: of the text.
        answers: all known answers.
        is_impossible: the text has no answer.
    """

    qas_id: str | None
    question_text: str
    context_text: str
    answer_text: str | None = None
    start_position_character: int | None = None
    title: str | None = None
    answers: list[Any] = field(default_factory=list)
    is_impossible: bool = False


class QuestionAnsweringArgumentHandler(ArgumentHandler):
    """Questions, in every form in which they can be asked, as examples."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A list of examples; generators and datasets unchanged.

        Raises:
            InputError: there is no question, or one of another form.
        """
        if len(args) == 2 and all(isinstance(text, str) for text in args):
            given: Any = {"question": args[0], "context": args[1]}
        elif args:
            given = args[0] if len(args) == 1 else list(args)
        elif "X" in kwargs or "data" in kwargs:
            given = kwargs["X"] if "X" in kwargs else kwargs["data"]
        elif {"question", "context"} <= kwargs.keys():
            given = _pairs(kwargs["question"], kwargs["context"])
        else:
            raise InputError("question answering needs a question and a context; pass question=... and context=...")
        if isinstance(given, (GeneratorType, Dataset)) or is_column(given):
            return given
        if isinstance(given, Mapping) or hasattr(given, "question_text"):
            return [self.normalize(given)]
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise InputError(
                f"the input is {short(given)}; expected a dict with 'question' and 'context', or a list of them"
            )
        return [self.normalize(item) for item in given]

    def normalize(self, item: Any) -> Any:
        """A checked example of a dictionary or an example.

        Raises:
            InputError: it is neither, or a text is missing.
        """
        if hasattr(item, "question_text"):
            return item
        if not isinstance(item, Mapping):
            raise InputError(
                f"the input is {short(item)}; expected a dict with 'question' and 'context', or a SquadExample"
            )
        for name in ("question", "context"):
            if not isinstance(item.get(name), str) or not item[name]:
                raise InputError(f"{name} is {short(item.get(name))}; expected a text that is not empty")
        return SquadExample(None, item["question"], item["context"])


def _pairs(questions: Any, contexts: Any) -> list[dict[str, Any]]:
    if isinstance(questions, str) and isinstance(contexts, str):
        questions, contexts = [questions], [contexts]
    if isinstance(questions, list) and isinstance(contexts, str):
        contexts = [contexts] * len(questions)
    if not isinstance(questions, list) or not isinstance(contexts, list):
        raise InputError(
            f"question is {short(questions)} and context {short(contexts)}; expected two texts, two lists, or a list "
            "of questions about one text"
        )
    if len(questions) != len(contexts):
        raise InputError(f"there are {len(questions)} questions and {len(contexts)} contexts; expected as many of both")
    return [{"question": question, "context": context} for question, context in zip(questions, contexts, strict=True)]
