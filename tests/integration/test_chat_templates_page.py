"""The code on the page of chat templates runs as it stands, and its limits are the real ones."""

from __future__ import annotations

import re
from typing import Any

from gptrio.tokenization.templates import limits, render
from tests.architecture.source import ROOT

TEXT = (ROOT / "docs" / "chat-templates.md").read_text(encoding="utf-8")


def test_the_page_runs_as_it_stands() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, names)
    assert names["text"] == "user: Which module reads JSON?\nassistant:"
    assert names["tokenizer"].decode(names["ids"][0]) == names["text"]


def test_the_page_states_the_limits() -> None:
    assert f"at most {render._LONGEST:,} characters" in TEXT
    assert f"{limits.MOST_PARTS // 10**6} million\ncharacters" in TEXT
    assert f"together {limits.MOST_MADE // 10**6} million" in TEXT
    assert limits.MOST_SECONDS == 1
