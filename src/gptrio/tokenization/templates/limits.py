"""What one rendering of a chat template may make, and how long it may take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from itertools import chain
from time import perf_counter, thread_time
from types import GeneratorType
from typing import Any

from gptrio.errors import ChatTemplateError, counted

MOST_PARTS = 1 << 21  # characters and items of one value, those inside it included
MOST_MADE = 1 << 24  # characters and items of all values together
MOST_BITS = 1 << 14  # of a whole number
MOST_SECONDS = 1.0  # of processor time, for a template that is given nothing
VALUES_OF_A_SECOND = 100  # it has another second for each so many messages, roles, contents and other values
MOST_VALUES = 6000  # that lengthen the time
MOST_CALLS = 100  # inside each other

_CONTAINERS: Any = (list, tuple, Set, Mapping, type({}.values()))


class Rendering:
    """The text of one rendering so far, and what is left of its limits.

    Attributes:
        blocks: parts of the text, in order.
        length: characters of the text.
        spans: (start, end) in characters of each `{% generation %}` block.

    Args:
        given: the variables of the template. Work may grow with the square of a conversation, as templates look at all
            messages for each: the more they are given, the longer they may take.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self.blocks: list[str] = []
        self.length = 0
        self.spans: list[tuple[int, int]] = []
        self._calls = 0
        self._made = 0
        self._sizes: dict[int, tuple[int, Any]] = {}  # by id, with the object, so that no other one gets its id
        self._started = thread_time()
        self._next_look = perf_counter() + MOST_SECONDS

    def append(self, block: str) -> None:
        """Add to the text."""
        self.reserve(len(block))
        self.blocks.append(block)
        self.length += len(block)

    def step(self) -> bool:
        """Return True; raises ChatTemplateError if the rendering has taken too long.

        Processor time counts, so that a machine with other work does not change the result; it is looked at only once
        that much time has passed on the clock, which is faster to read.
        """
        if perf_counter() > self._next_look:
            used, most = thread_time() - self._started, self._most_seconds
            if used > most:
                worked = counted(round(most), "second")
                raise ChatTemplateError(f"it has not finished after {worked} of work; does it loop for ever?")
            self._next_look += most - used
        return True

    @cached_property
    def _most_seconds(self) -> float:
        return MOST_SECONDS * (1 + _values_in(self._given) / VALUES_OF_A_SECOND)

    @contextmanager
    def inside_call(self) -> Iterator[None]:
        """Count a call while it runs; raises ChatTemplateError if it is inside too many others."""
        self.step()
        if self._calls >= MOST_CALLS:
            raise ChatTemplateError(f"it makes more than {MOST_CALLS} calls inside each other")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def reserve(self, parts: int) -> None:
        """Count characters or items that are about to be made; raises ChatTemplateError if they are too many."""
        parts = max(0, parts)
        self._made += parts
        if parts > MOST_PARTS or self._made > MOST_MADE:
            raise _too_large()

    def made(self, value: Any) -> Any:
        """Count a new value and return it; raises ChatTemplateError if it is too large."""
        if isinstance(value, (str, bytes)):
            self.reserve(len(value))
        elif isinstance(value, int):
            if value.bit_length() > MOST_BITS:
                raise _too_large()
        elif isinstance(value, _CONTAINERS):
            self.size(value)
            self.reserve(len(value))
        return value

    def size(self, value: Any) -> int:
        """Characters and items of a value, counted as often as they are in it.

        Lists that hold one list several times stay small, yet their text, or a comparison, grows exponentially.
        """
        if isinstance(value, (str, bytes)):
            return len(value) + 1
        if not isinstance(value, _CONTAINERS):
            return 1
        known = self._sizes.get(id(value))
        if known is not None:
            return known[0]
        parts: Iterable[Any] = chain.from_iterable(value.items()) if isinstance(value, Mapping) else value
        total = 1 + sum(map(self.size, parts))
        if total > MOST_PARTS:
            raise _too_large()
        self._sizes[id(value)] = total, value
        return total

    def counted(self, value: Any) -> Any:
        """Return the value; a generator is returned as one that counts its items, whoever takes them."""
        return self._items(value) if isinstance(value, GeneratorType) else value

    def _items(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.step()
            self.reserve(1)
            yield item


def _values_in(given: Any) -> int:
    """How many values there are in lists and mappings, those inside others included; at most `MOST_VALUES`."""
    count, waiting = 0, [given]
    while waiting and count < MOST_VALUES:
        value = waiting.pop()
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
        count += len(inside)
        waiting += inside
    return min(count, MOST_VALUES)


def _too_large() -> ChatTemplateError:
    return ChatTemplateError(
        f"it makes values that are too large: at most {MOST_PARTS:,} characters in one, {MOST_MADE:,} in "
        f"all, and {MOST_BITS:,} bits in a number"
    )


_current: ContextVar[Rendering] = ContextVar("rendering")


def rendering() -> Rendering:
    """Return the rendering that is in progress in this thread."""
    return _current.get()


@contextmanager
def new_rendering(given: Mapping[str, Any]) -> Iterator[Rendering]:
    """Begin a rendering of these variables in this thread, which is in progress until the block ends."""
    token = _current.set(Rendering(given))
    try:
        yield _current.get()
    finally:
        _current.reset(token)
