"""Every page of the documentation is on the site, and its Python runs from top to bottom."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from unittest.mock import patch

import pytest

import gptrio
from gptrio.pipelines.tasks import TASKS
from tests.architecture.source import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
TESTED_WITH_THEIR_VALUES = {"adapters.md", "caches.md", "chat-templates.md", "compatibility.md"}  # in other files
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


# a page trains new heads, with a tokenizer that pads, and an adapter, for whose model PEFT asks the hub
@pytest.mark.filterwarnings("ignore:.* drawn at random", "ignore:the model's configuration takes over")
@pytest.mark.filterwarnings("ignore:Could not find a config file in gptrio/stdlib-gpt2:UserWarning")
@pytest.mark.parametrize("page", sorted({*PAGES} - TESTED_WITH_THEIR_VALUES))
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    with patch.dict(TASKS):  # a page registers a task
        for block in CODE.findall((DOCS / page).read_text(encoding="utf-8")):
            exec(compile(block, f"docs/{page}", "exec"), scope)


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(set(listed) - {"api/index.md"}) == PAGES
    assert len(listed) == len(set(listed))


def test_the_reference_has_every_public_name() -> None:
    api_pages = runpy.run_path(str(DOCS / "api_pages.py"))
    named = [name.rpartition(".")[2] for names in api_pages["names_by_room"]().values() for name in names]
    assert sorted([*named, "__version__"]) == gptrio.__all__
