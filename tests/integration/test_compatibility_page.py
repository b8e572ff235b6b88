"""The code on the page of compatibility runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_page_runs_as_it_stands() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    weight = names["model"].lm_head.weight
    assert names["theirs"].lm_head.weight is weight and names["again"].lm_head.weight is weight
    assert names["their_tokenizer"].backend_tokenizer is names["tokenizer"].backend_tokenizer
