"""Which options contradict each other (errors) and which have no effect beside others (warnings)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptrio.errors import OptionError

if TYPE_CHECKING:
    from gptrio.generation.options.schema import GenerationOptions

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "num_beam_groups", "length_penalty")
_CACHE = ("cache_implementation", "cache_config", "return_legacy_cache")


def check_conflicts(options: GenerationOptions) -> None:
    """Raise OptionError when two options cannot both be meant."""
    _check_groups(options)
    _check_returned(options)
    if isinstance(options.dola_layers, str) and options.dola_layers not in ("low", "high"):
        raise OptionError(f"dola_layers={options.dola_layers!r} is not known; expected 'low', 'high' or layer indices")


def _check_groups(options: GenerationOptions) -> None:
    if options.num_beams == 1:
        return
    beams, groups = options.num_beams, options.num_beam_groups
    if options.constraints is not None or options.force_words_ids is not None:
        mode = "constrained beam search (constraints or force_words_ids)"
        if groups > 1:
            raise OptionError(f"{mode} has no groups; leave num_beam_groups={groups} out")
    elif groups > 1:
        mode = "group beam search (num_beam_groups > 1)"
        if beams % groups:
            raise OptionError(f"num_beams={beams} is no multiple of num_beam_groups={groups}")
        if not options.diversity_penalty:
            raise OptionError("diversity_penalty must be above 0 with num_beam_groups, or all groups are the same")
    else:
        return
    if options.do_sample:
        raise OptionError(f"{mode} does not sample; pass do_sample=False")


def _check_returned(options: GenerationOptions) -> None:
    wanted = options.num_return_sequences
    if options.num_beams > 1 and wanted > options.num_beams:
        raise OptionError(f"num_return_sequences={wanted} is more than num_beams={options.num_beams}")
    if options.num_beams == 1 and wanted > 1 and not options.do_sample:
        raise OptionError(
            f"num_return_sequences={wanted} would be {wanted} copies; pass do_sample=True or num_beams={wanted} or more"
        )


def ignored_options(options: GenerationOptions) -> list[str]:
    """Return one phrase for each option, or group of them, that has no effect beside the others."""
    issues = []
    contrastive = bool(options.penalty_alpha) and options.num_beams == 1  # it takes its candidates by top_k
    sampling = tuple(name for name in _SAMPLING if not (name == "top_k" and contrastive))
    for names, idle, way_out in (
        (sampling, not options.do_sample, "without do_sample=True"),
        (_BEAMS, options.num_beams == 1, "without num_beams > 1"),
        (("diversity_penalty",), options.num_beams == 1 or options.num_beam_groups == 1, "without num_beam_groups > 1"),
        (_CACHE, not options.use_cache, "with use_cache=False"),
        (_outputs(options), not options.return_dict_in_generate, "without return_dict_in_generate=True"),
    ):
        given = [f"{name}={value!r}" for name in names if _is_set(name, value := getattr(options, name), options)]
        if idle and given:
            issues.append(f"{', '.join(given)} {way_out}")
    if options.pad_token_id is not None and options.pad_token_id < 0:
        issues.append(f"pad_token_id={options.pad_token_id}, which is no token id")
    if options.constraints is not None and options.num_beams == 1:
        issues.append("constraints without num_beams > 1")
    return issues


def _outputs(options: GenerationOptions) -> tuple[str, ...]:
    return tuple(name for name in options.extra_output_flags if getattr(options, name))


def _is_set(name: str, value: object, options: GenerationOptions) -> bool:
    return value is not None and value != getattr(type(options), name)
