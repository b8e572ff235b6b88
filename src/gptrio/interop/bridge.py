"""Transformers' classes over the same storage, for tools that need these classes, and ours over theirs."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, overload

import gptrio
from gptrio.errors import InputError, UnsupportedError, import_optional
from gptrio.foreign import MODEL, TOKENIZER, is_foreign
from gptrio.tokenization.base import PreTrainedTokenizerBase

if TYPE_CHECKING:
    import transformers

    from gptrio.models.base.pretrained import PreTrainedModel


@overload
def to_transformers(source: PreTrainedModel) -> transformers.PreTrainedModel: ...
@overload
def to_transformers(source: PreTrainedTokenizerBase) -> transformers.PreTrainedTokenizerBase: ...
def to_transformers(source: PreTrainedModel | PreTrainedTokenizerBase) -> Any:
    """Transformers' class over the storage of a model, or over the backend of a tokenizer.

    Both models have the same parameters: what trains, moves or converts one does so to the other, and nothing is
    copied. Hooks stay with the model that they were put on. A tokenizer shares its backend, so that tokens added to one
    are added to the other; a tokenizer without a backend (the one in Python) becomes a separate one.

    Args:
        source: a model of this package, plain or of bitsandbytes layers; or a tokenizer.

    Returns:
        The object of Transformers: of the class of the same name, in the same mode (training or not), with the same
        configuration and generation options. Its attention is eager where another would give other numbers.

    Raises:
        MissingDependencyError: Transformers is not installed.
        UnsupportedError: the model is quantized by this package, has adapters or parts of other classes, or is spread
            by accelerate.
        InputError: something else was given.
    """
    library = import_optional(
        "transformers",
        "the bridge returns objects of Transformers, which is not installed; pip install 'transformers>=4.56,<5'",
    )
    if isinstance(source, PreTrainedTokenizerBase):
        return _converted_tokenizer(source, "gptrio", library)
    from gptrio.interop.models import model_to_transformers
    from gptrio.models.base.pretrained import PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return model_to_transformers(source, library)
    raise InputError(f"to_transformers takes a model or tokenizer of gptrio; got {_described(source)}")


@overload
def from_transformers(source: transformers.PreTrainedModel) -> PreTrainedModel: ...
@overload
def from_transformers(source: transformers.PreTrainedTokenizerBase) -> PreTrainedTokenizerBase: ...
def from_transformers(source: Any) -> PreTrainedModel | PreTrainedTokenizerBase:
    """This package's class over the storage of a model of Transformers, or over the backend of a tokenizer.

    Args:
        source: a model of one of the three families, or a tokenizer.

    Returns:
        The object of the class of the same name; see `to_transformers` for what both share.

    Raises:
        UnsupportedError: a class that gptrio does not have, or a model with parts of other classes.
        InputError: something else was given.
    """
    if is_foreign(source, TOKENIZER):
        ours: PreTrainedTokenizerBase = _converted_tokenizer(source, "transformers", gptrio)
        return ours
    if is_foreign(source, MODEL):
        from gptrio.interop.models import model_from_transformers

        return model_from_transformers(source)
    raise InputError(f"from_transformers takes a model or tokenizer of Transformers; got {_described(source)}")


def _converted_tokenizer(tokenizer: Any, package: str, library: Any) -> Any:
    """The class of the same name in `library`, made from the files of a tokenizer of `package`, over its backend."""
    names = [base.__name__ for base in type(tokenizer).__mro__ if base.__module__.partition(".")[0] == package]
    name = next((name for name in names if hasattr(library, name)), None)
    if name is None:
        raise UnsupportedError(f"{library.__name__} has no class like {type(tokenizer).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        other = getattr(library, name).from_pretrained(folder)
    other.name_or_path = other.init_kwargs["name_or_path"] = tokenizer.name_or_path
    if tokenizer.is_fast:
        other._tokenizer = tokenizer._tokenizer
    return other


def _described(source: object) -> str:
    wrapped = ", which PEFT has wrapped; merge_and_unload() gives a plain model" * hasattr(source, "merge_and_unload")
    return f"{type(source).__name__}{wrapped}"
