"""A family is a configuration and a model file: rooms below the models name no family, nor the parts of one."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.source import Source, sources

ROOMS = {"checkpoint", "kernels", "nn", "cache", "quantization"}
PARTS = ("gpt2", "gpt_neo", "gptneo", "transformer.", "lm_head", "embed_out", "multiple_choice_head")


def texts(source: Source) -> Iterator[tuple[str, str]]:
    """(place, text) of every string that is part of the program: all but docstrings."""
    docstrings = {id(node.value) for node in ast.walk(source.tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield f"{source.path}:{node.lineno}", node.value


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_text_of_a_room_below_the_models_names_a_family(room):
    found = [(place, text) for source in sources() if source.room == room for place, text in texts(source)]
    assert found, "the rooms of the package have other names"
    assert [row for row in found if any(part in row[1].lower() for part in PARTS)] == []
