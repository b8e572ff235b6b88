"""What comes of a measurement: the best dtype of each engine, ratios, tokens that agree, reasons for gaps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from _limits import READING, Limit
from _peers import Missing, variants
from _runner import Entry, Outcome, agreement, best, facts, ratio, report, without_slow_dtypes
from decode import decode


def entry(peer: str, dtype: str, *seconds: float, missing: str = "") -> Entry:
    outcome = Outcome(dtype, list(seconds), [[1, 2, 3, 4]], 100, missing)
    return Entry(peer, outcome, outcome=outcome)


ENTRIES = [
    entry("gptrio", "bfloat16", 1.0, 1.2, 5.0),
    entry("gptrio", "float16", 1.1, 1.1, 1.1),
    entry("slow", "bfloat16", 4.0),
    entry("slow", "float16", 7.0),
    entry("gone", "bfloat16", missing="not offered: 16bit"),
]


def test_each_contender_counts_in_its_faster_dtype():
    assert {peer: outcome.dtype for peer, outcome in best(ENTRIES).items()} == {
        "gptrio": "float16",
        "slow": "bfloat16",
        "gone": "bfloat16",
    }


def test_a_dtype_far_behind_its_twin_is_dropped_and_nothing_else():
    assert without_slow_dtypes(ENTRIES) == [ENTRIES[place] for place in (0, 1, 2, 4)]


def test_the_ratio_is_theirs_over_ours():
    assert ratio(best(ENTRIES), "slow") == pytest.approx(4.0 / 1.1)
    assert ratio(best(ENTRIES), "gone") is None


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([[1, 2], [3, 4]], 1.0), ([[1, 9], [3, 4]], 0.75), ([[9, 2], [3, 4]], 0.5), ([[9, 2], [9, 4]], 0.0)],
)
def test_tokens_agree_until_the_first_difference_of_their_row(tokens, share):
    assert agreement(tokens, [[1, 2], [3, 4]]) == share


def test_the_report_says_who_does_not_offer_a_dtype():
    rows = report(best(ENTRIES), Limit(0.55, READING), 1, "s")
    assert rows[0] == ["gptrio", "float16", "1.10 s", "1.00", "50%", "100%", "100 MB"]
    assert rows[2] == ["gone", "bfloat16", "not offered: 16bit", "", "", "", ""]


def test_files_hold_no_tokens_but_how_many_agree():
    kept = facts(best(ENTRIES))["slow"]
    assert "tokens" not in kept and kept["agreement"] == 1.0 and kept["seconds"] == [4.0]


def test_the_16_bit_types_of_a_peer_are_those_it_offers():
    assert variants("gptrio", "gpt2", "16bit") == ["bfloat16", "float16"]
    assert variants("vllm", "gpt2", "16bit") == ["bfloat16"]
    assert variants("llamacpp", "gpt_neox", "int4") == ["int4"]


@pytest.mark.parametrize(
    ("peer", "family", "dtype", "reason"),
    [
        ("transformers", "gpt2", "int8", "not offered: int8"),
        ("llamacpp", "gpt_neo", "float32", "not offered: gpt_neo"),
        ("ctranslate2", "gpt2", "16bit", "not offered: 16bit"),
        ("nobody", "gpt2", "float32", "no recipe for nobody"),
    ],
)
def test_what_a_peer_does_not_offer_is_said(peer, family, dtype, reason):
    with pytest.raises(Missing, match=reason):
        variants(peer, family, dtype)


def test_who_has_no_rival_stays_even_where_noise_makes_a_time_negative():
    alone = [entry("gptrio", "int8", -0.1)]
    assert without_slow_dtypes(alone) == alone


class Scripted:
    """An engine whose generations take the seconds that they are told to."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def generate(self, prompts: list[list[int]], new: int) -> tuple[float, list[list[int]]]:
        return self.seconds.pop(0), [[1] * new for _ in prompts]


def turn(engine: Scripted) -> Outcome:
    entry = Entry("gptrio", Outcome("int8"), engine, Outcome("int8"))
    return decode(
        SimpleNamespace(measure=lambda run, rounds: entry.run(run) or {"gptrio": entry.outcome}), [[5]], 4, 1
    )["gptrio"]


def test_a_step_is_the_long_generation_less_the_undisturbed_short_one():
    assert turn(Scripted(9.0, 5.0, 1.0)).seconds == [1.0]
    assert turn(Scripted(1.0, 5.0, 9.0)).seconds == [1.0]


def test_a_time_below_zero_is_measured_anew():
    found = turn(Scripted(9.0, 5.0, 9.0, 1.0, 5.0, 1.0))
    assert found.seconds == [1.0] and found.missing == "" and found.tokens == [[1] * 5]


def test_what_stays_impossible_is_not_measured():
    found = turn(Scripted(*[9.0, 5.0, 9.0] * 3))
    assert found.seconds == [] and found.missing == "not measured"
    outcomes = {"gptrio": Outcome("int8", [1.0], [[1]]), "slow": found}
    assert report(outcomes, Limit(0.5, READING), 1, "s")[1] == ["slow", "int8", "not measured", "", "", "", ""]
