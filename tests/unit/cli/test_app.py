"""The command group: version, help, and mistakes in the command line."""

from __future__ import annotations

import pytest

import gptrio
from gptrio.cli.app import COMMANDS, run


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"gptrio {gptrio.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments, capsys):
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: gptrio {name}" in shown and "--help" in shown and "<bool>" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zebra"], "No such command 'zebra'; see 'gptrio --help'"),
        (["generate", "--fast", "x"], "No such option: --fast"),
        (["train", "gpt2", "a.txt", "--tsk", "lm"], "No such option: --tsk (did you mean '--task'?); see"),
        (["generate", "--tempreture", "1", "x"], "No such option: --tempreture (did you mean '--temperature'?); see"),
        (["generate", "--seed", "x", "y"], "'--seed': 'x' is no integer; see"),
        (["generate", "--top-p", "x", "y"], "'--top-p': 'x' is no number; see"),
        (["--json", "info"], "No such option: --json; options follow the command, as in: gptrio info --help; see"),
        (["tokenize", "a", "b"], "Unexpected argument 'b'; see"),
        (["gen", "x"], "No such command 'gen' (did you mean 'generate'?); see 'gptrio --help'"),
        (["generate", "--top-k"], "'--top-k' requires an argument; see 'gptrio generate --help'"),
        (["generate", "--top-k", "many", "x"], "--top-k"),
        (
            ["generate", "--max-new-tokens", "0", "x"],
            "'-n': 0 is impossible: it must be greater than or equal to 1",
        ),
        (["generate", "--dtype", "int3", "x"], "--dtype"),
        (
            ["generate", "--quantize", "int3", "x"],
            "'--quantize': 'int3' is not one of 'int8', 'int4', 'nf4', 'fp4'",
        ),
        (["generate", "--file", "/not/there"], "'/not/there' does not exist"),
        (["score", "--html", "/not/there/page.html"], "'--html': there is no folder /not/there; make it first"),
        (["compare", "a", "b", "--html", "/"], "'--html': file '/' is a directory"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments, message, capsys):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gptrio: ")
    assert message in err
    assert err.count("\n") == 1
    assert "--help'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "--top", "258"], "--top 258 is impossible; expected 0 to 257"),
        (["ppl", "--stride", "65"], "--stride 65 is impossible; expected 1 to 64"),
    ],
)
def test_an_option_that_does_not_fit_the_model_is_one_line_and_code_2(
    arguments, message, model_folder, tmp_path, capsys
):
    file = tmp_path / "text.txt"
    file.write_text("The cat sat.", encoding="utf-8")
    assert run([*arguments, "--model", model_folder, str(file)]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err


def test_options_have_hyphens_or_underscores_as_in_transformers(model_folder, capsys):
    assert run(["generate", "a", "--model", model_folder, "--max_new_tokens", "1", "--greedy"]) == 0
    assert run(["generate", "a", "--model", model_folder, "-n", "1", "--overflow", "truncate_left", "--greedy"]) == 0
    assert capsys.readouterr().err == ""


MODEL_COMMANDS = (
    ["generate", "x", "-m"],
    ["chat"],
    ["run", "--input", "x.csv", "-m"],
    ["tokenize", "x", "-m"],
    ["info"],
    ["verify"],
    ["download"],
    ["eval", "--tasks", "x"],
)


@pytest.mark.parametrize("arguments", MODEL_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("file", ["text.txt", "config.json", "model.safetensors"])
def test_a_file_in_place_of_a_model_is_named(arguments, file, tmp_path, capsys):
    (tmp_path / file).write_text("{}", encoding="utf-8")
    assert run([*arguments, str(tmp_path / file)]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "is a file; give the folder that holds it, or the name of a hub repository" in captured.err


def test_a_file_that_may_not_be_read_is_named(tmp_path, capsys, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "secret.txt")

    monkeypatch.setattr("gptrio.cli.tokenize.read_text", refuse)
    assert run(["tokenize"]) == 1
    assert capsys.readouterr().err == "gptrio: secret.txt: permission denied; check the path and its permissions\n"


@pytest.mark.parametrize("arguments", (["--help"], ["eval", "--help"]))
def test_help_shows_square_brackets(arguments, capsys):
    assert run(arguments) == 0
    assert "'gptrio[eval]'" in capsys.readouterr().out
