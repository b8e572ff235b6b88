"""Every option of `generate`, declared once with type, default, bounds and help, and the rules that options keep.

No torch is loaded here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from gptrio.config.fields import Bounds, declare, has_type
from gptrio.errors import OptionError
from gptrio.generation.watermark.config import BaseWatermarkingConfig, watermarking_from

# the arguments of `generate` that Transformers has too; a GenerationConfig refuses these names
CALL_ARGUMENTS = (
    "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model", "streamer",
    "negative_prompt_ids", "negative_prompt_attention_mask", "use_model_defaults",
)  # fmt: skip
GENERATE_ARGUMENTS = (
    "inputs", "generation_config", *CALL_ARGUMENTS, "custom_generate", "tokenizer", "assistant_tokenizer", "seed",
    "generator", "overflow", "on_finish", "on_step", "trust_remote_code",
)  # fmt: skip

CACHE_NAMES = (
    "dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "quantized",
    "sliding_window", "hybrid", "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked",
)  # fmt: skip


class GenerationMode(str, Enum):
    """The decoding modes of `generate`."""

    CONTRASTIVE_SEARCH = "contrastive_search"
    GREEDY_SEARCH = "greedy_search"
    SAMPLE = "sample"
    ASSISTED_GENERATION = "assisted_generation"
    DOLA_GENERATION = "dola_generation"
    BEAM_SEARCH = "beam_search"
    BEAM_SAMPLE = "beam_sample"
    CONSTRAINED_BEAM_SEARCH = "constrained_beam_search"
    GROUP_BEAM_SEARCH = "group_beam_search"


@dataclasses.dataclass
class CompileConfig:
    """How `generate` compiles the decoding step (the arguments of `torch.compile`).

    Args:
        fullgraph: demand one graph, without breaks.
        dynamic: use dynamic shapes (torch decides when None).
        backend: name of the compiler, or a callable.
        mode: trade of compile time for speed.
        options: further options of the backend.
    """

    fullgraph: bool = False
    dynamic: bool | None = None
    backend: str | Callable[..., Any] = "inductor"
    mode: str = "reduce-overhead"
    options: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments for `torch.compile`."""
        return dataclasses.asdict(self)


def option(default: Any, help: str, *, choices: tuple[Any, ...] = (), **bounds: float) -> Any:
    """Declare an option as a dataclass field.

    Args:
        default: the value when the option is not given.
        help: one line for command lines and documentation.
        choices: the accepted values besides None; empty for any value.
        **bounds: see `Bounds`.
    """
    return declare(default, help=help, choices=choices, bounds=Bounds(**bounds))


@dataclasses.dataclass(init=False, eq=False, repr=False)
class GenerationOptions:
    """The options as dataclass fields; `metadata["help"]` of each describes it."""

    extra_output_flags: ClassVar[tuple[str, ...]] = (
        "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    )  # fmt: skip

    # length of the output
    max_length: int | None = option(20, "Most tokens of a sequence with its prompt; max_new_tokens wins.", ge=0)
    max_new_tokens: int | None = option(None, "Most tokens to generate after the prompt.", ge=1)
    min_length: int | None = option(0, "Fewest tokens of a sequence, prompt included.", ge=0)
    min_new_tokens: int | None = option(None, "Fewest tokens to generate after the prompt.", ge=0)
    early_stopping: bool | str = option(
        False, "When beam search ends: True, False (a heuristic) or 'never'.", choices=(True, False, "never")
    )
    max_time: float | None = option(None, "Seconds after which generation ends (the running step is finished).", ge=0)
    stop_strings: str | list[str] | None = option(None, "Text or texts that end a row; needs tokenizer=...")
    # strategy
    do_sample: bool = option(False, "Sample the next token instead of taking the most likely one.")
    num_beams: int = option(1, "Beams of beam search; 1 means none.", ge=1)
    num_beam_groups: int = option(1, "Groups of beams, penalised for equal tokens.", ge=1)
    penalty_alpha: float | None = option(None, "Weight of the degeneration penalty in contrastive search.", ge=0)
    dola_layers: str | list[int] | None = option(None, "Layers that DoLa contrasts: 'low', 'high' or indices.")
    # cache
    use_cache: bool = option(True, "Keep keys and values of past tokens.")
    cache_implementation: str | None = option(None, "Which cache to use, by name.", choices=CACHE_NAMES)
    cache_config: dict[str, Any] | None = option(None, "Arguments for the cache's class.")
    return_legacy_cache: bool | None = option(None, "Return the cache as tuples.")
    prefill_chunk_size: int | None = option(None, "Read the prompt in pieces of this many tokens.", ge=1)
    low_memory: bool | None = option(None, "Take candidates one after the other in contrastive search.")
    # scores
    temperature: float | None = option(1.0, "Divides the scores before sampling.", ge=0)
    top_k: int | None = option(50, "Sample from this many most likely tokens; 0 means all.", ge=0)
    top_p: float | None = option(1.0, "Sample from the fewest tokens whose probabilities reach this sum.", ge=0, le=1)
    min_p: float | None = option(None, "Least probability, relative to the most likely token's.", ge=0, le=1)
    typical_p: float | None = option(1.0, "Sample from the most typical tokens that reach this sum.", gt=0, le=1)
    epsilon_cutoff: float | None = option(0.0, "Least probability of a token; 0 means none.", ge=0, le=1)
    eta_cutoff: float | None = option(0.0, "Least probability, adapted to the entropy; 0 means none.", ge=0, le=1)
    diversity_penalty: float | None = option(
        0.0, "Subtracted from scores of tokens that other groups have chosen.", ge=0
    )
    repetition_penalty: float | None = option(1.0, "Above 1: makes tokens of the sequence less likely.", gt=0)
    encoder_repetition_penalty: float | None = option(1.0, "Above 1: makes tokens of the prompt more likely.", gt=0)
    length_penalty: float | None = option(1.0, "Exponent of the length that divides a beam's score.")
    no_repeat_ngram_size: int | None = option(0, "N-grams of this size occur once only; 0 means no limit.", ge=0)
    encoder_no_repeat_ngram_size: int | None = option(0, "N-grams of this size in the prompt do not recur.", ge=0)
    bad_words_ids: list[list[int]] | None = option(None, "Token sequences that are never generated.")
    force_words_ids: list[list[int] | list[list[int]]] | None = option(
        None, "Token sequences that must occur; one may be a list of alternatives."
    )
    constraints: list[Any] | None = option(None, "Constraint objects that beam search must fulfil.")
    renormalize_logits: bool | None = option(False, "Turn the processed scores into log-probabilities.")
    forced_bos_token_id: int | None = option(None, "Token forced after a prompt of one token.")
    forced_eos_token_id: int | list[int] | None = option(None, "Token forced as the last one at max_length.")
    remove_invalid_values: bool | None = option(False, "Replace NaN and infinities in the scores.")
    exponential_decay_length_penalty: list[float] | None = option(
        None, "(start, factor): after `start` new tokens the end becomes likelier by powers of `factor`."
    )
    suppress_tokens: list[int] | None = option(None, "Tokens that are never generated.")
    begin_suppress_tokens: list[int] | None = option(None, "Tokens that are not generated first.")
    sequence_bias: dict[Any, float] | list[Any] | None = option(
        None, "What is added to the score of a token that completes a sequence: [[[ids], bias], ...] or {(ids): bias}."
    )
    token_healing: bool = option(False, "Replace the prompt's last token by a likelier one with the same beginning.")
    guidance_scale: float | None = option(None, "Weight of classifier-free guidance; 1 means none.")
    watermarking_config: BaseWatermarkingConfig | None = option(None, "How to watermark the text.")
    # result
    num_return_sequences: int = option(1, "Sequences returned for each prompt.", ge=1)
    output_attentions: bool | None = option(False, "Return attention weights.")
    output_hidden_states: bool | None = option(False, "Return hidden states.")
    output_scores: bool | None = option(False, "Return the processed scores.")
    output_logits: bool | None = option(None, "Return the model's raw scores.")
    return_dict_in_generate: bool | None = option(
        False, "Return an object with all requested outputs instead of the ids."
    )
    # special tokens
    pad_token_id: int | None = option(None, "Fills rows that ended.")
    bos_token_id: int | list[int] | None = option(None, "Begins a sequence when there is no prompt.")
    eos_token_id: int | list[int] | None = option(None, "Token or tokens that end a row.")
    decoder_start_token_id: int | list[int] | None = option(None, "Kept for files; decoder-only models do not use it.")
    # assisted generation
    is_assistant: bool = option(False, "The model drafts tokens for another one.")
    num_assistant_tokens: int = option(20, "Tokens drafted before they are checked.", ge=1)
    num_assistant_tokens_schedule: str = option(
        "constant", "How that number changes.", choices=("constant", "heuristic", "heuristic_transient")
    )
    assistant_confidence_threshold: float | None = option(0.4, "Drafting ends below this probability.", ge=0, le=1)
    prompt_lookup_num_tokens: int | None = option(None, "Tokens drafted by looking n-grams up in the prompt.", ge=1)
    max_matching_ngram_size: int | None = option(None, "Longest n-gram to look up (2 when None).", ge=1)
    assistant_early_exit: int | None = option(None, "Draft with this many of the model's own first layers.", ge=1)
    assistant_lookbehind: int = option(10, "Draft tokens re-encoded to align two tokenizers.", ge=1)
    target_lookbehind: int = option(10, "Target tokens re-encoded to align two tokenizers.", ge=1)
    # compilation
    compile_config: CompileConfig | None = option(None, "How to compile the decoding step.")
    disable_compile: bool = option(False, "Never run compiled code or capture a step in a CUDA graph.")


@lru_cache(maxsize=1)
def option_types() -> dict[str, Any]:
    """Type of each option by name, in order of declaration."""
    hints = get_type_hints(GenerationOptions)
    return {field.name: hints[field.name] for field in dataclasses.fields(GenerationOptions)}


def convert(name: str, value: Any) -> Any:
    """Return the value of an option in the option's own type; files and callers may write it in another one.

    None becomes the default of an option that cannot be None.
    """
    hint = option_types().get(name)
    accepted = get_args(hint)
    if value is None:
        return None if hint is None or type(None) in accepted else getattr(GenerationOptions, name)
    if hasattr(value, "tolist"):  # arrays and tensors of token ids
        return value.tolist()
    if isinstance(value, float) and value.is_integer() and (hint is int or int in accepted):
        return int(value)
    if isinstance(value, dict):
        if name == "watermarking_config":
            return watermarking_from(value)
        if name == "compile_config":
            return CompileConfig(**value)
        if name == "sequence_bias":  # JSON turns the key (1, 2) into "(1, 2)"
            return {_token_ids(key) if isinstance(key, str) else key: bias for key, bias in value.items()}
    return value


def _token_ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
    except ValueError as error:
        raise OptionError(f"sequence_bias has the key {text!r}; expected token ids such as '(1, 2)'") from error


def check_option(field: dataclasses.Field[Any], value: object) -> None:
    """Raise OptionError for a value of the wrong type, out of bounds, or not among the choices."""
    hint = option_types()[field.name]
    if not has_type(value, hint):
        readable = str(hint) if get_origin(hint) else hint.__name__
        raise OptionError(f"{field.name}={value!r} has the wrong type; expected {readable}: {field.metadata['help']}")
    if value is None:
        return
    choices, bounds = field.metadata["choices"], field.metadata["bounds"]
    if choices and value not in choices:
        raise OptionError(f"{field.name}={value!r} is not known; expected one of {list(choices)}")
    if isinstance(value, (int, float)) and not bounds.hold(value):
        raise OptionError(f"{field.name}={value!r} is out of range; expected a number {bounds}")


def check_conflicts(options: GenerationOptions) -> None:
    """Raise OptionError for options that contradict each other."""
    beams, groups, returned = options.num_beams, options.num_beam_groups, options.num_return_sequences
    constrained = options.constraints is not None or options.force_words_ids is not None
    mode = "constrained beam search (constraints or force_words_ids)"
    if not constrained:
        mode = "group beam search (num_beam_groups > 1)"
    if beams > 1 and constrained and groups > 1:
        raise OptionError(f"{mode} has no groups; leave num_beam_groups={groups} out")
    if beams > 1 and beams % groups:
        raise OptionError(f"num_beams={beams} is not a multiple of num_beam_groups={groups}")
    if beams > 1 and groups > 1 and not options.diversity_penalty:
        raise OptionError("diversity_penalty must be above 0 with num_beam_groups, or all groups are the same")
    if beams > 1 and options.do_sample and (constrained or groups > 1):
        raise OptionError(f"{mode} does not sample; pass do_sample=False")
    if beams > 1 and returned > beams:
        raise OptionError(f"num_return_sequences={returned} is more than num_beams={beams}")
    if beams == 1 and returned > 1 and not options.do_sample:
        raise OptionError(
            f"num_return_sequences={returned} would be {returned} copies; pass do_sample=True or num_beams={returned} "
            "or more"
        )
    if isinstance(options.dola_layers, str) and options.dola_layers not in ("low", "high"):
        raise OptionError(f"dola_layers={options.dola_layers!r} is not known; expected 'low', 'high' or layer indices")


def _sampling_options(options: GenerationOptions, given: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Names of the options that only sampling uses; contrastive search takes its candidates by `top_k`."""
    alpha, beams = (given.get(name, getattr(options, name)) for name in ("penalty_alpha", "num_beams"))
    names = ["temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"]
    return [name for name in names if not (alpha and beams == 1 and name == "top_k")]


def reset_sampling(options: GenerationOptions, given: Mapping[str, Any]) -> None:
    """Reset what only sampling uses if a call says `do_sample=False`: the model's own values are no mistake of it.

    Args:
        options: those of the model or the pipeline.
        given: arguments of the call, which keep their values.
    """
    if given.get("do_sample") is False:
        for name in set(_sampling_options(options, given)) - given.keys():
            setattr(options, name, getattr(type(options), name))


def ignored_options(options: GenerationOptions) -> list[str]:
    """Return one phrase for each option, or group of options, that has no effect with the others."""
    sampling = _sampling_options(options)
    returned = [name for name in options.extra_output_flags if getattr(options, name)]
    issues = []
    for names, has_effect, way_out in (
        (sampling, options.do_sample, "without do_sample=True"),
        (("early_stopping", "num_beam_groups", "length_penalty"), options.num_beams > 1, "without num_beams > 1"),
        (("diversity_penalty",), options.num_beams > 1 and options.num_beam_groups > 1, "without num_beam_groups > 1"),
        (("cache_implementation", "cache_config", "return_legacy_cache"), options.use_cache, "with use_cache=False"),
        (returned, options.return_dict_in_generate, "without return_dict_in_generate=True"),
    ):
        values = {} if has_effect else {name: getattr(options, name) for name in names}
        given = [f"{name}={v!r}" for name, v in values.items() if v is not None and v != getattr(type(options), name)]
        if given:
            issues.append(f"{', '.join(given)} {way_out}")
    if options.pad_token_id is not None and options.pad_token_id < 0:
        issues.append(f"pad_token_id={options.pad_token_id}, which is not a token id")
    if options.constraints is not None and options.num_beams == 1:
        issues.append("constraints without num_beams > 1")
    return issues
