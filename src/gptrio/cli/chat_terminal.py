"""The terminal of a chat: reads messages and commands, shows answers while they are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from gptrio.cli.assignments import parse_assignments
from gptrio.cli.errors import print_error
from gptrio.cli.keyboard import history, history_file, interruptible, read_message
from gptrio.cli.text import input_bytes, print_json
from gptrio.errors import (
    FileOptionError,
    GptrioError,
    InputError,
    OptionError,
    counted,
    import_optional,
    name_place,
    nearest,
)
from gptrio.hub import write_text
from gptrio.utils.records import parse_json
from gptrio.utils.text import decode_text

if TYPE_CHECKING:
    from gptrio.generation.chat import ChatSession

EXAMPLES = {
    "code": "Write a function that returns the prime numbers below n.",
    "class": "Write a class for a stack with push and pop.",
    "numbers": "Count from ten down to one.",
    "story": "Tell a story of three sentences about a lighthouse.",
}


class Command(NamedTuple):
    """A command of the chat: how it is typed, what it does, and the method that does it, which takes what follows."""

    usage: str
    help: str
    method: str


COMMANDS = {
    "!help": Command("!help", "show the commands", "help"),
    "!status": Command("!status", "show the model, the options and how full the context is", "status"),
    "!set": Command("!set top_k=5 ...", "change options of generation", "set"),
    "!example": Command("!example [NAME]", "begin a new chat with an example, or list them", "example"),
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
        as_json: write each answer as a JSON object; not in an interactive chat.
        user: name before the prompt.
        examples: texts for `!example` by name.
    """

    def __init__(
        self,
        session: ChatSession,
        name: str,
        save_folder: Path,
        is_interactive: bool,
        as_json: bool = False,
        user: str = "",
        examples: Mapping[str, str] = EXAMPLES,
    ) -> None:
        self.session, self.name, self.save_folder, self.is_interactive = session, name, save_folder, is_interactive
        self._as_json, self._user, self._examples = as_json, user, examples
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
        for place, text in self._typed() if self.is_interactive else piped_lines():
            try:
                if text.startswith("!"):
                    self.obey(text)
                elif text.strip():
                    self.answer(text)
            except GptrioError as error:
                if not self.is_interactive:
                    name_place(error, place)
                    raise
                print_error(str(error))
            if self._is_over:
                return

    def answer(self, text: str) -> None:
        """Answer a message; Ctrl-C ends the answer, and a second one drops it with the message."""
        show = self._show_in_colour if self.is_interactive else str if self._as_json else self._show
        try:
            with interruptible() if self.is_interactive else nullcontext(lambda: False) as is_interrupted:
                answer = self.session.answer(text, show, is_interrupted)
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            self.say("\n(the answer was dropped)")
            return
        if self._as_json:
            reason = answer.finish_reason and answer.finish_reason.api_name
            numbers = {"tokens": answer.tokens, "finish_reason": reason, "reused_tokens": answer.reused}
            print_json({"message": text, "answer": answer.text, **numbers})
            return
        print(flush=True)
        if answer.finish_reason is None and self.is_interactive:
            self.say("(the answer was ended)")

    def _show(self, piece: str) -> None:
        print(piece, end="", flush=True)

    def _show_in_colour(self, piece: str) -> None:
        self._console.print(piece, end="", style="cyan")
        sys.stdout.flush()

    def _typed(self) -> Iterator[tuple[str, str]]:
        """Messages from a keyboard: a line, lines that end in a backslash, or what is pasted at once; no places."""
        with history(history_file()):
            while True:
                try:
                    yield "", read_message(input, self._user)
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
        """Begin a new chat with an example, or list them."""
        if not rest:
            for name, text in self._examples.items():
                self.say(f"{name:<10}{text}", "default")
        elif rest in self._examples:
            self.clear("")
            self.say(f"{self._user}> {self._examples[rest]}", "default")
            self.answer(self._examples[rest])
        else:
            raise OptionError(f"no example {rest!r}; there are {', '.join(self._examples)}")

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
            raise FileOptionError(f"{rest!r} is not a file; give one that !save wrote")
        content = parse_json(decode_text(file.read_bytes(), f"file {file}"), str(file))
        try:
            self.session.restore(content)
        except GptrioError as error:
            name_place(error, str(file))
            raise
        self.say(f"({counted(len(self.session.messages), 'message')} from {file})")

    def exit(self, rest: str) -> None:
        """End the chat."""
        self._is_over = True


def piped_lines() -> Iterator[tuple[str, str]]:
    """The messages of a pipe, each with its place."""
    for number, line in enumerate(input_bytes(), start=1):
        place = f"line {number} of standard input"
        yield place, decode_text(line, place).rstrip("\r\n")


def read_examples(file: Path) -> dict[str, str]:
    """Examples by name: JSON or YAML, with a text, or an object with a `text`, for each name.

    Raises:
        FileOptionError: there is no such file.
        InputError: it holds something else.
    """
    if not file.is_file():
        raise FileOptionError(f"there is no file {file} with examples")
    yaml = import_optional("yaml", "a file of examples needs PyYAML; install it with: pip install pyyaml")
    try:
        content = yaml.safe_load(decode_text(file.read_bytes(), f"file {file}"))
    except yaml.YAMLError as error:
        raise InputError(f"{file} is neither YAML nor JSON: {error}") from error
    given = content if isinstance(content, dict) else {"": None}
    texts = {str(name): text.get("text") if isinstance(text, dict) else text for name, text in given.items()}
    found = {name: text for name, text in texts.items() if isinstance(text, str)}
    if len(found) < len(texts):
        raise InputError(f"{file} holds no examples; expected a text for each name, as in: greeting: {{text: Hello}}")
    return found
