"""Settings of accelerate within training arguments."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

from gptrio.errors import OptionError, nearest
from gptrio.hub import read_json


@dataclass
class AcceleratorConfig:
    """How accelerate is to deal with data, with the fields of Transformers' class.

    Args:
        split_batches: split a batch over the processes, so that `per_device_train_batch_size` is that of all together.
        dispatch_batches: the first process loads the data of all.
        even_batches: repeat rows of the beginning where the last batch does not suffice for all processes.
        use_seedable_sampler: the order of the data depends on seed and epoch alone.
        non_blocking: copy batches to the GPU without waiting.
        gradient_accumulation_kwargs: for accelerate's `GradientAccumulationPlugin`.
        use_configured_state: take accelerate's state as it is set up already.
    """

    split_batches: bool = False
    dispatch_batches: bool | None = None
    even_batches: bool = True
    use_seedable_sampler: bool = True
    non_blocking: bool | None = False
    gradient_accumulation_kwargs: dict[str, Any] | None = None
    use_configured_state: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AcceleratorConfig:
        """Build settings from a dictionary.

        Raises:
            OptionError: a setting that there is not.
        """
        for name in values:
            if name not in cls.__dataclass_fields__:
                known = ", ".join(cls.__dataclass_fields__)
                hint = nearest(name, cls.__dataclass_fields__) or f"known are {known}"
                raise OptionError(f"accelerator_config has no setting {name!r}; {hint}")
        return cls(**values)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> AcceleratorConfig:
        """Read settings from a file that holds a JSON object."""
        return cls.from_dict(read_json(json_file, OptionError))

    def to_dict(self) -> dict[str, Any]:
        """Settings by name."""
        return copy.deepcopy(vars(self))

    def pop(self, key: str, default: Any = None) -> Any:
        """Remove a setting and return its value."""
        return vars(self).pop(key, default)
