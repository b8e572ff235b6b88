"""`gptrio chat` in a pipe, and driven through a pseudo-terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gptrio import GPT2LMHeadModel
from gptrio.generation.chat import PLAIN_TEMPLATE
from gptrio.testing import byte_tokenizer, tiny_config
from tests.integration.test_command_line import gptrio, in_process
from tests.stub_hub import StubHub
from tests.terminal import Screen, own_environment

GREEDY = ("do_sample=False", "max_new_tokens=6")


def chat(*arguments: str, input: str, command: Any = in_process) -> subprocess.CompletedProcess[str]:
    return command("chat", *arguments, input=input, env=own_environment())


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_chat_in_a_terminal(folder):
    screen = Screen("chat", *GREEDY)
    assert "!help lists commands" in screen.wait_for("> ")
    screen.type("import os\n")
    assert "no chat template" in screen.wait_for(r"\x1b\[36m")  # an answer in colour
    screen.wait_for("> ")
    screen.type("!set max_new_tokens=384 min_new_tokens=384\n")
    screen.wait_for("min_new_tokens is 384[^>]*> ")
    screen.type("def main(\n")
    screen.wait_for(r"\x1b\[36m")
    screen.type("\x03")  # Ctrl-C, while the answer is written
    assert "the answer was ended" in screen.wait_for("ended.*\r\n.*> ")
    screen.press("\x03")
    screen.wait_for("Ctrl-D ends the chat.*\r\n.*> ")
    screen.type("!save chat.json\n")
    screen.wait_for("saved as chat.json.*\r\n.*> ")
    screen.type("!exit\n")
    assert screen.end() == 0
    saved = json.loads((folder / "chat.json").read_text(encoding="utf-8"))
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"] * 2
    assert saved["options"]["max_new_tokens"] == 384
    assert "import os" in (folder / "cache" / "gptrio" / "chat_history").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_lines_that_belong_together_and_a_terminal_without_colour(folder):
    screen = Screen("chat", *GREEDY, "--user", "Ann", NO_COLOR="1")
    screen.wait_for("Ann> ")
    screen.type("def a():\\\n")
    screen.wait_for(r"\r\n.*\. ")
    screen.type("    pass\n")
    screen.wait_for("\r\n.*> ")
    screen.type("\x1b[200~x = 1\ny = 2\x1b[201~\n")  # a paste of two lines
    screen.wait_for("y = 2[^>]*\r\n.*> ")
    screen.type("!sav\n")
    assert "did you mean '!save'" in screen.wait_for("mean.*\r\n.*> ")
    screen.type("!save chat.json\n")
    assert "\x1b[36m" not in screen.wait_for("saved as.*\r\n.*> ")
    screen.press("\x04")
    assert screen.end() == 0
    messages = json.loads((folder / "chat.json").read_text(encoding="utf-8"))["messages"]
    assert [message["content"] for message in messages[::2]] == ["def a():\n    pass", "x = 1\ny = 2"]


def test_help_teaches_by_example():
    done = in_process("chat", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gptrio chat ./my-model max_new_tokens=100 do_sample=False" in done.stdout
    assert "Ctrl-C ends an answer" in done.stdout


def test_a_pipe_has_a_message_in_each_line_and_answers_alone(folder):
    done = chat(*GREEDY, command=gptrio, input="import os\n\n!status\n!save chat.json\nclass A:\n!exit\nunread\n")
    assert done.returncode == 0
    assert "no chat template" in done.stderr and "of 512 tokens" in done.stderr
    assert ">" not in done.stdout and "\x1b" not in done.stdout + done.stderr

    from gptrio import AutoTokenizer, pipeline

    messages = [{"role": "user", "content": "import os"}]
    tokenizer = AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")
    prompt = tokenizer.apply_chat_template(
        messages, chat_template=PLAIN_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    generator = pipeline("text-generation", "gptrio/stdlib-gpt2")
    (expected,) = generator(prompt, max_new_tokens=6, do_sample=False, return_full_text=False)
    assert done.stdout.startswith(expected["generated_text"].strip())

    again = chat("--load", "chat.json", "max_new_tokens=7", input="class A:\n!save second.json\n")
    assert again.returncode == 0 and "2 messages from chat.json" in again.stderr
    second = json.loads((folder / "second.json").read_text(encoding="utf-8"))
    assert second["messages"][1]["content"] == expected["generated_text"].strip()
    assert second["options"] == {"do_sample": False, "max_new_tokens": 7}


def test_a_pipe_with_json_has_an_object_for_each_answer(folder):
    (folder / "examples.yml").write_text("greeting: {text: Höflich}\nshort: Hi\n", encoding="utf-8")
    (folder / "options.json").write_text('{"max_new_tokens": 3}', encoding="utf-8")
    done = chat(
        *("--json", "--examples_path", "examples.yml", "--generation-config", "options.json", "do_sample=False"),
        input="!example\n!example greeting\nand?\n!example short\n",
    )
    assert done.returncode == 0
    assert "greeting  Höflich" in done.stderr and "short     Hi" in done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["message"] for answer in answers] == ["Höflich", "and?", "Hi"]
    assert [(answer["tokens"], answer["finish_reason"]) for answer in answers] == [(3, "length")] * 3
    first, second, third = (answer["reused_tokens"] for answer in answers)
    assert first == 0 and second > 5
    assert 0 < third < second, "an example begins a new chat, which shares the template's first tokens"


def test_a_revision_of_a_model_on_the_hub(folder):
    GPT2LMHeadModel(tiny_config()).save_pretrained("repository")
    byte_tokenizer().save_pretrained("repository")
    with StubHub(folder / "repository").running() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "0"}
        done = gptrio(
            *("chat", "someone/tiny", "--model-revision", "step7", "max_new_tokens=2", "--json"),
            input="hi\n",
            env={**own_environment(), **own},
        )
    assert (done.returncode, json.loads(done.stdout)["tokens"]) == (0, 2)
    refs = folder / "hub" / "models--someone--tiny" / "refs"
    assert [path.name for path in refs.iterdir()] == ["step7"]


def test_a_chat_of_transformers_goes_on(folder):
    saved = {"settings": {"seed": 1}, "chat_history": [{"role": "user", "content": "hello"}]}
    (folder / "theirs.json").write_text(json.dumps(saved), encoding="utf-8")
    done = chat("--load", "theirs.json", input="!save ours.json\n")
    assert done.returncode == 0 and "(1 message from theirs.json)" in done.stderr
    assert json.loads((folder / "ours.json").read_text(encoding="utf-8"))["messages"] == saved["chat_history"]


def test_the_options_of_transformers_chat_are_known():
    from dataclasses import fields

    from transformers.commands.chat import ChatArguments

    unknown = {"trust_remote_code", "torch_dtype", "host", "port", "model_name_or_path"}  # no code, no server
    unknown |= {"load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"}  # --quantize
    done = in_process("chat", "--help", env={**os.environ, "COLUMNS": "200"})
    shown = [field.name for field in fields(ChatArguments) if f"--{field.name.replace('_', '-')} " in done.stdout]
    assert {field.name for field in fields(ChatArguments)} - set(shown) == unknown


@pytest.mark.parametrize(
    ("arguments", "text", "code", "message"),
    [
        (("top_kk=1",), "", 2, "did you mean 'top_k'"),
        (("gptrio/stdlib-gpt2", "top_k"), "", 2, "write it as name=value"),
        (("--load", "nowhere.json"), "", 2, "is not a file; give one that !save wrote"),
        (("--examples-path", "nowhere.yml"), "", 2, "there is no file nowhere.yml with examples"),
        (("--generation-config", "nowhere.json"), "", 1, "no file nowhere.json in folder"),
        (("--attn-implementation", "flash"), "", 1, "--attn-implementation flash is not known; use one of eager"),
        (("max_new_tokens=x",), "", 2, "max_new_tokens='x' has the wrong type"),
        ((), "!example nothing\n", 2, "no example 'nothing'; there are code, class"),
        ((), "!load\n", 2, "'' is not a file; give one that !save wrote"),
        ((), "!set\n", 2, "!set needs options, as in: !set temperature=0.7"),
        ((), "!lod\n", 2, "did you mean '!load'"),
        ((), "x" * 3000, 1, "the model's context 512; shorten it"),
    ],
)
def test_a_mistake_is_one_line(arguments, text, code, message):
    done = chat(*arguments, input=text)
    assert (done.returncode, done.stdout) == (code, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gptrio: ") and message in last
