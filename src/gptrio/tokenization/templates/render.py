"""Renders conversations by a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from traceback import walk_tb
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateSyntaxError

from gptrio.errors import ChatTemplateError
from gptrio.tokenization.templates.functions import TemplateFailure
from gptrio.tokenization.templates.limits import Rendering, new_rendering
from gptrio.tokenization.templates.sandbox import TemplateEnvironment

_LONGEST = 1 << 16  # characters of a template: compiling it takes at most about a second
_FILE = "<template>"  # jinja2's name of a template's code in a traceback


def render(template: str, variables: Mapping[str, Any]) -> Rendering:
    """Render a template.

    Args:
        template: its source.
        variables: what it can use, by name.

    Raises:
        ChatTemplateError: it is malformed, fails, or makes or does too much; also caught as jinja2's TemplateError.
    """
    try:
        compiled = _compile(template)
        with new_rendering(variables) as rendering:
            for block in compiled.generate(variables):
                rendering.append(block)
    except TemplateFailure:
        raise
    except Exception as error:  # whatever its code raises
        raise TemplateFailure(_explanation(error)) from error
    return rendering


@lru_cache
def _environment() -> TemplateEnvironment:
    return TemplateEnvironment()


@lru_cache(maxsize=32)
def _compile(template: str) -> Template:
    if len(template) > _LONGEST:
        raise TemplateFailure(f"the chat template has {len(template):,} characters; at most {_LONGEST:,} are compiled")
    return _environment().from_string(template)


def _explanation(error: Exception) -> str:
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == _FILE]
    line = error.lineno if isinstance(error, TemplateSyntaxError) else lines[-1] if lines else None
    place = "" if line is None else f" in line {line}"
    what = str(error) if isinstance(error, ChatTemplateError) else f"{type(error).__name__}: {error}"
    return f"the chat template fails{place}: {what}"


def continue_at(text: str, conversation: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a conversation up to the end of its last message, which the model is to continue.

    Raises:
        ChatTemplateError: the last message has no text, or the template changes it.
    """
    message = conversation[-1]["content"]
    if not isinstance(message, str):
        message = next((part["text"] for part in reversed(message) if "text" in part), None)
    if message is None:
        raise ChatTemplateError("continue_final_message=True: the last message has no text that could be continued")
    start = text.rfind(message.strip())
    if start < 0:
        raise ChatTemplateError(
            f"continue_final_message=True: the template does not write the last message {message[:50]!r} as it is; "
            "change the template, or leave the argument out"
        )
    kept = message.lstrip()  # with the space after it, where the template leaves that
    return text[: start + len(kept if text.startswith(kept, start) and kept == message else message.strip())]
