"""A page in HTML that shows how surprising each token of texts is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from gptrio.errors import counted
from gptrio.scoring.results import TextScore

MOST_BITS = 16.0  # surprisal of the full colour

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --heat: 214, 69, 65; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .25rem; }}
pre {{ font: 15px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }}
pre span {{ border-radius: 3px; padding: .15em 0; background: rgba(var(--heat), var(--a)); }}
pre span:hover {{ outline: 2px solid currentColor; }}
.facts, .legend {{ color: color-mix(in srgb, currentColor 70%, transparent); font-size: .9rem; }}
.legend i {{ display: inline-block; width: 2.2em; text-align: center; font-style: normal;
  background: rgba(var(--heat), var(--a)); }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="legend">Surprisal in bits, from what each token follows: {legend}. Point at a token for its numbers.</p>
{sections}
</body>
</html>
"""


def heat_map(results: Mapping[str, TextScore], title: str) -> str:
    """Write a page of HTML that needs nothing else, with each token on a background as strong as it is surprising.

    Args:
        results: heading to the score of a text.
        title: of the page.
    """
    steps = range(0, int(MOST_BITS) + 1, 4)
    legend = " ".join(f'<i style="--a:{_strength(float(bits)):.2f}">{bits}</i>' for bits in steps)
    sections = "\n".join(_section(heading, result) for heading, result in results.items())
    return _PAGE.format(title=escape(title), legend=legend, sections=sections)


def surprisal(log_prob: float) -> float:
    """Bits of a natural logarithm of a probability."""
    return -log_prob / math.log(2) + 0.0  # no -0.0


def _section(heading: str, result: TextScore) -> str:
    number = counted(len(result.scored), "token")
    facts = f"log-probability {result.total:.2f}, {number}, {result.bits_per_byte:.3f} bits per byte"
    done, spans = 0, []
    for i, (_, end) in enumerate(result.offsets):
        piece, done = result.text[done:end], max(done, end)  # a part of a character shows nothing
        spans.append(_span(result, i, piece))
    return f'<h2>{escape(heading)}</h2>\n<p class="facts">{facts}</p>\n<pre>{"".join(spans)}</pre>'


def _span(result: TextScore, i: int, piece: str) -> str:
    log_prob = result.log_probs[i]
    if log_prob is None:
        return f'<span style="--a:0" title="not scored">{escape(piece)}</span>'
    bits = surprisal(log_prob)
    numbers = f"{result.tokens[i]}: {bits:.2f} bits, rank {result.ranks[i]}"
    return f'<span style="--a:{_strength(bits):.2f}" title="{escape(numbers)}">{escape(piece)}</span>'


def _strength(bits: float) -> float:
    return 0.85 * min(bits / MOST_BITS, 1.0)
