"""What comes of a race: the best dtype of each contender, ratios, tokens that agree, reasons for gaps."""

from __future__ import annotations

import pytest

from _contest import Entry, Outcome, agreement, best, facts, promising, ratio, report
from _limits import READING, Limit
from _peers import Missing, variants


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
    assert promising(ENTRIES) == [ENTRIES[place] for place in (0, 1, 2, 4)]


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
    assert promising(alone) == alone
