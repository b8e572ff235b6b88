"""How a model's weights are quantized, as `config.json` stores it. Loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from gptrio.errors import OptionError
from gptrio.kernels import GROUP_SIZES


@dataclass
class Int8Config:
    """Weights of 8 bits, one scale per output; activations are quantized too if the processor supports it.

    Attributes:
        modules_to_not_convert: names (or endings of names) of layers that keep their type.
    """

    modules_to_not_convert: list[str] | None = None
    quant_method: ClassVar[str] = "gptrio_int8"

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the method's name."""
        return {"quant_method": self.quant_method, **asdict(self)}


@dataclass
class Int4Config:
    """Weights of 4 bits, one scale per group of inputs.

    A tied embedding, and layers whose inputs cannot be grouped, take 8 bits.

    Attributes:
        group_size: inputs that share a scale: 32, 64 or 128.
        modules_to_not_convert: names (or endings of names) of layers that keep their type.
    """

    group_size: int = 32
    modules_to_not_convert: list[str] | None = None
    quant_method: ClassVar[str] = "gptrio_int4"

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            offered = ", ".join(map(str, GROUP_SIZES))
            raise OptionError(f"group_size is {self.group_size!r}; Int4Config offers {offered}")

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the method's name."""
        return {"quant_method": self.quant_method, **asdict(self)}
