"""`gptrio eval` reads tasks, and prints a table; the harness itself is in tests/integration/test_harness.py."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from gptrio.cli.app import run
from gptrio.cli.eval import numbers, read_tasks, show
from gptrio.errors import OptionError


def test_tasks_are_names_yaml_files_and_local_ones(tmp_path):
    (tmp_path / "own.yaml").write_text('include: other\ntask: "own_task"\n')
    names, files, folders = read_tasks(
        f"lambada_openai,{tmp_path / 'own.yaml'},blimp_local=a.jsonl", [tmp_path / "more"]
    )
    assert names == ["lambada_openai", "own_task", "blimp_local"]
    assert files == {"blimp_local": "a.jsonl"}
    assert folders == [str(tmp_path / "more"), str(tmp_path)]


@pytest.mark.parametrize(("tasks", "message"), [(",", "names no task"), ("a.yaml", "no file a.yaml")])
def test_tasks_that_are_not_there_are_named(tasks, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=message):
        read_tasks(tasks, [])
    (tmp_path / "b.yaml").write_text("group: x\n")
    with pytest.raises(OptionError, match="no line 'task: NAME'"):
        read_tasks("b.yaml", [])
    (tmp_path / "c.yaml").mkdir()
    with pytest.raises(OptionError, match=r"c\.yaml is a folder, not a file"):
        read_tasks("c.yaml", [])


@pytest.mark.parametrize(("line", "message"), [(None, "which is not there"), ("[1]", "line 1 of .* lacks text")])
def test_a_wrong_file_of_a_task_is_named_before_a_missing_harness(line, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    if line:
        (tmp_path / "data").write_text(line)
    assert run(["eval", "x", "--tasks", f"lambada_local={tmp_path / 'data'}"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and "pip install" not in error


@pytest.mark.parametrize("error", ("sys.stderr", "None"))
def test_bars_of_other_libraries_are_silent_without_a_terminal(error):
    program = (
        f"import sys; from gptrio.cli.eval import quiet_harness; sys.stderr, kept = {error}, sys.stderr; "
        "quiet_harness(False); sys.stderr = kept; from tqdm import tqdm; print(list(tqdm([1, 2])))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[1, 2]\n", "")


def test_a_table_has_a_line_for_each_metric_and_a_column_for_each_revision(capsys):
    metrics = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc,strict": 0.25, "sample_len": 4}
    assert numbers(metrics) == {"acc": 0.5, "acc,strict": 0.25}
    show({"step1": {"task": {"acc": 0.5}}, "main": {"task": {"acc": 12.25}}})
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown] == [
        ["task", "metric", "step1", "main"],
        ["task", "acc", "0.5000", "12.2500"],
    ]
    assert len(set(map(len, shown))) == 1


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the harness is installed")
def test_a_missing_harness_is_named_with_its_extra(capsys):
    assert run(["eval", "x", "--tasks", "lambada_openai"]) == 1
    assert "pip install 'gptrio[eval]'" in capsys.readouterr().err
