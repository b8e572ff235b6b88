"""What a call of `generate` asks for: its options, checked, and its lengths."""

from __future__ import annotations

import dataclasses
from typing import Any

from gptrio.errors import OptionError, UnsupportedError, warn
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.schema import GenerationMode, GenerationOptions
from gptrio.jax.generation.prompt import Prompt

# `use_cache` and `return_dict_in_generate` change nothing, as in Transformers: a cache and an object, always
SUPPORTED = frozenset({
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "num_beams", "early_stopping",
    "length_penalty", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "num_return_sequences",
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache", "return_dict_in_generate",
})  # fmt: skip
# these change speed or memory alone, or how a draft is made and beams are put into groups, which there are none of here
_WITHOUT_EFFECT = frozenset({
    "low_memory", "prefill_chunk_size", "return_legacy_cache", "cache_config", "compile_config", "disable_compile",
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind", "diversity_penalty",
})  # fmt: skip
_OF_SAMPLING = frozenset({"min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"})
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # values with which an option does nothing, besides None and its default
    "min_p": (0,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "bad_words_ids": ([],),
    "sequence_bias": ([], {}),
    "stop_strings": ([],),
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "hybrid", "sliding_window"),
}
ARGUMENTS = (
    "input_ids", "generation_config", "prng_key", "trace", "params", "logits_processor", "buckets",
    "compilation_cache", "attention_mask",
)  # fmt: skip
MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH)


def check_supported(config: GenerationConfig) -> GenerationMode:
    """The mode; raises UnsupportedError for options and modes that only the PyTorch classes have.

    An option that would change nothing is no reason to refuse: many are in files beside PyTorch models.
    """
    for field in dataclasses.fields(GenerationOptions):
        value = getattr(config, field.name)
        if field.name not in SUPPORTED and _has_effect(config, field.name, value, field.default):
            raise UnsupportedError(
                f"the Flax classes have no option {field.name} (here {value!r}); set it to {field.default!r}, or "
                "generate with the PyTorch class"
            )
    mode = config.get_generation_mode()
    if mode not in MODES:
        raise UnsupportedError(
            f"the Flax classes do not offer {mode.value}; they offer {', '.join(known.value for known in MODES)}"
        )
    return mode


def _has_effect(config: GenerationConfig, name: str, value: Any, default: Any) -> bool:
    """Whether an option of PyTorch's would change what is generated, or returned."""
    if name in _WITHOUT_EFFECT or value is None or value in (default, *_NEUTRAL.get(name, ())):
        return False
    if name == "renormalize_logits":  # moves all scores of a row alike, which only beams of different rows can tell
        return config.num_beams > 1
    return config.do_sample or name not in _OF_SAMPLING


def settle_max_length(config: GenerationConfig, given: dict[str, Any], prompt: Prompt, model_config: Any) -> int:
    """Most columns of a row, prompt included.

    Args:
        config: the options.
        given: the options that the caller named in this call.
        prompt: the rows to continue.
        model_config: its number of positions is used.

    Raises:
        OptionError: no new token fits, or more are asked for than the model has positions.
    """
    columns, context = prompt.ids.shape[1], model_config.max_position_embeddings
    is_given = given.get("max_length") is not None
    if config.max_new_tokens is not None:
        if is_given:
            warn(f"max_new_tokens={config.max_new_tokens} wins over max_length={config.max_length}; pass one of them")
        max_length = columns + config.max_new_tokens
    elif config.max_length is None:
        max_length = columns + context - prompt.longest_row
    else:
        max_length = config.max_length
        if not is_given and max_length == GenerationConfig.max_length:
            warn(f"max_length has its default of {max_length} tokens, prompt included; pass max_new_tokens")
    _check_lengths(config, prompt, max_length, None if hasattr(model_config, "rotary_pct") else context)
    return max_length


def _check_lengths(config: GenerationConfig, prompt: Prompt, max_length: int, positions: int | None) -> None:
    columns = prompt.ids.shape[1]
    if max_length <= columns:
        raise OptionError(
            f"the prompt has {columns} tokens and max_length={max_length} counts them; raise it, or pass max_new_tokens"
        )
    least = config.min_length or 0
    if config.min_new_tokens is not None:
        least = columns + config.min_new_tokens
    if least > max_length:
        raise OptionError(f"at least {least} tokens were asked for and at most {max_length}; lower the minimum")
    new, longest = max_length - columns, prompt.longest_row
    if positions is not None and longest + new - 1 > positions:  # the last token needs no position
        raise OptionError(
            f"{longest} tokens of prompt and {new} new ones are more than the model's {positions} positions; pass "
            f"max_new_tokens={positions + 1 - longest} or less"
            if longest <= positions
            else f"the prompt has {longest} tokens and the model {positions} positions; shorten it"
        )
