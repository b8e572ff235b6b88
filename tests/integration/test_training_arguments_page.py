"""The page of training arguments tells what the code does: each name with its default and help, in its list."""

from __future__ import annotations

import dataclasses
import re

import pytest

from gptrio import TrainingArguments
from gptrio.training.arguments_lists import ALIASES, NO_EFFECT, REFUSED
from gptrio.training.enums import BITSANDBYTES_OPTIMIZERS, TORCH_OPTIMIZERS
from tests.architecture.source import ROOT

PAGE = (ROOT / "docs" / "training-arguments.md").read_text(encoding="utf-8")
FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}


def shown(field: dataclasses.Field) -> str:
    """Default of a field as the page shows it."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return f"`{value!r}`" if field.name != "optim" else "`'adamw_torch_fused'`, before torch 2.8 `'adamw_torch'`"


def table(rows: dict[str, str]) -> list[str]:
    return [f"| `{name}` | {text} |" for name, text in rows.items()]


@pytest.mark.parametrize(
    ("heading", "rows"),
    [
        (
            "Honoured",
            {
                n: f"{shown(f)} | {f.metadata['help']}"
                for n, f in FIELDS.items()
                if n not in ALIASES | NO_EFFECT | REFUSED
            },
        ),
        (
            "Deprecated",
            {name: f"`{instead}`" for name, instead in {"evaluation_strategy": "eval_strategy", **ALIASES}.items()},
        ),
        ("Without effect", NO_EFFECT),
        ("Refused", REFUSED),
    ],
)
def test_a_table_of_the_page_has_the_rows_of_the_code(heading, rows):
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `\w+` \|.*\|$", section, re.MULTILINE) == table(rows)


def test_the_page_names_the_optimizers():
    for optimizer in TORCH_OPTIMIZERS | BITSANDBYTES_OPTIMIZERS:
        assert f"`{optimizer.value}`" in PAGE
