"""Strings with names: the base of the choices that options have, and those that scripts import from here."""

from __future__ import annotations

from enum import Enum
from typing import NoReturn

from gptrio.errors import UnknownNameError, nearest


class ExplicitEnum(str, Enum):
    """Strings with names; an unknown one is an UnknownNameError, which lists the known ones."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        known = [str(member.value) for member in cls]
        hint = nearest(str(value), known, before="; ")
        raise UnknownNameError(f"{value!r} is not a valid {cls.__name__}; expected one of {', '.join(known)}{hint}")


class PaddingStrategy(ExplicitEnum):
    """Values of `padding`."""

    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"


class TensorType(ExplicitEnum):
    """Values of `return_tensors`; those of TensorFlow and MLX raise an error."""

    PYTORCH = "pt"
    TENSORFLOW = "tf"
    NUMPY = "np"
    JAX = "jax"
    MLX = "mlx"
