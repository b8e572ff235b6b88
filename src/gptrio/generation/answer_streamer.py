"""The streamer of a chat: shows an answer up to a stop string, and ends it when the user asks for that."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptrio.generation.stopping import Tokenizer
from gptrio.generation.streamers import TextStreamer


class Interrupted(Exception):
    """Ends an answer between two tokens."""


class AnswerStreamer(TextStreamer):
    """Shows an answer without what a stop string ends, and counts its tokens.

    Args:
        tokenizer: decodes the tokens.
        show: receives the text.
        should_stop: whether to end after a token.
        stop: text at which the answer is over; "" for none.
    """

    def __init__(
        self, tokenizer: Tokenizer, show: Callable[[str], object], should_stop: Callable[[], bool], stop: str
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.ids: list[int] = []
        self.text = ""
        self._show, self._should_stop, self._stop = show, should_stop, stop
        self._held = ""  # the end of the text so far that may begin `stop`

    def put(self, value: torch.Tensor) -> None:
        """Take tokens, pass their text on, and end if that was asked for."""
        is_prompt = self.next_tokens_are_prompt
        super().put(value)
        if not is_prompt:
            self.ids.extend(value.flatten().tolist())
            if self._should_stop():
                raise Interrupted

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Show text that is no part of the stop string; nothing after it is ever shown."""
        text = self._held + text
        if not self.text:
            text = text.lstrip()
        before, found, _ = text.partition(self._stop) if self._stop else (text, "", "")
        kept = 0 if found or stream_end else overlap(text, self._stop)
        shown, self._held = (before, self._stop) if found else (text[: len(text) - kept], text[len(text) - kept :])
        if shown:
            self.text += shown
            self._show(shown)


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that begins a stop string."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
