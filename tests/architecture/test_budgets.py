"""The sizes that keep the code readable: functions, classes, files, suppressions, leftovers."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.architecture.source import Source, sources

FOLDERS = ("src", "tests", "benchmarks", "examples")
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore|pyright:|mypy:|ruff:|pragma:)")
REASON = re.compile(r"(?:noqa:\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*|type:\s*ignore\[[a-z, -]+\])\s*[-#—]+\s*\w")
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError\(?\)?\s*$")


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Lines of a body without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def sizes(source: Source, *kinds: type[ast.AST]) -> Iterator[tuple[str, int]]:
    """(place and name, lines) of each function or class of a file."""
    for node in ast.walk(source.tree):
        if isinstance(node, kinds):
            yield f"{source.path}:{node.lineno} {node.name}", body_lines(node)


def comments(source: Source) -> Iterator[tuple[str, str]]:
    """(place, text) of every comment."""
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield f"{source.path}:{token.start[0]}", token.string


def functions() -> dict[str, int]:
    return dict(row for source in sources() for row in sizes(source, ast.FunctionDef, ast.AsyncFunctionDef))


def test_no_function_is_over_60_lines():
    assert {place: lines for place, lines in functions().items() if lines > 60} == {}


def test_nine_functions_in_ten_are_within_35_lines():
    long = {place: lines for place, lines in functions().items() if lines > 35}
    assert len(long) <= 0.1 * len(functions()), long


def test_no_class_is_over_300_lines():
    classes = dict(row for source in sources() for row in sizes(source, ast.ClassDef))
    assert {place: lines for place, lines in classes.items() if lines > 300} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_over_500_lines(folder):
    lengths = {source.path: source.text.count("\n") for source in sources(folder)}
    assert {path: lines for path, lines in lengths.items() if lines > 500} == {}


def suppressions() -> list[tuple[str, str]]:
    return [row for source in sources() for row in comments(source) if SUPPRESSION.search(row[1])]


def test_suppressions_are_at_most_two_per_thousand_lines():
    lines = sum(source.text.count("\n") for source in sources())
    assert len(suppressions()) <= 2 * lines / 1000 + 1, suppressions()


def test_every_suppression_names_its_rule_and_reason():
    assert [row for row in suppressions() if not REASON.search(row[1])] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_left_half_done(folder):
    lines = (
        (f"{source.path}:{n}", line) for source in sources(folder) for n, line in enumerate(source.text.splitlines(), 1)
    )
    own = "tests/architecture/test_budgets.py"
    assert [row for row in lines if LEFTOVER.search(row[1]) and not row[0].startswith(own)] == []
