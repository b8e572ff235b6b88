"""The options of one call: arguments of the call first, then the given config, then the model's config."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from gptrio.config.fields import check_token_ids, unknown_option
from gptrio.errors import OptionError, warn
from gptrio.foreign import GENERATION_CONFIG, content_of, is_foreign
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.schema import GENERATE_ARGUMENTS, option_types, reset_sampling

if TYPE_CHECKING:
    from gptrio.generation.protocol import CausalLM

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def merge_config(
    model: CausalLM,
    given: GenerationConfig | None,
    use_model_defaults: bool | None,
    kwargs: dict[str, Any],
    accepted: Sequence[str] | None = None,
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Return the options of this call in a new config, and the arguments of the model's forward.

    Args:
        model: its `generation_config` gives the options that neither `given` nor `kwargs` set.
        given: the caller's config, or None.
        use_model_defaults: take the model's value of every option that `given` leaves at its default.
        kwargs: options and arguments of the model's forward.
        accepted: names of arguments, if they are not those of the forward.

    Raises:
        OptionError: an unknown name, with the nearest one that exists, or an impossible value.
    """
    given, base = config_of_caller(given), _config_of(model, given is None)
    config = copy.copy(base if given is None else given)
    if given is not None:
        _fill(config, base, use_model_defaults)
    reset_sampling(config, kwargs)
    arguments = config.update(**kwargs)
    if accepted is None:
        arguments.pop("labels", None)  # of a training batch that was passed whole: no loss is computed
    names = _arguments_of(cast(Hashable, type(model))) if accepted is None else accepted
    for name in arguments:
        if name not in names:
            others = GENERATE_ARGUMENTS if accepted is None else ()
            raise unknown_option(name, sorted({*names, *option_types(), *others}), "generate()")
    for name in _TOKENS:
        if getattr(config, name, None) is not None:
            check_token_ids(name, getattr(config, name))
    return config, arguments


def config_of_caller(given: Any) -> GenerationConfig | None:
    """Return the argument `generation_config` as a config of this package; None if it is not given.

    Raises:
        OptionError: it is something else.
    """
    own = as_own_config(given)
    if own is None or isinstance(own, GenerationConfig):
        return own
    raise OptionError(f"generation_config is a {type(given).__name__}; expected a gptrio.GenerationConfig")


def as_own_config(given: Any) -> Any:
    """Return a `GenerationConfig` of Transformers as one of this package; any other object unchanged."""
    if isinstance(given, GenerationConfig) or not is_foreign(given, GENERATION_CONFIG):
        return given
    own = GenerationConfig.from_dict(content_of(given))
    return own.as_made() if getattr(given, "_original_object_hash", None) == hash(given) else own


def _config_of(model: CausalLM, obeys_model_config: bool) -> GenerationConfig:
    """Return the model's options, or newer ones of its configuration.

    Older code sets options on `model.config`. These apply while `model.generation_config`, which was made from
    `model.config`, has not been changed itself.
    """
    base: GenerationConfig = as_own_config(model.generation_config)
    if not (obeys_model_config and base._from_model_config and model.config._get_non_default_generation_parameters()):
        return base
    if not base.is_as_made:
        return base
    changed = GenerationConfig.from_model_config(model.config)
    if changed != base:
        warn(
            "options of generate were set on the model's configuration; they are obeyed, but set them on "
            "model.generation_config, or pass them to generate"
        )
        model.generation_config = changed
    return changed


def _fill(config: GenerationConfig, base: GenerationConfig, use_model_defaults: bool | None) -> None:
    """Replace options that are unset in `config` by the model's: all of them, or special tokens only."""
    if use_model_defaults is None:
        use_model_defaults = not _is_old(base)
    for name, value in vars(base).items():
        is_unset = vars(config).get(name) == getattr(GenerationConfig, name, None)
        if is_unset and not name.startswith("_") and (use_model_defaults or name in _TOKENS):
            setattr(config, name, value)
    if config.temperature == 0:  # greedy search, even if the model's own options select sampling
        config.do_sample = False


def _is_old(base: GenerationConfig) -> bool:
    """Whether a model's file is older than release 4.50, before which its values were not taken as defaults."""
    version = str(base.transformers_version or "5").split(".")
    numbers = [int(part) if part.isdigit() else 0 for part in [*version, "0"][:2]]
    return numbers < [4, 50]


@lru_cache
def _arguments_of(model_class: Hashable) -> frozenset[str]:
    """Names that a model's forward and its `prepare_inputs_for_generation` take."""
    methods = (getattr(model_class, name, None) for name in ("forward", "prepare_inputs_for_generation"))
    parameters = [each for method in methods if method for each in inspect.signature(method).parameters.values()]
    named = {item.name for item in parameters if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)}
    return frozenset(named - {"self", "labels", "return_dict", "use_cache"})
