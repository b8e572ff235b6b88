"""The page on caches runs as it stands, and names every cache there is."""

from __future__ import annotations

import re

from gptrio.cache import StaticCache, cache_names
from gptrio.generation.prefix import PromptPrefix
from tests.architecture.source import ROOT

TEXT = (ROOT / "docs" / "caches.md").read_text(encoding="utf-8")


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/caches.md", "exec"), scope)
    assert isinstance(scope["prefix"], PromptPrefix)
    cache, ids = scope["cache"], scope["ids"]
    assert isinstance(cache, StaticCache)
    assert cache.get_seq_length() == ids.shape[1] + 8


def test_the_page_names_caches_that_are_there():
    named = set(re.findall(r'^\| `"(\w+)"`', TEXT, re.MULTILINE))
    assert named <= set(cache_names())
    assert len(named) == 6
