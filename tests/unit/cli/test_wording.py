"""Messages of the library name options of the command line, not arguments of Python."""

from __future__ import annotations

import ast
import re

import pytest
import typer

from gptrio.cli.app import COMMANDS, app
from gptrio.cli.wording import option_names, translate
from tests.architecture.source import PACKAGE

OPTIONS = option_names(typer.main.get_command(app).get_command(None, "generate").params)

# where the errors and warnings of a command come from
ROOMS = (
    "hub.py",
    "config",
    "checkpoint",
    "tokenization/files.py",
    "tokenization/auto.py",
    "tokenization/vocabulary.py",
    "models/base/loading.py",
    "models/auto.py",
    "nn/attention.py",
    "nn/flash.py",
    "quantization",
    "generation/options",
    "generation/setup.py",
    "generation/stop_strings.py",
)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("top_k=3 without do_sample=True", "--top-k 3 with --greedy"),
        ("top_p=1.5 is out of range", "--top-p 1.5 is out of range"),
        ("or pass overflow='truncate_left' to drop", "or pass --overflow truncate_left to drop"),
        ("pass a smaller max_new_tokens, or", "pass a smaller --max-new-tokens, or"),
        ("temperature=0 with do_sample=True; pass do_sample=False", "--temperature 0 without --greedy; pass --greedy"),
        ("stop_strings=[''] must be strings", "--stop [''] must be strings"),
        ("load it with dtype=torch.bfloat16, or use 'sdpa'", "load it with --dtype bfloat16, or use 'sdpa'"),
        ("attn_implementation='x' is not known", "--attn-implementation x is not known"),
        ("a private repository needs token=...", "a private repository needs HF_TOKEN in the environment"),
        ("its temperature and seed", "its temperature and seed"),
        ("config.top_k and 'top_k' of /home/top_k/model", "config.top_k and 'top_k' of /home/top_k/model"),
        ("num_return_sequences=2 is more than num_beams=1", "--num-return-sequences 2 is more than num_beams=1"),
        ("has no class for model_type='x'; it has: a, b (AutoModel.register adds your own)",
         "has no class for model_type='x'; it has: a, b"),
    ],
)  # fmt: skip
def test_arguments_become_options(message, expected):
    assert translate(message, OPTIONS) == expected


def templates():
    """Every text of an error or a warning in these rooms, its values in braces."""
    for room in ROOMS:
        path = PACKAGE / room
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                calls = isinstance(node, ast.Call) and re.search(r"warn|Error$", ast.unparse(node.func))
                for text in filter(None, map(text_of, node.args if calls else ())):
                    yield f"{file.relative_to(PACKAGE)}:{node.lineno}", text


def text_of(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{x}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_no_text_that_a_command_can_show_advises_an_argument_that_is_an_option():
    names = {name for name in OPTIONS if "_" in name} | {"do_sample"}
    arguments = re.compile(rf"(?<![\w.'\"-])(?:{'|'.join(names)})\b(?!['\".])|\b(?:dtype|device|token|quantize)=")
    found = list(templates())
    assert len(found) > 100
    assert [place for place, text in found if arguments.search(translate(text, OPTIONS))] == []
    assert len([place for place, text in found if arguments.search(text)]) > 10, "there were some to translate"


def test_options_are_found_for_every_command():
    for name in COMMANDS:
        params = typer.main.get_command(app).get_command(None, name).params
        assert set(option_names(params).values()) <= {option for param in params for option in param.opts}
    assert OPTIONS["max_new_tokens"] == "--max-new-tokens" and OPTIONS["stop_strings"] == "--stop"
