"""The options of bitsandbytes under the names that Transformers gave them. Loads torch only when an object is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gptrio.errors import OptionError, OptionTypeError, warn

if TYPE_CHECKING:
    import torch

_STORAGES = ("float16", "float32", "int8", "uint8", "float64", "bfloat16")


class BitsAndBytesConfig:
    """Weights in 4 bits (nf4 or fp4), or LLM.int8() (Dettmers et al., 2022), by the bitsandbytes library."""

    quant_method = "bitsandbytes"

    def __init__(
        self,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: list[str] | None = None,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False,
        bnb_4bit_compute_dtype: torch.dtype | str | None = None,
        bnb_4bit_quant_type: str = "fp4",
        bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Choose a method and its options.

        Args:
            load_in_8bit: LLM.int8(), with outliers of the activations in 16 bit.
            load_in_4bit: 4 bits, in blocks with a scale each.
            llm_int8_threshold: activations beyond it are outliers.
            llm_int8_skip_modules: names of layers that keep their type, beside tied heads; the heads by default.
            llm_int8_enable_fp32_cpu_offload: layers that a device map puts on the CPU keep their type.
            llm_int8_has_fp16_weight: keep 16-bit weights and quantize them in each forward.
            bnb_4bit_compute_dtype: type that products are computed in; float32 if None.
            bnb_4bit_quant_type: "fp4" or "nf4".
            bnb_4bit_use_double_quant: quantize the scales too.
            bnb_4bit_quant_storage: type that the packed codes are stored as; uint8 if None.
            kwargs: other keys of a configuration file; a warning names those without effect.

        Raises:
            OptionError: values that are not possible, or that contradict each other.
            OptionTypeError: values of a wrong type.
        """
        self._load_in_8bit = self._load_in_4bit = False
        self.load_in_8bit, self.load_in_4bit = load_in_8bit, load_in_4bit
        flags = {
            "llm_int8_enable_fp32_cpu_offload": llm_int8_enable_fp32_cpu_offload,
            "llm_int8_has_fp16_weight": llm_int8_has_fp16_weight,
            "bnb_4bit_use_double_quant": bnb_4bit_use_double_quant,
        }
        for name, value in flags.items():
            _check_flag(name, value)
        if not isinstance(llm_int8_threshold, (int, float)) or isinstance(llm_int8_threshold, bool):
            raise OptionTypeError(f"llm_int8_threshold is {llm_int8_threshold!r}; expected a number")
        if llm_int8_skip_modules is not None and not isinstance(llm_int8_skip_modules, list):
            raise OptionTypeError(f"llm_int8_skip_modules is {llm_int8_skip_modules!r}; expected a list of names")
        if bnb_4bit_quant_type not in ("fp4", "nf4"):
            kind = OptionError if isinstance(bnb_4bit_quant_type, str) else OptionTypeError
            raise kind(f"bnb_4bit_quant_type is {bnb_4bit_quant_type!r}; expected 'fp4' or 'nf4'")
        self.llm_int8_threshold = float(llm_int8_threshold)
        self.llm_int8_skip_modules = llm_int8_skip_modules
        self.llm_int8_enable_fp32_cpu_offload = llm_int8_enable_fp32_cpu_offload
        self.llm_int8_has_fp16_weight = llm_int8_has_fp16_weight
        self.bnb_4bit_quant_type = bnb_4bit_quant_type
        self.bnb_4bit_use_double_quant = bnb_4bit_use_double_quant
        self.bnb_4bit_compute_dtype = _dtype("bnb_4bit_compute_dtype", bnb_4bit_compute_dtype or "float32")
        self.bnb_4bit_quant_storage = _dtype("bnb_4bit_quant_storage", bnb_4bit_quant_storage or "uint8", _STORAGES)
        unknown = sorted(name for name in kwargs if name not in ("quant_method", "_load_in_8bit", "_load_in_4bit"))
        if unknown:
            warn(f"BitsAndBytesConfig ignores {', '.join(unknown)}; see its documented options")

    @property
    def load_in_8bit(self) -> bool:
        """LLM.int8(); setting it raises OptionError where `load_in_4bit` is True, OptionTypeError for no bool."""
        return self._load_in_8bit

    @load_in_8bit.setter
    def load_in_8bit(self, value: bool) -> None:
        self._load_in_8bit = _check_flag("load_in_8bit", value, self._load_in_4bit)

    @property
    def load_in_4bit(self) -> bool:
        """4 bits; setting it raises OptionError where `load_in_8bit` is True, OptionTypeError for no bool."""
        return self._load_in_4bit

    @load_in_4bit.setter
    def load_in_4bit(self, value: bool) -> None:
        self._load_in_4bit = _check_flag("load_in_4bit", value, self._load_in_8bit)

    def is_quantizable(self) -> bool:
        """Whether a method is chosen."""
        return self.load_in_8bit or self.load_in_4bit

    def quantization_method(self) -> str | None:
        """ "llm_int8", "fp4", "nf4" or None."""
        if self.load_in_8bit:
            return "llm_int8"
        return self.bnb_4bit_quant_type if self.load_in_4bit else None

    def to_dict(self) -> dict[str, Any]:
        """All fields and the method's name, as `config.json` holds them."""
        fields = {"quant_method": self.quant_method, **self.__dict__}
        for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
            fields[name] = str(fields[name]).removeprefix("torch.")
        return {**fields, "load_in_4bit": self.load_in_4bit, "load_in_8bit": self.load_in_8bit}

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that differ from the defaults."""
        defaults = BitsAndBytesConfig().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """JSON of the fields, by default of those that differ from the defaults."""
        return json.dumps(self.to_diff_dict() if use_diff else self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> BitsAndBytesConfig:
        """The configuration that a dictionary describes, with overrides."""
        return cls(**{**config_dict, **kwargs})

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string(use_diff=False)}"


def _check_flag(name: str, value: bool, other: bool = False) -> bool:
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name} is {value!r}; expected True or False")
    if value and other:
        raise OptionError("load_in_8bit and load_in_4bit are both True; choose one")
    return value


def _dtype(name: str, value: torch.dtype | str, offered: tuple[str, ...] | None = None) -> torch.dtype:
    import torch

    found = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or (offered and str(found).removeprefix("torch.") not in offered):
        raise OptionError(f"{name} is {value!r}; expected {'one of ' + ', '.join(offered) if offered else 'a dtype'}")
    return found
