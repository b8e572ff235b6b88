"""The terminal of a chat: reads messages and commands, shows answers while they are written."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from gptrio.cli.assignments import parse_assignments
from gptrio.cli.errors import print_error
from gptrio.cli.text import decode_text
from gptrio.errors import FileOptionError, GptrioError, InputError, OptionError, nearest
from gptrio.hub import write_text

if TYPE_CHECKING:
    from gptrio.generation.chat import ChatSession

EXAMPLES = {
    "code": "Write a function that returns the prime numbers below n.",
    "class": "Write a class for a stack with push and pop.",
    "numbers": "Count from ten down to one.",
    "story": "Tell a story of three sentences about a lighthouse.",
}
_MOST_HISTORY = 1000  # lines


class Command(NamedTuple):
    """A command of the chat: how it is typed, what it does, and the method that does it, which takes what follows."""

    usage: str
    help: str
    method: str


COMMANDS = {
    "!help": Command("!help", "show the commands", "help"),
    "!status": Command("!status", "show the model, the options and how full the context is", "status"),
    "!set": Command("!set top_k=5 ...", "change options of generation", "set"),
    "!example": Command("!example [NAME]", "send an example, or list them", "example"),
    "!clear": Command("!clear", "begin a new chat", "clear"),
    "!save": Command("!save [FILE]", "write the chat and its options to a file", "save"),
    "!load": Command("!load FILE", "go on with a chat that was saved", "load"),
    "!exit": Command("!exit", "end the chat, like Ctrl-D", "exit"),
}


class ChatTerminal:
    """Messages and commands in, answers out.

    Args:
        session: the chat.
        name: of the model.
        save_folder: where chats without a name are saved.
        is_interactive: show a prompt, keep a history and survive errors and Ctrl-C; otherwise a line of standard input
            is a message, standard output has the answers alone, and an error ends the chat.
    """

    def __init__(self, session: ChatSession, name: str, save_folder: Path, is_interactive: bool) -> None:
        self.session, self.name, self.save_folder, self.is_interactive = session, name, save_folder, is_interactive
        self._console = Console(stderr=not is_interactive, soft_wrap=True, highlight=False, markup=False, emoji=False)
        self._is_over = False
        session.notify = lambda message: self.say(f"({message})")

    def say(self, text: str, style: str = "dim") -> None:
        """Print a line that is not part of an answer: on standard error in a pipe."""
        self._console.print(text, style=style)

    def run(self) -> None:
        """Answer messages and obey commands until the end of the input, or `!exit`."""
        if self.is_interactive:
            self.say(f"{self.name}: !help lists commands, Ctrl-C ends an answer, Ctrl-D the chat")
        for text in self._typed() if self.is_interactive else map(read_line, sys.stdin.buffer):
            try:
                if text.startswith("!"):
                    self.obey(text)
                elif text.strip():
                    self.answer(text)
            except GptrioError as error:
                if not self.is_interactive:
                    raise
                print_error(str(error))
            if self._is_over:
                return

    def answer(self, text: str) -> None:
        """Answer a message; Ctrl-C ends the answer, and a second one drops it with the message."""
        show = self._show_in_colour if self.is_interactive else self._show
        try:
            with interruptible() if self.is_interactive else never() as is_interrupted:
                answer = self.session.answer(text, show, is_interrupted)
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            self.say("\n(the answer was dropped)")
            return
        print(flush=True)
        if answer.finish_reason is None and self.is_interactive:
            self.say("(the answer was ended)")

    def _show(self, piece: str) -> None:
        print(piece, end="", flush=True)

    def _show_in_colour(self, piece: str) -> None:
        self._console.print(piece, end="", style="cyan")
        sys.stdout.flush()

    def _typed(self) -> Iterator[str]:
        """Messages from a keyboard: a line, lines that end in a backslash, or what is pasted at once."""
        with history(history_file()):
            while True:
                try:
                    yield read_message(input)
                except EOFError:
                    print()
                    return
                except KeyboardInterrupt:
                    print()
                    self.say("(!exit or Ctrl-D ends the chat)")

    def obey(self, text: str) -> None:
        """Run a command.

        Raises:
            OptionError: there is no such command.
        """
        name, _, rest = text.strip().partition(" ")
        if name not in COMMANDS:
            raise OptionError(f"no command {name!r}; {nearest(name, COMMANDS) or '!help lists the commands'}")
        method: Callable[[str], None] = getattr(self, COMMANDS[name].method)
        method(rest.strip())

    def help(self, rest: str) -> None:
        """List the commands."""
        for command in COMMANDS.values():
            self.say(f"{command.usage:<18}{command.help}", "default")
        self.say("A line that ends in a backslash goes on in the next one.", "default")

    def status(self, rest: str) -> None:
        """Show the model, the number of messages, how full the context is, and the options."""
        session, model = self.session, self.session.model
        template = "none, plain text" if session.is_plain else "the tokenizer's"
        rows = {
            "model": f"{self.name}, {str(model.dtype).removeprefix('torch.')} on {model.device}",
            "template": template,
            "messages": str(len(session.messages)),
            "cache": f"{session.cached_tokens} of {session.context} tokens",
            "options": " ".join(f"{name}={value}" for name, value in session.options.items()),
        }
        for name, value in rows.items():
            self.say(f"{name:<10}{value}", "default")

    def set(self, rest: str) -> None:
        """Change options."""
        options = parse_assignments(rest.split())
        if not options:
            raise OptionError("!set needs options, as in: !set temperature=0.7 max_new_tokens=100")
        self.session.set_options(options)
        self.say(f"({', '.join(f'{name} is {value!r}' for name, value in options.items())})")

    def example(self, rest: str) -> None:
        """Send an example, or list them."""
        if not rest:
            for name, text in EXAMPLES.items():
                self.say(f"{name:<10}{text}", "default")
        elif rest in EXAMPLES:
            self.say(f"> {EXAMPLES[rest]}", "default")
            self.answer(EXAMPLES[rest])
        else:
            raise OptionError(f"no example {rest!r}; there are {', '.join(EXAMPLES)}")

    def clear(self, rest: str) -> None:
        """Begin a new chat."""
        self.session.clear()
        self.say("(a new chat)")

    def save(self, rest: str) -> None:
        """Write the chat as JSON."""
        file = Path(rest) if rest else self.save_folder / self.name / f"chat_{datetime.now():%Y-%m-%d_%H-%M-%S}.json"
        content = {"model": self.name, **self.session.transcript()}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise FileOptionError(f"the chat cannot be written to {file}: {error.strerror}") from error
        self.say(f"(saved as {file})")

    def load(self, rest: str) -> None:
        """Go on with a saved chat."""
        file = Path(rest)
        if not rest or not file.is_file():
            raise FileOptionError(f"there is no file {rest!r}; give one that !save wrote")
        try:
            content = json.loads(decode_text(file.read_bytes(), f"file {file}"))
        except json.JSONDecodeError as error:
            raise InputError(f"{file} is not JSON: {error}") from error
        self.session.restore(content)
        self.say(f"({len(self.session.messages)} messages from {file})")

    def exit(self, rest: str) -> None:
        """End the chat."""
        self._is_over = True


def read_line(line: bytes) -> str:
    """A message from a pipe."""
    return decode_text(line, "standard input").rstrip("\r\n")


def read_message(ask: Callable[[str], str]) -> str:
    """A message from a keyboard: the backslash at the end of a line says that it goes on.

    Args:
        ask: shows a prompt and returns a line, or the lines of a bracketed paste.
    """
    line = ask("> ")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(ask(". "))
    return "\n".join(lines)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; pressed again, it raises KeyboardInterrupt."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def never() -> Iterator[Callable[[], bool]]:
    """Yield a function that is never true."""
    yield lambda: False


def history_file() -> Path:
    """File with the lines of earlier chats, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptrio" / "chat_history"


@contextmanager
def history(file: Path) -> Iterator[None]:
    """Edit lines with their history, which a file keeps, where Python has readline; a paste of lines is one line."""
    try:
        import readline
    except ImportError:  # on Windows
        yield
        return
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.set_history_length(_MOST_HISTORY)
    with suppress(OSError):  # the first chat, or a home that cannot be read
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
