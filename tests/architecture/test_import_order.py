"""A room of the package imports only from rooms before its own; type-only imports (`if TYPE_CHECKING`) are free."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

import gptrio
from tests.architecture.source import PACKAGE, Source, sources

ORDER = (
    ("memory", "import_paths"),
    ("__init__", "errors"),
    ("downloads",),
    ("outputs", "hub", "foreign"),
    ("uploads",),
    ("utils",),
    ("config",),
    ("tokenization", "checkpoint"),
    ("kernels",),
    ("nn",),
    ("cache",),
    ("quantization",),
    ("generation",),
    ("models",),
    ("pipelines", "scoring", "interop"),
    ("engine", "training", "verification"),
    # paths from which scripts import, as they do of Transformers
    ("debug_utils", "hf_argparser", "integrations", "modeling_outputs", "optimization", "testing_utils"),
    ("data", "trainer", "trainer_callback", "trainer_pt_utils", "trainer_utils", "training_args"),
    ("server",),
    ("cli",),
    ("testing",),
    ("__main__",),
)
RANK = {room: rank for rank, group in enumerate(ORDER) for room in group}
BELOW_TORCH = {room for group in ORDER[: ORDER.index(("kernels",))] for room in group}
JAX_MAY_USE = BELOW_TORCH - {"__init__"}
JAX_MAY_ALSO_USE = {f"gptrio.generation.options.{name}" for name in ("config", "resolve", "schema")}  # load no torch
USE_JAX = {"pipelines"}  # when they are given a Flax model
WITHOUT_TORCH = BELOW_TORCH - {"checkpoint"} | {"cli"}


def is_type_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(node: ast.AST, into_functions: bool = True) -> Iterator[ast.AST]:
    """Nodes that run: all but type-only blocks, and function bodies on request."""
    for child in ast.iter_child_nodes(node):
        if is_type_only(child) or (isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not into_functions):
            continue
        yield child
        yield from walk(child, into_functions)


def modules_of(node: ast.AST, source: Source) -> list[str]:
    """Dotted modules that a node imports; names taken from `gptrio` itself are traced to their modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = PurePosixPath(source.path).relative_to("src").parts[: -node.level or None] if node.level else ()
        module = ".".join([*package, *([node.module] if node.module else [])])
        if module == "gptrio":
            return [gptrio._EXPORTS.get(alias.name, f"gptrio.{alias.name}") for alias in node.names]
        return [module]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return []


def imports(source: Source, into_functions: bool = True) -> Iterator[tuple[str, str]]:
    """(place, imported module) for every import statement that runs."""
    for node in walk(source.tree, into_functions):
        for module in modules_of(node, source):
            yield f"{source.path}:{node.lineno}", module


def room_of(module: str) -> str | None:
    """The package's room that a module lies in; None for other packages and for `gptrio.__version__`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "gptrio" and len(parts) > 1 and parts[1] != "__version__" else None


def test_every_room_has_its_place_in_the_order():
    rooms = {source.room for source in sources()} - {"jax"}
    assert rooms <= RANK.keys()


def test_rooms_import_only_from_groups_before_their_own():
    wrong = []
    for source in sources():
        allowed = {room for room in RANK if RANK[room] < RANK.get(source.room, 0)} | {source.room}
        if source.room == "jax":
            allowed = JAX_MAY_USE | {"jax"}
        if source.room in USE_JAX:
            allowed |= {"jax"}
        also = JAX_MAY_ALSO_USE if source.room == "jax" else set()
        wrong += [
            f"{place} imports {module}"
            for place, module in imports(source)
            if room_of(module) not in {None, *allowed} and module not in also
        ]
    assert wrong == []


def test_jax_twin_never_imports_torch():
    wrong = [
        place for source in sources() if source.room == "jax" for place, module in imports(source) if is_torch(module)
    ]
    assert wrong == []


def test_transformers_is_imported_by_the_bridge_alone_and_when_it_is_called():
    wrong = [
        place
        for folder in ("src", "examples")
        for source in sources(folder)
        for place, module in imports(source, into_functions="/interop/" not in source.path)
        if module.split(".")[0] == "transformers"
    ]
    assert wrong == []


def test_light_rooms_import_torch_only_inside_functions():
    wrong = [
        place
        for source in sources()
        if source.room in WITHOUT_TORCH
        for place, module in imports(source, into_functions=False)
        if is_torch(module)
    ]
    assert wrong == []


def is_torch(module: str) -> bool:
    return module.split(".")[0] == "torch"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import gptrio.nn.masks", ["gptrio.nn.masks"]),
        ("from gptrio.nn import masks", ["gptrio.nn"]),
        ("from gptrio import ConfigError", ["gptrio.errors"]),
        ("from ..nn import masks", ["gptrio.nn"]),
        ("from . import base", ["gptrio.models"]),
        ("importlib.import_module('gptrio.cli')", ["gptrio.cli"]),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("def f():\n    import torch", ["torch"]),
    ],
)
def test_the_reader_sees_every_form_of_import(line, expected):
    source = Source(str(PACKAGE.relative_to(PACKAGE.parents[1]) / "models" / "gpt2.py"), line, ast.parse(line))
    assert [module for _, module in imports(source)] == expected
