"""`gptrio run` as a shell runs it."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.commands.run import RunCommand
from transformers.pipelines import PipelineDataFormat as ReferenceFormat

import gptrio as library
from gptrio import pipeline
from gptrio.testing import byte_tokenizer, tiny_config
from tests.contract.families import FAMILIES
from tests.integration.test_command_line import gptrio, in_process
from tests.parity.pipelines import assert_alike

SHORT = ("--max-new-tokens", "3", "--greedy")
PROMPTS = ["import os", "def main("]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    generator = pipeline("text-generation", "gptrio/stdlib-gpt2")
    return [generator(text, max_new_tokens=3, do_sample=False)[0]["generated_text"] for text in PROMPTS]


@pytest.fixture
def reader(tmp_path) -> str:
    """A folder with a tiny model for question answering."""
    folder = str(tmp_path / "reader")
    FAMILIES[0].build("ForQuestionAnswering").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_help_teaches_by_example():
    done = in_process("run", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert 'echo "def f(x):" | gptrio run --task text-generation' in done.stdout
    for option in ("--task", "--model", "--input", "--output", "--column", "--format", "--device", "--overwrite"):
        assert option in done.stdout


def test_a_pipe_gives_a_list_as_in_transformers():
    done = gptrio("run", "--task", "text-generation", "--model", "gptrio/stdlib-gpt2", *SHORT, input="def f(x):\n")
    assert (done.returncode, done.stderr) == (0, "")
    (result,) = ast.literal_eval(done.stdout)
    assert result["generated_text"].startswith("def f(x):\n")
    seeded = [in_process("run", "-n", "5", "--seed", "3", "--json", input="x\ny\n").stdout for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert len(json.loads(seeded[0])) == 2


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_files_with_a_column(tmp_path, expected, kind):
    source, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    rows = [{"n": "1", "prompt": PROMPTS[0]}, {"n": "2", "prompt": PROMPTS[1]}]
    csv_text = "n,prompt\n" + "".join(f"{row['n']},{row['prompt']}\n" for row in rows)
    source.write_text(json.dumps(rows) if kind == "json" else csv_text, encoding="utf-8")
    arguments = ("run", "--input", str(source), "--output", str(target), "--column", "prompt", *SHORT)
    done = in_process(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with open(target, encoding="utf-8", newline="") as file:
        found = json.load(file) if kind == "json" else list(csv.DictReader(file))
    assert [row["generated_text"] for row in found] == expected

    again = in_process(*arguments)
    assert (again.returncode, again.stdout) == (2, "")
    assert "already exists; pass --overwrite" in again.stderr
    assert in_process(*arguments, "--overwrite").returncode == 0


def test_json_lines_and_characters_as_they_are(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "größer"}\n{"text": "東"}\n', encoding="utf-8")
    source = ("run", "--input", str(tmp_path / "in.jsonl"), *SHORT)
    assert in_process(*source, "--output", str(tmp_path / "out.csv")).returncode == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["generated_text"][:1] for row in rows] == ["g", "東"]
    for printed in (in_process(*source).stdout, in_process(*source, "--json").stdout):
        assert "größer" in printed and "東" in printed
    assert [json.loads(line) for line in in_process(*source).stdout.splitlines()] == json.loads(printed)
    escaped = gptrio(*source, "--json", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert json.loads(escaped.stdout) == json.loads(printed) and "\\u6771" in escaped.stdout


def test_several_columns_are_arguments_of_the_pipeline(tmp_path, reader):
    (tmp_path / "qa.csv").write_text("q,text\nwho?,it is me\n", encoding="utf-8")
    given = ("--column", "question=q,context=text", "--input", str(tmp_path / "qa.csv"), "--json", "top_k=2")
    done = in_process("run", "--task", "question-answering", "--model", reader, *given)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == pipeline("question-answering", reader)(
        question="who?", context="it is me", top_k=2
    )
    piped = in_process("run", "--model", reader, input="who?\tit is me\n")  # the task is inferred
    assert (piped.returncode, piped.stderr) == (0, "")
    assert set(ast.literal_eval(piped.stdout)[0]) == {"answer", "score", "start", "end"}


CLASSIFIER = "ForSequenceClassification"
TASKS = {  # task -> class, fields of its configuration, arguments of the call
    "text-generation": ("LMHeadModel", {}, {"max_new_tokens": 3, "do_sample": False}),
    "feature-extraction": ("Model", {}, {}),
    "sentiment-analysis": (CLASSIFIER, {"num_labels": 2}, {"top_k": 2}),
    "zero-shot-classification": (
        CLASSIFIER,
        {"id2label": {0: "no", 1: "entailment"}},
        {"candidate_labels": ["a", "b"]},
    ),
    "ner": ("ForTokenClassification", {"id2label": {0: "O", 1: "B-A", 2: "I-A"}}, {"aggregation_strategy": "simple"}),
    "question-answering": ("ForQuestionAnswering", {}, {"top_k": 2}),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Transformers
@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_what_the_command_of_transformers_writes(task, tmp_path, monkeypatch):
    kind, fields, arguments = TASKS[task]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = tiny_config("gpt2", initializer_range=0.3, pad_token_id=0, **fields)
    getattr(library, f"GPT2{kind}")(config).save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    columns = "question=q,context=c" if task == "question-answering" else "c"
    rows = [{"q": "who?", "c": 'Größe, "a"\nb'}, {"q": "wo?", "c": "x\u2028y"}]
    Path("in.json").write_text(json.dumps(rows), encoding="utf-8")
    with open("in.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["q", "c"])
        writer.writeheader()
        writer.writerows(rows)
    expected: list[Any] = []
    reader = ReferenceFormat.from_str("json", None, "in.json", columns)
    reader.save = expected.extend
    reference = partial(transformers.pipeline(task, "model"), **arguments)
    reference.binary_output = False
    RunCommand(reference, reader).run()

    command = ("run", "--task", task, "--model", "model", "--column", columns)
    command += tuple(f"{name}={json.dumps(value)}" for name, value in arguments.items())
    done = in_process(*command, "--input", "in.json", "--output", "out.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    printed = in_process(*command, "--input", "-", "--format", "csv", "--json", input=Path("in.csv").read_text("utf-8"))
    for text in (Path("out.json").read_text(encoding="utf-8"), printed.stdout):
        assert_alike(json.loads(text), expected)
    as_csv = in_process(*command, "--input", "in.csv")
    if task == "feature-extraction":
        assert as_csv.returncode == 2 and "write JSON" in as_csv.stderr
    else:
        assert next(csv.DictReader(io.StringIO(as_csv.stdout))).keys() == expected[0].keys()


@pytest.mark.parametrize("name", ["in.txt", "in.pipe"])
def test_a_text_in_each_line_of_a_file_is_as_in_a_pipe(name, tmp_path):
    (tmp_path / name).write_text("import os\ndef f(x):\n", encoding="utf-8")
    options = ("--task", "text-generation", "--greedy", "-n", "2", "--json")
    found = in_process("run", *options, "--input", str(tmp_path / name))
    assert found.returncode == 0 and len(json.loads(found.stdout)) == 2
    assert found.stdout == in_process("run", *options, input="import os\ndef f(x):\n").stdout


def test_the_only_column_needs_no_name(tmp_path):
    from gptrio import GPT2ForTokenClassification

    GPT2ForTokenClassification(tiny_config(vocab_size=len(byte_tokenizer()))).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)  # of a pipeline whose input is called "sequences"
    options = ("run", "--task", "ner", "--model", str(tmp_path), "--format", "jsonl", "--json")
    line = '{"words": "in Rome"}\n'
    assert in_process(*options, input=line).stdout == in_process(*options, "--column", "words", input=line).stdout != ""
    assert "several columns; pass" not in (several := in_process(*options, input='{"a": "x", "b": "y"}\n')).stderr
    assert several.returncode == 2 and "no column 'sequences'; pass --column, of a, b" in several.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "text-generatio"), "did you mean 'text-generation'"),
        (("--task", "ner"), "pass --model, a folder"),
        (("--input", "nowhere.csv"), "'nowhere.csv' is not a file"),
        (("--input", "texts.xml"), "give --format json, jsonl, csv or pipe"),
        (("--device", "99"), "--device cuda:99: torch sees"),
        (("--device", "xpu"), "--device xpu cannot be used here ("),
        (
            ("batch_size=-1", "--format", "csv", "--column", "text"),
            "batch_size=-1 is no number of rows; give one from 1 on",
        ),
        (("max_new_tokens=x",), "--max-new-tokens x has the wrong type; expected a whole number or none"),
        (("do_sample=maybe",), "do_sample='maybe' has the wrong type; expected true or false"),
        (("-n", "3", "max_new_tokens=4"), "is given twice, as an option and as name=value"),
        (("--format", "csv", "--column", "txt"), "no column 'txt'; did you mean 'text'? pass --column"),
        (("--greedy", "--temperature", "0.5"), "--greedy always takes the likeliest token"),
        (("--task", "feature-extraction", "--greedy"), "have no effect on task 'feature-extraction'"),
        (("top_kk=3",), "did you mean 'top_k'"),
        (("top_k",), "write it as name=value"),
        (("--format", "xml"), "--format"),
    ],
)
def test_an_impossible_command_line_is_one_line_and_code_2(arguments, message):
    done = in_process("run", *arguments, input="text,n\na,1\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gptrio: ") and message in done.stderr and done.stderr.count("\n") == 1
