"""`AutoTokenizer`: the tokenizer class that a checkpoint's files name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from gptrio.config.auto import OWN_CONFIGS
from gptrio.errors import CheckpointNotFoundError, TokenizationError, UnsupportedError
from gptrio.hub import HubOptions, local_folder, refuse_code
from gptrio.tokenization.base import PreTrainedTokenizerBase
from gptrio.tokenization.fast import PreTrainedTokenizerFast
from gptrio.tokenization.files import GENERIC_CLASSES, TOKENIZER_CONFIG_FILE
from gptrio.tokenization.gpt2 import GPT2Tokenizer, GPT2TokenizerFast
from gptrio.tokenization.gpt_neox import GPTNeoXTokenizerFast
from gptrio.tokenization.vocabulary import read_object

TokenizerClass = type[PreTrainedTokenizerBase]
Classes = tuple[TokenizerClass | None, TokenizerClass | None]

# model type -> its configuration class, and (class in Python, fast class)
_CONFIGS: dict[str, Any] = dict(OWN_CONFIGS)
_CLASSES: dict[str, Classes] = {
    "gpt2": (GPT2Tokenizer, GPT2TokenizerFast),
    "gpt_neo": (GPT2Tokenizer, GPT2TokenizerFast),
    "gpt_neox": (None, GPTNeoXTokenizerFast),
}


class AutoTokenizer:
    """Chooses the tokenizer class; use `AutoTokenizer.from_pretrained`."""

    def __init__(self) -> None:
        raise UnsupportedError("AutoTokenizer is not instantiated itself; call AutoTokenizer.from_pretrained(...)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        use_fast: bool = True,
        tokenizer_type: str | None = None,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load the tokenizer of a checkpoint with the class that its files name.

        The class comes from `tokenizer_type`, else from `tokenizer_config.json`, else from `config` or `config.json`.

        Args:
            pretrained_model_name_or_path: folder, packaged model or hub id.
            use_fast: take the fast class where there is one.
            tokenizer_type: a model type, such as "gpt2", in place of the one that the files name.
            config: configuration of the model.
            **kwargs: as for the class's `from_pretrained`.

        Raises:
            UnsupportedError: a class or family that gptrio does not have, or trust in code that the checkpoint has.
        """
        if tokenizer_type is None:
            hub = HubOptions.pop_from(dict(kwargs))
            content, hub = _read(pretrained_model_name_or_path, TOKENIZER_CONFIG_FILE, hub)
            pair, hub = _named_classes(pretrained_model_name_or_path, content, config, hub)
            # the class reads its other files from the same commit, and this one not again
            kwargs |= {"revision": hub.revision, "_tokenizer_config": content}
        else:
            pair = _classes_of_model(tokenizer_type)
        slow, fast = pair
        chosen = (fast or slow) if use_fast else (slow or fast)
        assert chosen is not None, "no row of the table is empty"
        return chosen.from_pretrained(pretrained_model_name_or_path, **kwargs)

    @staticmethod
    def register(
        config_class: Any,
        slow_tokenizer_class: TokenizerClass | None = None,
        fast_tokenizer_class: TokenizerClass | None = None,
        exist_ok: bool = False,
    ) -> None:
        """Make tokenizer classes known for a configuration class (by its `model_type`).

        They replace classes that were registered before; a call with one of the two leaves the other as it is.

        Raises:
            UnsupportedError: no class given, a slow one in place of a fast one or the other way round, or the model
                type is of a family of gptrio's (unless `exist_ok`).
        """
        if slow_tokenizer_class is None and fast_tokenizer_class is None:
            raise UnsupportedError("nothing to register: give slow_tokenizer_class or fast_tokenizer_class")
        for given, is_fast in ((slow_tokenizer_class, False), (fast_tokenizer_class, True)):
            if given is not None and given.is_fast != is_fast:
                raise UnsupportedError(
                    f"{given.__name__} is {'not ' * is_fast}a fast tokenizer; swap the two arguments"
                )
        model_type = config_class.model_type
        if config_class in OWN_CONFIGS.values() and not exist_ok:
            raise UnsupportedError(f"model type {model_type!r} has tokenizers already; exist_ok=True replaces them")
        slow, fast = _CLASSES.get(model_type, (None, None))
        _CLASSES[model_type] = (slow_tokenizer_class or slow, fast_tokenizer_class or fast)
        _CONFIGS[model_type] = config_class


class TokenizerMapping(Mapping[Any, Classes]):
    """The tokenizer classes of each configuration class: (in Python, fast); those registered are included."""

    def __getitem__(self, config_class: Any) -> Classes:
        if config_class not in [*self]:
            raise KeyError(config_class)
        return _CLASSES[config_class.model_type]

    def __iter__(self) -> Iterator[Any]:
        return iter(_CONFIGS.values())

    def __len__(self) -> int:
        return len(_CONFIGS)

    def register(self, key: Any, value: Classes, exist_ok: bool = False) -> None:
        """Add tokenizer classes; see `AutoTokenizer.register`."""
        AutoTokenizer.register(key, *value, exist_ok=exist_ok)


TOKENIZER_MAPPING = TokenizerMapping()


def _named_classes(
    name_or_path: str | os.PathLike[str], content: dict[str, Any], config: Any, hub: HubOptions
) -> tuple[Classes, HubOptions]:
    """Classes that the tokenizer's configuration names, else the model's; and options to find more of its files."""
    name = content.get("tokenizer_class")
    if name is None:
        model, hub = _read(name_or_path, "config.json", hub) if config is None else (config.to_dict(), hub)
        name = model.get("tokenizer_class")
        if name is None and not model.get("model_type"):
            if config is None and local_folder(name_or_path) is None:
                hub.locate(name_or_path, "config.json")  # a cache without the model is told so, with the way out
            raise CheckpointNotFoundError(
                f"no tokenizer found for {str(name_or_path)!r}: expected a tokenizer_config.json with tokenizer_class "
                "or a config.json with model_type; or call the tokenizer's own class"
            )
        if name is None:
            return _classes_of_model(model["model_type"]), hub
    return _classes_by_name(name), hub


def _read(name_or_path: str | os.PathLike[str], file: str, hub: HubOptions) -> tuple[dict[str, Any], HubOptions]:
    """Content of a JSON file, empty if there is none, and the lookup options for more files of its commit."""
    path = hub.find(name_or_path, file)
    content = read_object(path)
    refuse_code(hub.trust_remote_code, content, file)
    return content, hub if path is None else hub.pinned_to(path)


def _classes_by_name(name: str) -> Classes:
    if not isinstance(name, str):
        raise TokenizationError(f"tokenizer_class is {name!r}; expected the name of a class")
    base = name.removesuffix("Fast")
    if base in GENERIC_CLASSES:
        return None, PreTrainedTokenizerFast
    for classes in _CLASSES.values():
        if base in [cls.__name__.removesuffix("Fast") for cls in classes if cls is not None]:
            return classes
    known = sorted({cls.__name__ for classes in _CLASSES.values() for cls in classes if cls is not None})
    raise UnsupportedError(f"the checkpoint uses tokenizer class {name!r}; gptrio has {', '.join(known)}")


def _classes_of_model(model_type: str) -> Classes:
    if not isinstance(model_type, str) or model_type not in _CLASSES:
        known = ", ".join(sorted(_CLASSES))
        raise UnsupportedError(f"model type {model_type!r} is not one of gptrio's: {known}")
    return _CLASSES[model_type]
