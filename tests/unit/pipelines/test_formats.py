"""Inputs and results of pipelines in files and pipes, beside Transformers' classes where those work."""

from __future__ import annotations

import io
import json
import os
import stat
import sys

import numpy
import pytest
from transformers.pipelines.base import PipelineDataFormat as ReferenceFormat

from gptrio import (
    AutoModel,
    AutoModelForQuestionAnswering,
    FileOptionError,
    GptrioWarning,
    InputError,
    OptionError,
    PipelineDataFormat,
    pipeline,
)
from gptrio.pipelines.formats import as_json, check_paths, results
from gptrio.testing import byte_tokenizer, tiny_config

RECORDS = [{"q": "who?", "text": "a, b"}, {"q": "why?", "text": "höher\nund"}]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "in.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    (tmp_path / "in.csv").write_text('q,text\nwho?,"a, b"\nwhy?,"höher\nund"\n', encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize("column", ["text", "q,text", "question=q,context=text"])
def test_files_give_what_transformers_reads(files, kind, column):
    given = (kind, str(files / "out"), str(files / f"in.{kind}"), column)
    ours, reference = PipelineDataFormat.from_str(*given), ReferenceFormat.from_str(*given)
    assert list(ours) == list(reference)
    assert (ours.column, ours.is_multi_columns) == (reference.column, reference.is_multi_columns)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_files_are_written_as_transformers_writes_them(files, kind):
    found = [{"label": "A", "score": 0.5}, {"label": "B, ü", "score": 1e-9}]
    given = (str(files / f"in.{kind}"), "text")
    PipelineDataFormat.from_str(kind, str(files / "ours"), *given).save(found)
    ReferenceFormat.from_str(kind, str(files / "theirs"), *given).save(found)
    ours, theirs = ((files / name).read_text(encoding="utf-8") for name in ("ours", "theirs"))
    assert "ü" in ours, "Transformers escapes it in JSON"
    assert json.loads(ours) == json.loads(theirs) if kind == "json" else ours.split() == theirs.split()


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "pipe"])
@pytest.mark.parametrize("end", ["json", "jsonl", "csv", "other"])
def test_results_are_in_the_format_that_the_name_of_their_file_ends_in(files, kind, end):
    (files / "in.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in RECORDS), encoding="utf-8")
    source = None if kind == "pipe" else str(files / f"in.{kind}")
    reader = PipelineDataFormat.from_str(kind, str(files / f"out.{end}"), source, None if kind == "pipe" else "text")
    if source is not None:
        assert list(reader) == [row["text"] for row in RECORDS]
    reader.save([{"label": "ü", "score": 0.5}, {"label": "B", "score": 1.0}])
    expected = {
        "json": '[{"label": "ü", "score": 0.5}, {"label": "B", "score": 1.0}]',
        "jsonl": '{"label": "ü", "score": 0.5}\n{"label": "B", "score": 1.0}\n',
        "csv": "label,score\nü,0.5\nB,1.0\n",
    }
    written = end if end in expected else "json" if kind == "pipe" else kind
    assert (files / f"out.{end}").read_text(encoding="utf-8") == expected[written]


@pytest.mark.parametrize(("column", "text"), [(None, "a\nb\n"), ("question,context", "who?\tit is\nwhy?\tso\n")])
def test_lines_of_a_pipe_are_what_transformers_reads(monkeypatch, column, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    reference = list(ReferenceFormat.from_str("pipe", None, None, column))
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert list(PipelineDataFormat.from_str("pipe", None, None, column)) == reference


def test_a_field_of_csv_may_be_long(files):
    (files / "long.csv").write_text("text\n" + "x" * 200_000, encoding="utf-8")
    assert [len(text) for text in PipelineDataFormat.from_str("csv", None, str(files / "long.csv"), None)] == [200_000]


def test_a_tab_within_a_single_column_is_text(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("if x:\ty\n"))
    assert list(PipelineDataFormat.from_str("pipe", None, None, None)) == ["if x:\ty\n"]


def test_the_only_column_and_plain_texts_need_no_name(files):
    (files / "one.csv").write_text("text\na\nb\n", encoding="utf-8")
    (files / "one.json").write_text('["a", "b"]', encoding="utf-8")
    for kind in ("csv", "json"):
        assert list(PipelineDataFormat.from_str(kind, None, str(files / f"one.{kind}"), None)) == ["a", "b"]


def test_results_of_a_pipe_are_printed_or_written(files, capsys):
    found = [{"answer": "x", "score": 0.5}]
    PipelineDataFormat.from_str("pipe", None, None, None).save(found)
    assert capsys.readouterr().out == f"{found}\n"
    for name, content in (("out.json", json.dumps(found)), ("out.csv", "answer,score\nx,0.5\n")):
        PipelineDataFormat.from_str("pipe", str(files / name), None, None).save(found)
        assert (files / name).read_text(encoding="utf-8") == content


def test_results_follow_each_other_and_numbers_of_numpy_are_numbers(files):
    reader = PipelineDataFormat.from_str("json", None, str(files / "in.json"), "text")
    assert results(lambda texts, top: [[{"n": len(text)}] * top for text in texts], reader, top=2) == [
        {"n": 4}, {"n": 4}, {"n": 9}, {"n": 9},
    ]  # fmt: skip
    pairs = PipelineDataFormat.from_str("json", None, str(files / "in.json"), "q,text")
    assert results(lambda q, text: {"q": q}, pairs) == [{"q": "who?"}, {"q": "why?"}]
    with pytest.raises(OptionError, match="reads 'inputs', which is none of the columns"):
        results(lambda inputs, **options: {}, pairs)
    assert as_json([{"score": numpy.float32(0.5)}]) == '[{"score": 0.5}]'


def test_an_output_that_exists_is_kept_unless_it_may_be_replaced(files):
    (files / "out.json").write_text("old", encoding="utf-8")
    given = (str(files / "out.json"), str(files / "in.json"), "text")
    with pytest.raises(FileOptionError, match="already exists"):
        PipelineDataFormat.from_str("json", *given)
    with pytest.raises(FileOptionError, match="output '' names no file; give its path"):
        PipelineDataFormat.from_str("json", "", str(files / "in.json"), "text")
    with pytest.raises(OSError, match="already exists"):
        ReferenceFormat.from_str("json", *given)
    PipelineDataFormat.from_str("json", *given, overwrite=True).save([])
    assert (files / "out.json").read_text(encoding="utf-8") == "[]"


@pytest.mark.parametrize(
    ("kind", "content", "column", "message"),
    [
        ("json", '[{"text": "a"}]', "txt", "no column 'txt'; did you mean 'text'"),
        ("csv", "a,b\n1,2\n", None, "several columns; pass column=, of a, b"),
        ("csv", "a,b\n1,2\n3\n", "b", "record 2 .* has no value in column 'b'"),
        ("csv", "a,b\n1,2,3\n", "c", "no column 'c'; pass column=, of a, b"),
        ("csv", 'a,b\n"1\n2",3\n\n4,"5\n6,7\n', "b", "line 5 of input .* opens a quote that is never closed"),
        ("csv", 'a,b\n"1"2,3\n', "b", "line 2 of input .* goes on behind a closed quote"),
        ("json", '[{"text": null}]', None, "no value in column 'text'"),
        ("json", "[{}]", None, "record 1 .* has no columns"),
        ("json", "[" * 100_000, "text", "is JSON that cannot be read: .*recursion"),
        ("json", "{}", "text", "holds a dict; expected a list"),
        ("json", "[", "text", "is not JSON"),
        ("jsonl", '{"text": "a"}\n{', "text", "is not JSON"),
        ("json", "[3]", "text", "record 1 .* is a int"),
        ("pipe", "question only\n", "question,context", "line 1 .* has 1 of 2 columns"),
    ],
)
@pytest.mark.filterwarnings("ignore:record 1")
def test_an_input_of_another_form_says_what_is_missing(tmp_path, kind, content, column, message):
    (tmp_path / "input").write_text(content, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        list(PipelineDataFormat.from_str(kind, None, str(tmp_path / "input"), column))
    with pytest.raises(FileOptionError, match="is not a file"):
        PipelineDataFormat.from_str(kind, None, str(tmp_path / "nowhere"), column)
    with pytest.raises(OptionError, match="expected one of"):
        PipelineDataFormat.from_str("xml", None, None, None)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("in.json", '[{"text": "a", "q": "b"}, {"text": "", "q": "b"}]', "record 2 of"),
        ("in.jsonl", '{"text": "a", "q": "b"}\n\n{"text": "", "q": "b"}\n', r"record 2 \(line 3\) of"),
        ("in.csv", 'text,q\n"a\nb",b\n\n,b\n', r"record 2 \(line 5\) of"),
    ],
)
@pytest.mark.parametrize("column", ["text", "context=text,question=q"])
def test_an_input_that_a_pipeline_refuses_is_named(tmp_path, name, content, place, column):
    (tmp_path / name).write_text(content, encoding="utf-8")
    reader = PipelineDataFormat.from_str(name.rpartition(".")[2], None, str(tmp_path / name), column)
    task, auto = (
        ("feature-extraction", AutoModel) if column == "text" else ("question-answering", AutoModelForQuestionAnswering)
    )
    pipe = pipeline(task, model=auto.from_config(tiny_config()), tokenizer=byte_tokenizer())
    with pytest.raises(InputError, match=f"{place} input '.*': "):
        results(pipe, reader)


def test_a_line_that_is_no_json_and_a_cell_too_much_are_named(tmp_path):
    (tmp_path / "in.jsonl").write_text('"a"\n{"text":\n', encoding="utf-8")
    with pytest.raises(OptionError, match=r"line 2 of input '.*' is not JSON: Expecting value at column 9"):
        PipelineDataFormat.from_str("jsonl", None, str(tmp_path / "in.jsonl"), "text")
    (tmp_path / "in.csv").write_text("text,q\na,b\nc, d,e\n", encoding="utf-8")
    reader = PipelineDataFormat.from_str("csv", None, str(tmp_path / "in.csv"), "text")
    with pytest.warns(
        GptrioWarning, match=r"record 2 \(line 3\) of input '.*' has more cells than the columns text, q"
    ):
        assert list(reader) == ["a", "c"]


@pytest.mark.parametrize(("kind", "text"), [("json", "[]\n"), ("jsonl", ""), ("csv", "")])
def test_no_results_are_no_lines(files, capsys, kind, text):
    (files / "none").write_text("[]" if kind == "json" else "", encoding="utf-8")
    reader = PipelineDataFormat.from_str(kind, None, str(files / "none"), None)
    reader.save(list(reader))
    assert capsys.readouterr().out == text


@pytest.mark.skipif(sys.platform == "win32", reason="no device files")
def test_pipes_and_devices_are_no_files_that_exist_already():
    check_paths("/dev/null", "/dev/null", overwrite=False)
    PipelineDataFormat.from_str("pipe", "/dev/null", "/dev/null", None).save([])
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_an_output_that_cannot_be_written_is_named_before_anything_is_computed(tmp_path, monkeypatch):
    with pytest.raises(FileOptionError, match=r"lies in no folder that exists; make .*none"):
        check_paths(None, str(tmp_path / "none" / "out.json"), overwrite=False)
    with pytest.raises(FileOptionError, match="is a folder; give a file"):
        check_paths(None, str(tmp_path), overwrite=True)
    check_paths(None, str(tmp_path / "out.json"), overwrite=False)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(FileOptionError, match="may not be written to"):
        check_paths(None, str(tmp_path / "out.json"), overwrite=False)
