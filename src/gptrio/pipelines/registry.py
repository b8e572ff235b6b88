"""`PIPELINE_REGISTRY`: tasks of one's own beside those of the package."""

from __future__ import annotations

from typing import Any

from gptrio.pipelines.tasks import ALIASES, TASKS, Task, find_task, known_tasks
from gptrio.utils import logging

_log = logging.get_logger(__name__)


class PipelineRegistry:
    """The table of tasks, to which `register_pipeline` adds rows."""

    supported_tasks = TASKS
    task_aliases = ALIASES

    def get_supported_tasks(self) -> list[str]:
        """Names and aliases of all tasks, sorted."""
        return known_tasks()

    def check_task(self, task: str) -> tuple[str, Task, None]:
        """The full name of a task and what the table has for it.

        Raises:
            UnknownTaskError: there is no such task.
        """
        return *find_task(task), None

    def register_pipeline(
        self,
        task: str,
        pipeline_class: type,
        pt_model: Any = None,
        tf_model: Any = None,
        default: dict[str, Any] | None = None,
        type: str | None = None,
    ) -> None:
        """Add a task, so that `pipeline(task, model)` builds a class of one's own.

        Args:
            task: its name.
            pipeline_class: a subclass of `Pipeline`.
            pt_model: an auto class or a model class that loads the model, or several, of which the first is taken.
            tf_model: accepted and ignored.
            default: {"pt": (name of a model, revision)}, the model that is loaded if none is named.
            type: of the inputs, such as "text" or "multimodal"; kept for code that reads it.
        """
        if task in TASKS:
            _log.warning("%s is registered already and is replaced", task)
        models = pt_model if isinstance(pt_model, tuple) else () if pt_model is None else (pt_model,)
        named = (default or {}).get("model", default or {}).get("pt")
        name, revision = named if isinstance(named, tuple) else (named, "main")
        TASKS[task] = Task("", "", "AutoModel", (), name, revision, pipeline_class, models, type)

    def to_dict(self) -> dict[str, Task]:
        """The table."""
        return TASKS


PIPELINE_REGISTRY = PipelineRegistry()
get_supported_tasks, check_task = PIPELINE_REGISTRY.get_supported_tasks, PIPELINE_REGISTRY.check_task
