"""`TrainingArguments`: everything that a training run can be told, with the names and defaults of Transformers 4.56."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, cast

from gptrio.errors import UnknownOptionError, nearest
from gptrio.training.accelerator_config import AcceleratorConfig
from gptrio.training.arguments_checks import check_arguments
from gptrio.training.arguments_lists import deprecated
from gptrio.training.arguments_setters import ArgumentSetters

if TYPE_CHECKING:
    from gptrio.training.enums import IntervalStrategy


class _ArgumentsType(type):
    """Looks at the names of arguments before the class, or one derived from it, is called."""

    if not TYPE_CHECKING:  # type checkers read the fields

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            for old, new in vars(TrainingArguments)["_OLD_NAMES"].items():
                if old in kwargs:
                    deprecated(old, new)
                    kwargs[new] = kwargs.pop(old)
            known = cls.__signature__.parameters
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
                for name in kwargs:
                    if name not in known:
                        hint = nearest(name, known) or "those that there are: inspect.signature(TrainingArguments)"
                        raise UnknownOptionError(f"{cls.__name__} has no argument {name!r}; {hint}")
            return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        """Signature of the class's own `__init__`, which `inspect.signature` returns."""
        signature = inspect.signature(cast(Any, cls).__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


@dataclasses.dataclass(repr=False)
class TrainingArguments(ArgumentSetters, metaclass=_ArgumentsType):
    """What a training run is told: 131 arguments, each with a default; `output_dir` may be given by position.

    Names, defaults and types are those of Transformers 4.56; the fields' metadata holds a line of help on each.
    Deprecated names work with a DeprecationWarning; those that mean nothing here are accepted with a warning, once;
    those that ask for what there is not are refused. On construction, strategies become members of their enumerations,
    and what follows from other arguments is set. Classes derived from it by `@dataclass` add arguments of their own.

    Raises:
        UnknownOptionError: a name that there is not; the message has the nearest one.
        UnsupportedError: an argument that gptrio refuses; the message has the way out.
        OptionError: an impossible value, or two that contradict each other.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        "accelerator_config",
        "fsdp_config",
        "deepspeed",
        "gradient_checkpointing_kwargs",
        "lr_scheduler_kwargs",
    ]
    _OLD_NAMES: ClassVar[dict[str, str]] = {"evaluation_strategy": "eval_strategy"}  # of versions before 4.56
    deepspeed_plugin: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_arguments(self)

    @property
    def evaluation_strategy(self) -> IntervalStrategy | str:
        """Earlier name of `eval_strategy`."""
        deprecated("evaluation_strategy", "eval_strategy")
        return self.eval_strategy

    def __str__(self) -> str:
        values = dataclasses.asdict(self)
        shown = {name: _hidden(name, values[name]) for name in sorted(values) if not name.startswith("per_gpu_")}
        return f"{type(self).__name__}(\n" + "".join(f"{name}={value},\n" for name, value in shown.items()) + ")"

    __repr__ = __str__

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Updates in which the learning rate rises: `warmup_steps`, or else the share `warmup_ratio` of all."""
        return self.warmup_steps if self.warmup_steps > 0 else math.ceil(num_training_steps * self.warmup_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Every argument by name, with the values of enumerations; tokens are hidden."""
        names = [field.name for field in dataclasses.fields(self) if field.init]
        return {name: _hidden(name, _plain(getattr(self, name))) for name in names}

    def to_json_string(self) -> str:
        """The arguments as JSON; what JSON does not have is written as text."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """The arguments, and the batch sizes of this process, as numbers and text, for TensorBoard."""
        values = {
            **self.to_dict(),
            "train_batch_size": self.train_batch_size,
            "eval_batch_size": self.eval_batch_size,
        }
        return {name: value if type(value) in (bool, int, float, str) else str(value) for name, value in values.items()}


def _hidden(name: str, value: Any) -> Any:
    return f"<{name.upper()}>" if name.endswith("_token") else value


def _plain(value: Any) -> Any:
    """Value of a field as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list) and value and isinstance(value[0], Enum):
        return [item.value for item in value]
    if isinstance(value, AcceleratorConfig):
        return value.to_dict()
    if f"{type(value)}" == "<class 'torch.dtype'>":  # which is asked without loading torch
        return str(value).removeprefix("torch.")
    return value.to_json() if hasattr(value, "to_json") else value
