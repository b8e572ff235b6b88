"""Stream text while it is generated: as soon as further tokens cannot change it, and never part of a character."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from queue import Queue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch

from gptrio.errors import InputError
from gptrio.generation.stopping import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

_WINDOW, _CONTEXT = 48, 16  # tokens decoded at most, and kept when the window slides
_INCOMPLETE_CHARACTER = "\ufffd"


class Streamer(Protocol):
    """What `generate` needs of a streamer; any class with these two methods will do."""

    def put(self, value: torch.Tensor) -> None:
        """Take tokens: first the prompts (B, T), then new ones (B,) or (B, n)."""

    def end(self) -> None:
        """Take note that generation is over."""


class BaseStreamer:
    """Base of the streamers here; subclass it and define `put` and `end`."""

    def put(self, value: torch.Tensor) -> None:
        """Take tokens: first the prompts (B, T), then new ones (B,) or (B, n)."""
        raise NotImplementedError(f"{type(self).__name__} does not define put")

    def end(self) -> None:
        """Take note that generation is over."""
        raise NotImplementedError(f"{type(self).__name__} does not define end")

    def end_row(self, row: int) -> None:
        """Take note that a row is finished while others go on; its further tokens are padding."""


class _Text:
    """Turns the tokens of one row into pieces of text that further tokens cannot change."""

    def __init__(self, tokenizer: Tokenizer, decode_kwargs: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._decode_kwargs = decode_kwargs
        default = getattr(tokenizer, "clean_up_tokenization_spaces", False)
        self._cleans_up = bool(decode_kwargs.get("clean_up_tokenization_spaces", default))
        self._ids: list[int] = []
        self._given = 0  # characters of the decoded `_ids` that were returned

    def push(self, ids: Iterable[int]) -> str:
        """Add tokens and return the text that no further token can change."""
        self._ids.extend(ids)
        text = self._decode(self._ids)
        settled = max(self._settled(text), self._given)
        piece = text[self._given : settled]
        self._given = settled
        if len(self._ids) > _WINDOW:
            self._slide(text[settled:])
        return piece

    def flush(self) -> str:
        """Return the remaining text, and start anew."""
        piece = self._decode(self._ids)[self._given :] if self._ids else ""
        self._ids, self._given = [], 0
        return piece

    def _settled(self, text: str) -> int:
        """Length of the text that stays: without an incomplete character or a space that cleaning up may remove."""
        if self._cleans_up:  # " n't" and shorter lose their space
            space = text.rfind(" ", max(0, len(text) - 3))
            if space >= 0:
                return space
        return len(text) - text.endswith(_INCOMPLETE_CHARACTER)

    def _slide(self, held: str) -> None:
        """Drop old tokens, so that each step decodes only a few; the last ones remain as context."""
        text = self._decode(self._ids[-_CONTEXT:])
        if text.endswith(held):
            self._ids, self._given = self._ids[-_CONTEXT:], len(text) - len(held)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, **self._decode_kwargs)


class TextStreamer(BaseStreamer):
    """Print the text of one row as it is generated; subclasses override `on_finalized_text` for another use.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave the prompt out.
        **decode_kwargs: arguments for `tokenizer.decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.next_tokens_are_prompt = True
        self._text = _Text(tokenizer, decode_kwargs)

    def put(self, value: torch.Tensor) -> None:
        """Take tokens (T,) or (1, T), and pass on the text that no further token can change."""
        if value.dim() > 1 and value.shape[0] > 1:
            raise InputError(
                f"{type(self).__name__} streams one row and got {value.shape[0]}; use BatchTextStreamer or "
                "BatchTextIteratorStreamer"
            )
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        piece = self._text.push(value.flatten().tolist())
        if piece:
            self.on_finalized_text(piece)

    def end(self) -> None:
        """Pass on the remaining text, and prepare for another prompt."""
        self.next_tokens_are_prompt = True
        self.on_finalized_text(self._text.flush(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print text, and a line break when the stream ends."""
        print(text, end="\n" if stream_end else "", flush=True)


Piece = TypeVar("Piece")


class _QueueIterator(Generic[Piece]):
    """Lets one iterate over what a streamer, the next base of a class, puts into `text_queue`, up to None."""

    def __init__(
        self, tokenizer: Tokenizer, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)  # type: ignore[call-arg]  # of the streamer
        self.text_queue: Queue[Piece | None] = Queue()
        self.timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        """Wait for the next piece of text and return it."""
        piece = self.text_queue.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece


class TextIteratorStreamer(_QueueIterator[str], TextStreamer):
    """Iterate over pieces of text while `generate` runs in another thread.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave the prompt out.
        timeout: seconds to wait for a piece before `queue.Empty` is raised; for ever by default.
        **decode_kwargs: arguments for `tokenizer.decode`.
    """

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue text, and the mark of the end."""
        if text:
            self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(None, timeout=self.timeout)


class AsyncTextIteratorStreamer(TextStreamer):
    """Iterate with `async for` over pieces of text while `generate` runs in another thread; make it in a coroutine.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave the prompt out.
        timeout: seconds to wait for a piece before TimeoutError is raised; for ever by default.
        **decode_kwargs: arguments for `tokenizer.decode`.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.timeout = timeout
        self.loop = asyncio.get_running_loop()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue text, and the mark of the end, in the loop's own thread."""
        if text:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, text)
        if stream_end:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, None)

    def __aiter__(self) -> AsyncTextIteratorStreamer:
        return self

    async def __anext__(self) -> str:
        """Return the next piece of text, waiting for it."""
        try:
            piece = await asyncio.wait_for(self.text_queue.get(), self.timeout)
        except asyncio.TimeoutError as error:  # before Python 3.11 not the built-in TimeoutError
            raise TimeoutError(f"no text came within {self.timeout} seconds") from error
        if piece is None:
            raise StopAsyncIteration
        return piece


class BatchTextStreamer(BaseStreamer):
    """Stream several rows: print them one below the other, each after the rows above it.

    The first `put` is the prompts (B, T), a row for each. Subclasses define `on_row_text` for another use.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave the prompts out.
        **decode_kwargs: arguments for `tokenizer.decode`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._rows: dict[int, _Text] = {}  # the rows that are not finished
        self._number = 0
        self._waiting: dict[int, str] = {}  # printed text and line breaks of rows below the current one
        self._current = 0

    def put(self, value: torch.Tensor) -> None:
        """Take the prompts (B, T), then tokens (B,) or (B, n), and pass on the settled text of each row."""
        is_prompt = self._number == 0
        if is_prompt:
            if value.dim() != 2:
                raise InputError(f"the first tokens have shape {tuple(value.shape)}; expected the prompts (B, T)")
            self._number = value.shape[0]
            self._rows = {row: _Text(self.tokenizer, self.decode_kwargs) for row in range(self._number)}
        if value.numel() % self._number:
            raise InputError(f"tokens of shape {tuple(value.shape)} do not divide among {self._number} rows")
        if is_prompt and self.skip_prompt:
            return
        tokens = value.reshape(self._number, -1).tolist()
        for row, text in self._rows.items():
            piece = text.push(tokens[row])
            if piece:
                self.on_row_text(row, piece)

    def end_row(self, row: int) -> None:
        """Pass on the remaining text of a finished row; its further tokens are padding and are dropped."""
        text = self._rows.pop(row, None)
        if text is not None:
            self.on_row_text(row, text.flush(), row_end=True)

    def end(self) -> None:
        """Finish all rows, and prepare for other prompts."""
        for row in list(self._rows):
            self.end_row(row)
        self._number = self._current = 0

    def on_row_text(self, row: int, text: str, row_end: bool = False) -> None:
        """Print text of the first row that is not finished, and keep that of the rows below it."""
        self._waiting[row] = self._waiting.get(row, "") + text + "\n" * row_end
        while self._current in self._waiting:
            print(self._waiting.pop(self._current), end="", flush=True)
            if self._current in self._rows:
                break
            self._current += 1


class BatchTextIteratorStreamer(_QueueIterator[tuple[int, str]], BatchTextStreamer):
    """Iterate over pairs (row, text) while `generate` runs in another thread.

    Args:
        tokenizer: decodes the tokens.
        skip_prompt: leave the prompts out.
        timeout: seconds to wait for a piece before `queue.Empty` is raised; for ever by default.
        **decode_kwargs: arguments for `tokenizer.decode`.
    """

    def on_row_text(self, row: int, text: str, row_end: bool = False) -> None:
        """Queue the row's text."""
        if text:
            self.text_queue.put((row, text))

    def end(self) -> None:
        """Finish all rows and queue the mark of the end."""
        super().end()
        self.text_queue.put(None)
