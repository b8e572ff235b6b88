"""What pipelines that call `generate` share: their options, and an assistant model."""

from __future__ import annotations

from typing import Any

from gptrio.errors import OptionError
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.resolve import merge_config
from gptrio.generation.options.schema import option_types, reset_sampling
from gptrio.models.auto import AutoModelForCausalLM
from gptrio.tokenization.auto import AutoTokenizer


def pipeline_options(
    model: Any, tokenizer: Any, task: str, default: GenerationConfig, kwargs: dict[str, Any]
) -> tuple[GenerationConfig, str | None, set[str]]:
    """Options of `generate` for a pipeline.

    Options in `kwargs` win over the model's `generation_config`, which wins over the default, and the values that the
    model's configuration has for the task win over all of them.

    Args:
        model: a model with `generate`.
        tokenizer: its `pad_token_id` is used if the model has none.
        task: name of the task.
        default: options of the pipeline.
        kwargs: arguments of the pipeline, from which the options are taken.

    Returns:
        The options, the prefix of prompts if the model's configuration has one, and the names of the options that
        the caller set to their defaults: the model's values must not replace these.
    """
    given = {name: kwargs.pop(name) for name in list(kwargs) if name in option_types()}
    config, _ = merge_config(model, default, True, given)
    length = config.max_length
    if config.max_new_tokens == default.max_new_tokens and length not in (None, GenerationConfig.max_length):
        config.max_new_tokens = None  # the model, or the caller, limits the length already
    prefix = getattr(model.config, "prefix", None)
    of_task = dict((model.config.task_specific_params or {}).get(task) or {})
    prefix = of_task.pop("prefix", prefix)
    reset_sampling(config, of_task)
    config.update(**of_task)
    if config.pad_token_id is None:
        config.pad_token_id = getattr(tokenizer, "pad_token_id", None)
    kept = {name for name in given if getattr(config, name) == getattr(GenerationConfig, name, None)}
    return config, prefix, kept


def load_assistant(model: Any, assistant: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model that drafts tokens, loaded if it is a name, and its tokenizer if it has another vocabulary.

    Args:
        model: the model that checks the draft tokens.
        assistant: a model, its name, or None.
        tokenizer: of a model that is given as an object.

    Raises:
        OptionError: the vocabularies differ and the assistant's tokenizer is missing.
    """
    if assistant is None:
        return None, None
    if isinstance(assistant, str):
        name = assistant
        assistant = AutoModelForCausalLM.from_pretrained(name).to(device=model.device, dtype=model.dtype)
        tokenizer = AutoTokenizer.from_pretrained(name)
    alike = ("vocab_size", "eos_token_id", "pad_token_id", "bos_token_id")
    if all(getattr(model.config, key) == getattr(assistant.config, key) for key in alike):
        return assistant, None
    if tokenizer is None:
        raise OptionError(
            "the assistant model has another vocabulary or other special tokens than the model; pass its tokenizer as "
            "assistant_tokenizer"
        )
    return assistant, tokenizer
