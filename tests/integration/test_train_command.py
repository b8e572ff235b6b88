"""`gptrio train`, as a shell runs it: each task from a file to a model that the other commands take."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gptrio.cli.app import run
from gptrio.cli.train import parse_columns, plan
from gptrio.errors import OptionError
from gptrio.testing import tiny_config
from gptrio.testing.tiny import byte_tokenizer
from gptrio.training.recipe import Recipe, Run
from tests.unit.training.processes import run_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model over bytes."""
    from gptrio import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = byte_tokenizer()
    config = tiny_config("gpt2", vocab_size=len(tokenizer), n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_language_model_learns_a_text_and_writes_its_curve(model: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.txt").write_text("abcabcabc " * 200)
    out = tmp_path / "out"
    options = ["--lr", "3e-3", "--epochs", "4", "--batch", "4", "--eval", str(tmp_path / "a.txt")]
    assert run(["train", model, str(tmp_path / "a.txt"), "--out", str(out), *options]) == 0
    printed = capsys.readouterr()
    assert "are trained" in printed.out and "32 rows" in printed.out and "updates" in printed.out
    assert "of 32: loss" in printed.err and "tokens a second" in printed.err
    assert (out / "loss.svg").read_text().startswith("<svg") and (out / "model.safetensors").exists()
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert evaluated[-1] < 0.6 * history[0]["loss"]
    assert len(evaluated) == 4  # the model that is kept is not evaluated once more


def test_texts_are_classified_and_the_pipeline_takes_the_model(model: str, tmp_path: Path, capsys: Any) -> None:
    rows = [{"stars": n % 2, "review": ("bad", "good")[n % 2] + "!" * (n % 4)} for n in range(32)]
    data = write_lines(tmp_path / "a.jsonl", rows)
    options = ["--task", "classify", "--column", "text=review,label=stars", "--lr", "5e-3", "--epochs", "8", "--json"]
    assert run(["train", model, data, "--eval", data, "--out", str(tmp_path / "out"), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["eval_accuracy"] == 1.0
    losses = [entry["eval_loss"] for entry in found["log_history"] if "eval_loss" in entry]
    assert found["metrics"]["eval_loss"] == min(losses) and len(losses) == 8
    assert (
        run(["run", "--task", "text-classification", "--model", found["out"], "--input", data, "--column", "review"])
        == 0
    )
    labels = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    assert labels == [str(row["stars"]) for row in rows]


def test_words_and_answers(model: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.conll").write_text("in O\nParis B-place\n\nby O\nRome B-place\n\n" * 8)
    options = ["--task", "tokens", "--lr", "5e-3", "--epochs", "6", "--json", "--eval", str(tmp_path / "a.conll")]
    assert run(["train", model, str(tmp_path / "a.conll"), "--out", str(tmp_path / "tags"), *options]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["eval_f1"] == 1.0
    row = {"question": "who?", "context": "it was Bob", "answers": {"text": ["Bob"], "answer_start": [7]}}
    none = {"question": "why?", "context": "it was Bob", "answers": {"text": [], "answer_start": []}}
    data = write_lines(tmp_path / "qa.jsonl", [row, none] * 16)
    options = ["--task", "qa", "--lr", "5e-3", "--epochs", "16", "--json", "--eval", data]
    assert run(["train", model, data, "--out", str(tmp_path / "qa"), *options]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["eval_exact_match"] == metrics["eval_f1"] == 1.0
    options = ["--task", "qa", "--steps", "1", "--json", "--out", str(tmp_path / "without")]  # an evaluation
    assert run(["train", model, data, *options]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["train_loss"] > 0


def test_an_adapter_is_trained_and_merged(model: str, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("peft")
    data = write_lines(tmp_path / "a.jsonl", [{"text": f"text {n} of many"} for n in range(24)])
    options = ["--lora", "2", "--pack", "--steps", "4", "--batch", "2"]
    assert run(["train", model, data, "--out", str(tmp_path / "adapter"), *options]) == 0
    tokens = sum(len(f"text {n} of many") + 1 for n in range(24))  # with their ends, and without padding
    printed = capsys.readouterr().out
    assert "LoRA of rank 2" in printed and f", {tokens} tokens\n" in printed
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()
    assert run(["merge", model, str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged/model.safetensors").exists()


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("tokens", {"tokens": ["in", "Rome"], "tags": ["O", "B-place"]}),
        ("qa", {"question": "who?", "context": "it was Bob", "answers": {"text": ["Bob"], "answer_start": [7]}}),
    ],
)
def test_an_adapter_has_the_whole_head_of_its_task(model: str, task: str, row: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    import gptrio

    data, out, merged = write_lines(tmp_path / "a.jsonl", [row] * 16), tmp_path / "adapter", tmp_path / "merged"
    options = ["--task", task, "--lora", "2", "--lr", "1e-2", "--epochs", "8", "--eval", data, "--out", str(out)]
    assert run(["train", model, data, *options]) == 0
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["log_history"][-2]["eval_f1"] == 1.0
    assert run(["merge", model, str(out), "--out", str(merged)]) == 0
    head = {"tokens": "classifier", "qa": "qa_outputs"}[task]
    kinds = {"tokens": gptrio.AutoModelForTokenClassification, "qa": gptrio.AutoModelForQuestionAnswering}
    trained = getattr(kinds[task].from_pretrained(merged), head).weight
    assert trained.abs().sum() > 0 and head in json.loads((out / "adapter_config.json").read_text())["modules_to_save"]


def test_ctrl_c_saves_and_resume_goes_on_as_if_nothing_had_happened(model: str, tmp_path: Path, capsys: Any) -> None:
    from safetensors.torch import load_file

    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    command = ["train", model, str(tmp_path / "a.txt"), "--batch", "2", "--steps", "60", "--lr", "1e-3", "--out"]
    assert run([*command, str(tmp_path / "whole")]) == 0
    arguments = [sys.executable, "-m", "gptrio", *command, str(tmp_path / "cut")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    while "update 15 " not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.communicate()
    (checkpoint,) = sorted((tmp_path / "cut").glob("checkpoint-*"))[-1:]
    assert 15 <= int(checkpoint.name.partition("-")[2]) < 60
    capsys.readouterr()
    assert run([*command, str(tmp_path / "cut"), "--resume"]) == 0
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all((whole[name] == cut[name]).all() for name in whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "classify"], "there is no column 'label' among 'text'"),
        (["--task", "classify", "--pack", "--column", "label=text"], "--pack has no effect on task 'classify'"),
        (["--column", "text"], "--column text is no list of parts and columns"),
        (["--column", "body=text"], "has no 'body', only text"),
        (["--epochs", "inf"], "--epochs inf is not possible; expected a finite number"),
        (["--lr", "inf"], "--lr inf is not possible; expected a finite number"),
        (["--seed", str(2**32)], f"--seed {2**32} is not possible; expected 0 to {2**32 - 1}"),
        (["--length", "65"], "--length 65 is more than the model's context of 64 tokens"),
        (["--resume"], "holds no checkpoint to resume from"),
    ],
)
def test_what_does_not_fit_is_named(model: str, options: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    data = write_lines(tmp_path / "a.jsonl", [{"text": "a text"}])
    assert run(["train", model, data, "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "rows", "held_out", "message"),
    [
        (
            "classify",
            [{"text": "a", "label": 0}, {"text": "", "label": 1}],
            None,
            "line 2 of .*a.jsonl: the text is empty",
        ),
        ("classify", [{"text": "a", "label": 0}] * 2, None, "all examples have the label '0'"),
        (
            "classify",
            [{"text": "a", "label": 0}, {"text": "b", "label": 1}],
            [{"text": "a", "label": 0}, {"text": "a", "label": 2}],
            "line 2 of .*b.jsonl: label '2' is none of the 2 that the model learns: '0', '1'",
        ),
        ("tokens", [{"tokens": ["a", "b"], "tags": ["O"]}], None, "line 1 of .*a.jsonl: 2 words, and 1 tag"),
        (
            "qa",
            [{"question": "who? " * 9, "context": "it is " * 9, "answers": {"text": [], "answer_start": []}}],
            None,
            "line 1 of .*a.jsonl: the question has .* tokens",
        ),
    ],
)
def test_the_record_that_does_not_fit_is_named(
    model: str, task: str, rows: list[Any], held_out: list[Any] | None, message: str, tmp_path: Path, capsys: Any
) -> None:
    command = ["train", model, write_lines(tmp_path / "a.jsonl", rows), "--task", task, "--out", str(tmp_path / "out")]
    evaluation = [] if held_out is None else ["--eval", write_lines(tmp_path / "b.jsonl", held_out)]
    assert run([*command, *evaluation, "--length", "32"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_another_run_is_left_alone(model: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out/checkpoint-3").mkdir(parents=True)
    data = write_lines(tmp_path / "a.jsonl", [{"text": "a text"}])
    assert run(["train", model, data, "--out", str(tmp_path / "out")]) == 2
    assert "holds checkpoints of a run; go on with --resume" in capsys.readouterr().err
    assert run(["train", model, data, "--out", f"{model}/."]) == 2
    assert "is the folder of the model, whose files would be lost" in capsys.readouterr().err
    assert run(["train", model, data, "--out", data]) == 2
    assert "a.jsonl is a file; give a folder for --out" in capsys.readouterr().err


def test_the_plan_counts_the_rows_of_all_processes(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    data = write_lines(tmp_path / "a.jsonl", [{"text": "a text", "label": n % 2} for n in range(21)])
    recipe = Recipe(model, Path(data), tmp_path / "out", task="classify", batch=2, accumulate=2, epochs=2)
    assert (Run(recipe).updates, Run(recipe).rows) == (12, 4)
    assert Run(recipe).tokens_of_update == 21 * 6 / 6
    much = Run(replace(recipe, batch=99, learning_rate=0.0))
    assert (much.rows, much.tokens_of_update, much.learning_rate) == (21, 21 * 6, 0.0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = Run(recipe)
    assert (shared.updates, shared.rows) == (6, 8)  # eleven batches, of which rank 0 has six
    assert "processes  2, each with the whole model; rows are divided among them" in plan(shared)


@pytest.mark.long  # two processes
def test_two_processes_train_as_one_does_and_the_first_prints(model: str, tmp_path: Path) -> None:
    model = str(shutil.copytree(model, tmp_path / "model"))
    config = json.loads(Path(model, "config.json").read_text())
    without = {name: 0.0 for name in config if name.endswith(("pdrop", "dropout"))}  # each rank drops other values
    Path(model, "config.json").write_text(json.dumps({**config, **without}))
    data = write_lines(tmp_path / "a.jsonl", [{"text": "abc"[n % 3] * (1 + n % 5), "label": n % 3} for n in range(21)])
    options = ["train", model, data, "--task", "classify", "--eval", data, "--lr", "1e-3", "--batch", "2"]
    options += ["--epochs", "2"]
    first, second = run_ranks(command_line, [*options, "--out", str(tmp_path / "two")])
    assert first[0] == second[0] == 0
    assert "updates    12 of 4 rows" in first[1] and "loss.svg" in first[1] and "of 12: loss" in first[2]
    assert second[1] == "" and "loss" not in second[2]
    alone = command_line([*options, "--out", str(tmp_path / "one"), "--accumulate", "2"])
    assert alone[0] == 0
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("two", "one")]
    for one, other in zip(*(state["log_history"] for state in states), strict=True):
        for name in {"loss", "eval_loss", "grad_norm", "learning_rate", "step"} & set(other):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1.01e-4), name
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("two", "one")]
    for name, value in weights[1].items():
        np.testing.assert_allclose(weights[0][name], value, rtol=0, atol=1e-4, err_msg=name)
    again = run_ranks(command_line, [*options, "--out", str(tmp_path / "two"), "--resume"])
    assert again[0][0] == again[1][0] == 0 and again[1][1] == ""


def command_line(arguments: list[str]) -> tuple[int, str, str]:
    """The status of a command, and what it printed on standard output and error."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error:
        status = run(arguments)
    return status, out.getvalue(), error.getvalue()


def test_columns_are_parsed() -> None:
    assert parse_columns("text=review, label=stars") == {"text": "review", "label": "stars"}
    assert parse_columns(None) == {}
    with pytest.raises(OptionError, match="write it as in text=review"):
        parse_columns("text=")
