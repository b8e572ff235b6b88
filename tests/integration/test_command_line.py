"""The program as a shell runs it, on the model that ships with the package."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest

from gptrio.cli.app import COMMANDS, run
from gptrio.kernels.cpu_decode.compilation import unready_reason
from tests.cases import first

PROGRAM = (sys.executable, "-m", "gptrio")


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> None:
    """Have the decoding step on the disk before: the program that compiles it tells so, once."""
    unready_reason()


def gptrio(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False, **options)


def in_process(*arguments: str, input: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What `gptrio` gives, without the seconds in which a program loads torch."""
    source, out, err = (io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8") for text in (input, "", ""))
    with (
        patch.dict(os.environ, os.environ if env is None else env, clear=True),
        patch("sys.stdin", source),
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        code = run(list(arguments))
    for stream in (out, err):
        stream.seek(0)
    return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def test_first_command_of_the_readme_writes_code():
    done = gptrio("generate", "def hello_world():", "--max-new-tokens", "16")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("def hello_world():")
    assert len(done.stdout) > len("def hello_world():\n")


def test_json_in_a_pipe_is_one_object_and_nothing_else():
    done = in_process("generate", "--json", "--greedy", "--max-new-tokens", "8", input="import os\n")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["prompt"] == "import os\n"
    assert result["completions"][0]["tokens"] <= 8


def test_text_comes_as_it_is_written_and_a_closed_pipe_ends_it_quietly():
    arguments = (*PROGRAM, "generate", "import os\n", "--max-new-tokens", "400")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "import os\n"
        assert process.poll() is None, "the first line comes while the rest is being written"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX shell")
@pytest.mark.parametrize(
    "command", first(["generate -n 9", "--help", "score", "run --help", "env", "info", "tokenize import"], 2)
)
def test_a_reader_that_has_enough_is_no_error_of_any_command(command):
    script = f"echo import os | {sys.executable} -m gptrio {command} | true; echo ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX shell")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate <&-", "no text; give one"),
        ("tokenize - <&-", "standard input is closed; give a file or a pipe"),
        ("run <&-", "no input; give --input FILE"),
        ("chat <&-", "standard input is closed"),
        ("info >/dev/full", "no space left on device"),
        ("--help >/dev/full", "standard output cannot be written: no space left on device"),
    ],
)
def test_inputs_and_outputs_that_do_not_work_are_one_line(command, message):
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m gptrio {command}"], capture_output=True, text=True)
    assert done.returncode == (1 if "full" in command else 2)
    assert done.stderr.startswith("gptrio: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children can be interrupted, also where tests run in the background of a shell, which ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
def test_interruption_ends_it_without_a_traceback(interruptible):
    arguments = (*PROGRAM, "generate", "import os\n", "--max-new-tokens", "400")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_an_output_that_cannot_show_a_character_is_no_error():
    done = gptrio("generate", "# größer", "--max-new-tokens", "2", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.startswith("# gr??er") or done.stdout.startswith("# gr?")


def test_text_beyond_ascii_comes_through_where_the_locale_knows_ascii_only():
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [*PROGRAM, "generate", "# größer", "-n", "1", "--greedy", "--stop", "ß"],
        capture_output=True, env=environment, check=True,
    )  # fmt: skip
    assert done.stdout.decode("utf-8").startswith("# größer")
    assert done.stderr == b""


def completions(words: str, place: int) -> list[str]:
    """What pressing the tabulator after these words offers in bash."""
    asked = {**os.environ, "_GPTRIO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    return gptrio(env=asked).stdout.split()


def test_shells_complete_commands_options_and_choices():
    assert completions("gptrio ", 1) == list(COMMANDS)
    assert completions("gptrio generate --qu", 2) == ["--quantize"]
    assert completions("gptrio generate --quantize ", 3) == ["int8", "int4", "nf4", "fp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
def test_completion_is_installed_for_the_current_shell(tmp_path):
    command = f"{sys.executable} -m gptrio --install-completion; true"  # `true` keeps bash as the parent
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run(["bash", "-c", command], capture_output=True, env=environment, check=True)
    [script] = tmp_path.glob(".bash_completions/*")
    assert "complete -o default -F _gptrio_completion gptrio" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_a_missing_model_is_one_line():
    done = in_process("generate", "x", "--model", "./no-such-folder")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gptrio: ")
    assert done.stderr.count("\n") == 1


def test_help_and_mistakes_load_no_torch():
    code = (
        "import sys\nsys.argv = ['gptrio', 'generate', '--help']\nfrom gptrio.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, 'huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
