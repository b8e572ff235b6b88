"""Local tasks are written for files of the user, and name what a file lacks."""

from __future__ import annotations

import json

import pytest

from gptrio.errors import InputError
from gptrio.scoring.local_tasks import LOCAL_TASKS, write_tasks
from gptrio.scoring.tasks.functions import accuracy_by_paradigm, perplexities


def test_a_task_names_the_file_and_its_paradigms(tmp_path):
    rows = [{"UID": name, "sentence_good": "a", "sentence_bad": "b"} for name in ("two", "one", "two")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_tasks(tmp_path, {"blimp_local": tmp_path / "pairs.jsonl"})
    written = (tmp_path / "blimp_local.yaml").read_text()
    assert json.dumps(str(tmp_path / "pairs.jsonl")) in written
    assert written.index('metric: "acc_one"') < written.index('metric: "acc_two"') < written.index("metadata:")
    assert (tmp_path / "functions.py").is_file()


def test_a_json_string_may_hold_a_separator_of_lines(tmp_path):
    pair = {"UID": "one", "sentence_good": "a\u2028b\x85c", "sentence_bad": "b"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair, ensure_ascii=False) + "\n", encoding="utf-8")
    write_tasks(tmp_path, {"blimp_local": tmp_path / "pairs.jsonl"})
    assert 'metric: "acc_one"' in (tmp_path / "blimp_local.yaml").read_text()


def test_a_plain_text_is_one_document(tmp_path):
    (tmp_path / "book.txt").write_text("Call me Ishmael.\n\nSome years ago")
    write_tasks(tmp_path, {"wikitext_local": tmp_path / "book.txt"})
    written = (tmp_path / "wikitext_local.yaml").read_text()
    assert "dataset_path: text\n" in written
    assert "  sample_by: document\n" in written


@pytest.mark.parametrize("task", LOCAL_TASKS)
@pytest.mark.parametrize("line", ('{"other": "x"}', "no json", "[1]", "3"))
def test_a_line_without_the_fields_is_named(tmp_path, task, line):
    (tmp_path / "file.jsonl").write_text(line)
    with pytest.raises(InputError, match=f"line 1 of .*file.jsonl lacks .*{task} needs JSON lines"):
        write_tasks(tmp_path, {task: tmp_path / "file.jsonl"})


def test_a_missing_file_and_an_unknown_task_are_named(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        write_tasks(tmp_path, {"lambada_local": tmp_path / "none.jsonl"})
    with pytest.raises(InputError, match="which is a folder; expected JSON lines"):
        write_tasks(tmp_path, {"lambada_local": tmp_path})
    with pytest.raises(InputError, match="lambada_local, blimp_local, wikitext_local"):
        write_tasks(tmp_path, {"lambada": tmp_path / "none.jsonl"})


def test_results_of_documents():
    assert accuracy_by_paradigm({"UID": "x"}, [(-1.0, False), (-2.0, True)]) == {"acc": 1.0, "acc_x": 1.0}
    assert perplexities({"text": "où est"}, [-3.0]) == {
        "word_perplexity": (-3.0, 2),
        "byte_perplexity": (-3.0, 7),
        "bits_per_byte": (-3.0, 7),
    }


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "file.jsonl").write_text('{"text": "M\u00fcnchen"}', encoding="latin-1")
    with pytest.raises(InputError, match=r"file.jsonl is not UTF-8 text \(byte 11\)"):
        write_tasks(tmp_path, {"lambada_local": tmp_path / "file.jsonl"})
