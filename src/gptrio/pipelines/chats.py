"""Conversations as inputs of text generation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from types import GeneratorType
from typing import Any

from gptrio.errors import InputError
from gptrio.pipelines.pt_utils import KeyDataset


class Chat:
    """Messages of one conversation, which is one input, not a list of inputs.

    Args:
        messages: dictionaries with "role" and "content".

    Raises:
        InputError: a message lacks one of the two.
    """

    def __init__(self, messages: Sequence[dict[str, Any]]) -> None:
        for message in messages:
            if not ("role" in message and "content" in message):
                raise InputError(f"a message of a chat needs the keys 'role' and 'content'; one has {sorted(message)}")
        self.messages = list(messages)

    def is_continued(self, continue_final_message: bool | None) -> bool:
        """Whether the last message is continued: if asked for, or by default if it is the assistant's."""
        if continue_final_message is not None:
            return continue_final_message
        return bool(self.messages[-1]["role"] == "assistant")

    def with_answer(self, text: str, is_continued: bool) -> list[dict[str, Any]]:
        """The messages with a text after them."""
        if not is_continued:
            return [*self.messages, {"role": "assistant", "content": text}]
        last = self.messages[-1]
        return [*self.messages[:-1], {"role": last["role"], "content": last["content"] + text}]


def with_chat(inputs: Any) -> Any:
    """Inputs of a call, where messages that follow each other are one `Chat`, and a tuple is a list of inputs."""
    if isinstance(inputs, GeneratorType):
        first = list(islice(inputs, 1))
        everything = chain(first, inputs)
        return Chat(list(everything)) if first and isinstance(first[0], dict) else (item for item in everything)
    if not isinstance(inputs, (list, tuple, KeyDataset)) or len(inputs) == 0:
        return inputs
    if isinstance(inputs[0], dict):
        return Chat(inputs)  # type: ignore[arg-type]  # a list of messages
    is_list = isinstance(inputs, tuple) or isinstance(inputs[0], (list, tuple))
    return [inputs[i] for i in range(len(inputs))] if is_list else inputs
