"""Arguments of Transformers' `from_pretrained` that have no effect here, or need something that gptrio lacks."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterable
from typing import Any

from gptrio.errors import OptionError, UnsupportedError

# arguments that have no effect, whatever their value
_WITHOUT_EFFECT = (
    "_commit_hash",
    "_fast_init",
    "_from_auto",
    "_from_pipeline",
    "code_revision",  # no code of a checkpoint is run
    "low_cpu_mem_usage",  # memory use is always low
    "mirror",
    "offload_state_dict",  # tensors are never gathered before they are placed
    "resume_download",
    "weights_only",  # torch files are always read without running their code
)
# name -> the other value without effect than None, and what to do instead
_UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "from_tf": (False, "convert the TensorFlow weights with Transformers' from_tf=True and save_pretrained"),
    "gguf_file": (None, "load the model's safetensors, or convert the file with Transformers and save_pretrained"),
    "tp_plan": (None, "leave it out; device_map spreads a model over several devices"),
    "tp_size": (None, "leave it out; device_map spreads a model over several devices"),
    "device_mesh": (None, "leave it out; device_map spreads a model over several devices"),
    "distributed_config": (None, "leave it out; device_map spreads a model over several devices"),
    "use_kernels": (False, "leave it out; gptrio runs its own kernels where they are the fastest"),
    "proxies": ({}, "leave it out and set the environment variable HTTPS_PROXY"),
}


def drop_arguments_without_effect(class_name: str, kwargs: dict[str, Any]) -> None:
    """Remove the arguments from `kwargs` that Transformers has and that have no effect here.

    Args:
        class_name: the model's class, for the message.
        kwargs: of `from_pretrained`.

    Raises:
        UnsupportedError: the value of one needs something that gptrio lacks.
    """
    for name in _WITHOUT_EFFECT:
        kwargs.pop(name, None)
    for name, (nothing, way_out) in _UNSUPPORTED.items():
        value = kwargs.pop(name, None)
        if value is not None and value != nothing:
            raise UnsupportedError(f"{class_name}.from_pretrained does not support {name}={value!r}; {way_out}")


def check_constructor_takes(cls: type, names: Iterable[str]) -> None:
    """Raise OptionError for arguments of `from_pretrained` that a class's constructor does not take, either."""
    parameters = inspect.signature(cls).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_all:
        refuse_unknown(cls, names, parameters)


def refuse_unknown(cls: type, names: Iterable[str], known: Container[str]) -> None:
    """Raise OptionError for arguments of `from_pretrained` that are not among the known ones."""
    unknown = [name for name in sorted(names) if name not in known]
    if unknown:
        raise OptionError(
            f"{cls.__name__}.from_pretrained does not know {', '.join(unknown)}; expected its own arguments, "
            "lookup options, configuration keys or arguments of the class"
        )
