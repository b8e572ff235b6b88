"""The table of tasks: which pipeline and which model class each one has. A new task is a new row."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptrio.errors import InputError, OptionError, UnknownTaskError, nearest


@dataclass(frozen=True)
class Task(Mapping[str, Any]):
    """What `pipeline` needs to know about a task; as a mapping, under the names that Transformers has for it.

    Attributes:
        module, pipeline: where the pipeline's class is, and its name.
        auto_class: loads the model.
        heads: ends of the names of model classes that are made for the task; none if every model will do.
        default_model, default_revision: loaded if no model is named.
        own_pipeline, own_models: classes of others, in place of those that are named; the first model class loads.
        kind: of the inputs, for code that reads it.
    """

    module: str
    pipeline: str
    auto_class: str
    heads: tuple[str, ...]
    default_model: str | None = None
    default_revision: str = "main"
    own_pipeline: Any = None
    own_models: tuple[Any, ...] = ()
    kind: str | None = "text"

    def pipeline_class(self) -> Any:
        """The class of the pipeline."""
        if self.own_pipeline is not None:
            return self.own_pipeline
        return getattr(importlib.import_module(f"gptrio.pipelines.{self.module}"), self.pipeline)

    def model_class(self) -> Any:
        """The class that loads the model."""
        if self.own_models:
            return self.own_models[0]
        return getattr(importlib.import_module("gptrio.models.auto"), self.auto_class)

    def __getitem__(self, name: str) -> Any:
        return self._columns()[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns())

    def __len__(self) -> int:
        return len(self._columns())

    def _columns(self) -> dict[str, Callable[[], Any]]:
        """What gives the value of each name."""
        columns: dict[str, Callable[[], Any]] = {"impl": self.pipeline_class, "tf": tuple, "type": lambda: self.kind}
        columns["pt"] = lambda: self.own_models or (self.model_class(),)
        if self.default_model is not None:
            columns["default"] = lambda: {"model": {"pt": (self.default_model, self.default_revision)}}
        return columns


TASKS: dict[str, Task] = {
    "text-generation": Task(
        "text_generation",
        "TextGenerationPipeline",
        "AutoModelForCausalLM",
        ("LMHeadModel", "ForCausalLM"),
        "openai-community/gpt2",
    ),
    "text-classification": Task(
        "text_classification",
        "TextClassificationPipeline",
        "AutoModelForSequenceClassification",
        ("ForSequenceClassification",),
    ),
    "zero-shot-classification": Task(
        "zero_shot_classification",
        "ZeroShotClassificationPipeline",
        "AutoModelForSequenceClassification",
        ("ForSequenceClassification",),
    ),
    "feature-extraction": Task("feature_extraction", "FeatureExtractionPipeline", "AutoModel", ()),
    "token-classification": Task(
        "token_classification",
        "TokenClassificationPipeline",
        "AutoModelForTokenClassification",
        ("ForTokenClassification",),
    ),
    "question-answering": Task(
        "question_answering",
        "QuestionAnsweringPipeline",
        "AutoModelForQuestionAnswering",
        ("ForQuestionAnswering",),
    ),
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}

# end of the name of a model class -> the task that is inferred from it; the first that fits
_INFERRED = {
    "LMHeadModel": "text-generation",
    "DoubleHeadsModel": "text-generation",
    "ForCausalLM": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "feature-extraction",
}


def known_tasks() -> list[str]:
    """Names and aliases of all tasks, sorted."""
    return sorted([*TASKS, *ALIASES])


def find_task(name: str) -> tuple[str, Task]:
    """A task by its name or alias, and its full name.

    Raises:
        UnknownTaskError: there is no such task.
    """
    full = ALIASES.get(name, name)
    if full not in TASKS:
        hint = nearest(str(name), known_tasks())
        raise UnknownTaskError(
            f"unknown task {name!r}; {hint + ' ' if hint else ''}available tasks are {known_tasks()}"
        )
    return full, TASKS[full]


def infer_task(class_names: list[str], model: Any) -> str:
    """The task that a model was made for, by the names of its classes.

    Raises:
        OptionError: none of the names is known.
    """
    task = next((_task_of(name) for name in class_names if _task_of(name)), None)
    if task is None:
        raise OptionError(
            f"the task of {model!r} cannot be inferred from its architectures {class_names}; pass task=, one of "
            f"{sorted(TASKS)}"
        )
    return task


def check_heads(task: str, class_names: list[str], model: Any) -> None:
    """Refuse a model whose head was made for another task.

    A language model or a backbone may stand in for any task: its missing head is made anew, with a warning.

    Raises:
        InputError: the model has another head.
    """
    heads = TASKS[task].heads
    if not heads or not class_names or any(name.endswith(heads) for name in class_names):
        return
    other = _task_of(class_names[0])
    if other in ("text-classification", "token-classification", "question-answering"):
        raise InputError(
            f"{model!r} is a {class_names[0]}, made for task={other!r}, and has no head for task={task!r}, which needs "
            f"a class whose name ends in {' or '.join(heads)}; pass task={other!r}, or another model"
        )


def _task_of(class_name: str) -> str | None:
    return next((task for end, task in _INFERRED.items() if class_name.endswith(end)), None)
