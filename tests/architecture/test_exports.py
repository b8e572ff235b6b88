"""The table of public names, `src/gptrio/__init__.pyi`: sorted, complete, documented, and loaded only on use."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import gptrio
from tests.architecture.source import PACKAGE

HEAVY = ("torch", "jax", "transformers", "numpy", "tokenizers", "huggingface_hub", "typer")


def stub_rows() -> list[tuple[str, str, str | None]]:
    """(module, name, alias) of every import of the stub, read by Python's own parser."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [(node.module or "", alias.name, alias.asname) for node in nodes for alias in node.names]


def loaded_by(code: str, *blocked: str) -> set[str]:
    """The heavy packages that a fresh interpreter holds after running `code`, with some packages made unimportable."""
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    program = f"import sys\n{block}{code}\nprint(*[name for name in {HEAVY!r} if sys.modules.get(name)])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_every_row_of_the_stub_is_one_export():
    names = [name for _, name, _ in stub_rows()]
    assert len(set(names)) == len(names)
    assert [name for _, name, alias in stub_rows() if name != alias] == []
    assert {name: module for module, name, _ in stub_rows()} == gptrio._EXPORTS


def test_all_is_sorted_and_holds_the_table():
    assert gptrio.__all__ == sorted(gptrio.__all__)
    assert set(gptrio.__all__) == {name for _, name, _ in stub_rows()} | {"__version__"}
    assert dir(gptrio) == gptrio.__all__


@pytest.mark.parametrize("name", [name for name in gptrio.__all__ if name != "__version__"])
def test_name_resolves_and_is_documented(name):
    value = getattr(gptrio, name)
    assert value is getattr(importlib.import_module(gptrio._EXPORTS[name]), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__, f"{name} has no docstring"
        foreign = not value.__module__.startswith("gptrio.")
        assert foreign or value.__module__.startswith(gptrio._EXPORTS[name]), "the table names the room that defines it"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'GPT5Model'"):
        _ = gptrio.GPT5Model


def test_import_loads_nothing_heavy():
    assert loaded_by("import gptrio") == set()


@pytest.mark.parametrize("name", ["GPT2Config", "AutoConfig", "GPT2Tokenizer", "GPT2TokenizerFast", "AutoTokenizer"])
def test_config_and_tokenizers_load_no_torch(name):
    assert loaded_by(f"from gptrio import {name}").isdisjoint({"torch", "jax", "transformers"})


def test_flax_classes_load_no_torch():
    names = [name for name in gptrio.__all__ if name.startswith("Flax")]
    assert loaded_by(f"from gptrio import {', '.join(names)}").isdisjoint({"torch", "transformers"})


@pytest.mark.parametrize("module", ["flax_names", "keys", "locate", "msgpack_files", "reader", "report", "shards"])
def test_checkpoints_are_found_matched_and_read_without_torch(module):
    assert loaded_by(f"import gptrio.checkpoint.{module}").isdisjoint({"torch", "jax", "transformers"})


def test_config_and_tokenizers_work_where_torch_is_not_installed():
    code = (
        "from gptrio import AutoTokenizer, GPT2Config, GPT2Tokenizer\n"
        "assert GPT2Config.from_pretrained('gptrio/stdlib-gpt2').n_layer\n"
        "for tokenizer in AutoTokenizer, GPT2Tokenizer:\n"
        "    tokenizer = tokenizer.from_pretrained('gptrio/stdlib-gpt2')\n"
        "    assert tokenizer.decode(tokenizer('def f():').input_ids) == 'def f():'"
    )
    assert loaded_by(code, "torch", "jax").isdisjoint({"torch", "jax", "transformers"})
