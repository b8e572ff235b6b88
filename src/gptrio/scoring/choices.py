"""`choose` among options after a context, and `prefer` one text of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gptrio.errors import InputError, counted
from gptrio.scoring.encoding import as_list
from gptrio.scoring.results import TextScore
from gptrio.scoring.score import Start, score_named

Normalization = Literal["sum", "token", "byte"]


@dataclass(frozen=True)
class Choice:
    """What a model chose; see `choose`.

    Attributes:
        index: of the option with the highest score; the first of several.
        option: its text.
        scores: of all options.
        results: the log-probabilities behind them.
    """

    index: int
    option: str
    scores: list[float]
    results: list[TextScore]


def choose(
    model: Any,
    tokenizer: Any,
    contexts: str | Sequence[str],
    options: Sequence[str] | Sequence[Sequence[str]],
    normalize: Normalization = "sum",
    *,
    start: Start = "auto",
    batch_tokens: int | None = None,
) -> Choice | list[Choice]:
    """Choose the option that is likeliest after a context.

    Args:
        model: a language model of this package.
        tokenizer: the model's.
        contexts: a context, or several; they may be empty.
        options: continuations, with their leading space; the same for all contexts, or a list for each.
        normalize: compare log-probabilities of options as they are ("sum"), per token, or per byte.
        start: the token before everything; see `score`.
        batch_tokens: most tokens that are computed at once; 1,024 on a CPU and 8,192 elsewhere by default.

    Returns:
        A `Choice` for one context, a list of them for several.

    Raises:
        InputError: there is no option, the numbers differ, a text does not fit the model, or nothing precedes options
            that begin with different tokens.

    Example:
        >>> gptrio.choose(model, tokenizer, "2 + 2 =", [" 4", " fish"]).option
    """
    if normalize not in ("sum", "token", "byte"):
        raise InputError(f"normalize={normalize!r} is not known; use 'sum', 'token' or 'byte'")
    several = [contexts] if isinstance(contexts, str) else as_list("contexts", contexts)
    groups = _options_of(several, options)
    names = [f"option {j} of context {i}" for i, group in enumerate(groups) for j in range(len(group))]
    flat = [(option, context) for context, group in zip(several, groups, strict=True) for option in group]
    texts, before = zip(*flat, strict=True) if flat else ((), ())
    found = iter(score_named(model, tokenizer, texts, before, names, start=start, batch_tokens=batch_tokens))
    choices = [_choose([next(found) for _ in group], normalize) for group in groups]
    return choices[0] if isinstance(contexts, str) else choices


def _options_of(contexts: list[str], options: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """The options of each context."""
    if isinstance(options, str):
        raise InputError(f"options={options!r} is one string; expected a list of them")
    options = as_list("options", options)
    plain = [option for option in options if isinstance(option, str)]
    groups = [plain] * len(contexts) if plain else [as_list("an entry of options", group) for group in options]
    if (plain and len(plain) != len(options)) or len(groups) != len(contexts):
        raise InputError(
            f"options of length {len(options)} do not fit {counted(len(contexts), 'context')}; give a list for each, "
            "or one list of strings for all"
        )
    if not all(groups):
        raise InputError("a context has no options; give at least one")
    return groups


def _choose(results: list[TextScore], normalize: Normalization) -> Choice:
    _check_comparable(results)
    scores = [_normalized(result, normalize) for result in results]
    index = max(range(len(scores)), key=scores.__getitem__)
    return Choice(index, results[index].text, scores, results)


def _check_comparable(results: Sequence[TextScore]) -> None:
    """Raise InputError if totals leave out first tokens that differ, or all tokens of a text: they say nothing then."""
    left_out = {one.ids[0] if one.log_probs[0] is None else None for one in results}
    if len(left_out) > 1 or not all(one.scored for one in results):
        raise InputError(
            f"texts such as {results[0].text!r} do not compare: nothing precedes their first tokens, which so have no "
            "log-probability; keep start='auto'"
        )


def _normalized(result: TextScore, normalize: Normalization) -> float:
    if normalize == "token":
        return result.mean
    return result.total / (result.num_bytes if normalize == "byte" else 1)


class Preference(NamedTuple):
    """Which text of a pair a model finds likelier; see `prefer`.

    Attributes:
        first_is_likelier: whether the first text has the higher log-probability.
        difference: log-probability of the first text less that of the second.
        results: the log-probabilities of both.
    """

    first_is_likelier: bool
    difference: float
    results: tuple[TextScore, TextScore]


def prefer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    start: Start = "auto",
    batch_tokens: int | None = None,
) -> list[Preference]:
    """Compare the texts of minimal pairs, such as a grammatical and an ungrammatical sentence.

    The share of pairs whose first text is likelier is the accuracy of BLiMP (Warstadt et al., 2020) if the first one is
    the good one.

    Args:
        model: a language model of this package.
        tokenizer: the model's.
        pairs: of texts.
        start: the token before each text; see `score`.
        batch_tokens: most tokens that are computed at once; 1,024 on a CPU and 8,192 elsewhere by default.

    Raises:
        InputError: a pair has not two texts, a text does not fit the model, or nothing precedes two texts that begin
            with different tokens.

    Example:
        >>> gptrio.prefer(model, tokenizer, [("The cats sleep.", "The cats sleeps.")])[0].first_is_likelier
    """
    pairs = as_list("pairs", pairs)
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
            raise InputError(f"pairs[{i}] is {pair!r}; expected two texts")
    texts = [text for pair in pairs for text in pair]
    names = [f"pairs[{i}][{side}]" for i in range(len(pairs)) for side in (0, 1)]
    nothing = [""] * len(texts)
    results = score_named(model, tokenizer, texts, nothing, names, start=start, batch_tokens=batch_tokens)
    found = list(zip(results[::2], results[1::2], strict=True))
    for both in found:
        _check_comparable(both)
    return [Preference(one.total > other.total, one.total - other.total, (one, other)) for one, other in found]
