"""A chat with a model: its messages, and a KV cache that is kept from one answer to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

import torch

from gptrio.cache import Cache, DynamicCache
from gptrio.errors import InputError, OptionError
from gptrio.generation.answer_streamer import AnswerStreamer, Interrupted
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.max_length import context_length, positions
from gptrio.generation.options.resolve import merge_config
from gptrio.generation.options.schema import GenerationMode
from gptrio.generation.stopping import FinishReason

DEFAULT_OPTIONS: dict[str, Any] = {"do_sample": True, "max_new_tokens": 256}
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOP = "\nUser:"  # where a model without a template goes on with the next message
ROLES = ("system", "user", "assistant")

Message = dict[str, str]  # "role" and "content"


class ChatTokenizer(Protocol):
    """What a chat needs of a tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: list[Message], **kwargs: Any) -> Any:
        """The ids of messages."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        """The text of ids."""


class Answer(NamedTuple):
    """An answer of the model.

    Attributes:
        text: what was shown.
        tokens: number of its tokens, the one that ended it included.
        finish_reason: why it ended; None if it was interrupted.
        reused: number of tokens of the prompt that were in the cache.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None
    reused: int


class ChatSession:
    """Messages of a chat, and the keys and values that its last prompt and answer left behind.

    The prompt of each answer is all messages, by the tokenizer's chat template or else `PLAIN_TEMPLATE`. The cache is
    cropped to the first tokens that the prompt has in common with what it holds. Where a sliding window no longer has
    the positions that the crop needs, the prompt is computed anew. The tokens are those of a chat without a cache.

    Args:
        model: a language model of this package.
        tokenizer: its tokenizer.
        system_prompt: content of a first message that is never dropped.
        options: of `generate`, over the model's own and `DEFAULT_OPTIONS`.
        notify: receives what the user should know: that turns were dropped, that there is no template.
        generation_config: in place of `DEFAULT_OPTIONS`; the model's own fills what it leaves at a default.

    Attributes:
        messages: of the user and the model, without the system prompt.
        options: see Args; `set_options` changes them.
        notify: see Args.
        context: number of tokens that fit into prompt and answer.

    Raises:
        OptionError: see `set_options`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: ChatTokenizer,
        system_prompt: str | None = None,
        options: Mapping[str, Any] | None = None,
        notify: Callable[[str], object] = lambda message: None,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        self.model, self.tokenizer, self.system_prompt = model, tokenizer, system_prompt
        self.messages: list[Message] = []
        self.options: dict[str, Any] = {}
        self.context = positions(model) or context_length(model)
        self.notify = notify
        self._generation_config = generation_config
        self._has_said_plain = False
        self._cache: Cache | None = None
        self._cached: list[int] = []  # the tokens of the positions in the cache
        self.set_options({**(DEFAULT_OPTIONS if generation_config is None else {}), **(options or {})})

    @property
    def is_plain(self) -> bool:
        """Whether the tokenizer has no chat template."""
        return getattr(self.tokenizer, "chat_template", None) is None

    @property
    def cached_tokens(self) -> int:
        """Number of tokens in the cache."""
        return len(self._cached)

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Change options of `generate`.

        Raises:
            OptionError: an option is unknown or impossible, or gives several texts or beams.
        """
        chosen = {**self.options, **options}
        config = self._merged(chosen)
        beams, rows = config.num_beams or 1, config.num_return_sequences or 1
        if beams > 1 or rows > 1:
            name = "num_beams" if beams > 1 else "num_return_sequences"
            raise OptionError(
                f"{name}={max(beams, rows)} is not possible in a chat, which shows one text as it is written"
            )
        if (config.max_new_tokens or 1) < 1:
            raise OptionError(f"max_new_tokens={config.max_new_tokens} must be at least 1")
        self.options, self._most_tokens = chosen, config.max_new_tokens or self.context

    def clear(self) -> None:
        """Remove all messages; the system prompt and the options stay."""
        self.messages = []

    def answer(
        self,
        text: str,
        show: Callable[[str], object] = lambda piece: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer a message; both are appended to the messages.

        Args:
            text: the user's message.
            show: receives pieces of the answer while it is written.
            should_stop: asked after every token whether the answer is to end there.

        Raises:
            InputError: the message does not fit into the context; the messages stay as they are, as with any error.
        """
        if self.is_plain and not self._has_said_plain:
            self._has_said_plain = True
            self.notify("the tokenizer has no chat template; messages are written as 'User: ...' and 'Assistant: ...'")
        messages, ids = self._fitting([*self.messages, {"role": "user", "content": text}])
        streamer = AnswerStreamer(self.tokenizer, show, should_stop, PLAIN_STOP if self.is_plain else "")
        reason, reused = self._generate(ids, streamer)
        self.messages = [*messages, {"role": "assistant", "content": streamer.text.strip()}]
        return Answer(streamer.text.strip(), len(streamer.ids), reason, reused)

    def _generate(self, ids: list[int], streamer: AnswerStreamer) -> tuple[FinishReason | None, int]:
        """Write an answer; returns why it ended, and how many tokens of the prompt were in the cache."""
        options = {**self.options, "max_new_tokens": min(self._most_tokens, self.context - len(ids))}
        if self.is_plain:
            own = options.get("stop_strings") or []
            options["stop_strings"] = [*([own] if isinstance(own, str) else own), PLAIN_STOP]
        cache, reused = self._cache_for(ids) if _keeps_cache(self._merged(options)) else (None, 0)
        reasons: list[FinishReason] = []
        self._cache, self._cached = None, []  # if generation fails, nothing is known of the cache
        try:
            self.model.generate(
                torch.tensor([ids], device=self.model.device),
                generation_config=self._generation_config,
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self.model.device),
                past_key_values=cache,
                streamer=streamer,
                tokenizer=self.tokenizer,
                on_finish=lambda row, reason, number: reasons.append(reason),
                **options,
            )
        except Interrupted:
            streamer.end()
        if cache is not None:
            self._cache, self._cached = cache, [*ids, *streamer.ids][: cache.get_seq_length()]
        return (reasons[0] if reasons else None), reused

    def _cache_for(self, ids: list[int]) -> tuple[Cache, int]:
        """The cache for a prompt, and the number of its tokens that are in it; at least one is not."""
        common = common_length(self._cached, ids[:-1])
        cache = self._cache
        if cache is None or common == 0:
            return DynamicCache(config=self.model.config), 0
        if cache.get_seq_length() > common:
            try:
                cache.crop(common)
            except InputError:  # a sliding window has dropped positions that it would need
                return DynamicCache(config=self.model.config), 0
        return cache, common

    def _fitting(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        """The messages without the oldest turns, until an answer has room after them, and their ids."""
        ids, dropped = self._ids(messages), 0
        room = min(self._most_tokens, self.context // 4)
        while len(ids) + room > self.context and (rest := without_oldest_turn(messages)):
            messages, dropped = rest, dropped + 1
            ids = self._ids(messages)
        if len(ids) >= self.context:
            raise InputError(
                f"the message has {len(ids)} tokens, with its template, and the model's context {self.context}; "
                "shorten it"
            )
        if dropped:
            turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            self.notify(f"the context of {self.context} tokens is full: {turns} dropped")
        return messages, ids

    def _merged(self, options: Mapping[str, Any]) -> GenerationConfig:
        """All options of an answer."""
        return merge_config(self.model, self._generation_config, None, dict(options))[0]

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        ids: list[int] = self.tokenizer.apply_chat_template(
            [*system, *messages],
            chat_template=PLAIN_TEMPLATE if self.is_plain else None,
            add_generation_prompt=True,
            tokenizer_kwargs={"verbose": False},
        )
        return ids

    def transcript(self) -> dict[str, Any]:
        """Messages, the system prompt among them, and options, for JSON."""
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return {"options": dict(self.options), "messages": [*system, *self.messages]}

    def restore(self, transcript: Any) -> None:
        """Continue a chat from its transcript, from one of Transformers' `chat`, or from a list of messages.

        Raises:
            InputError: it is neither.
            OptionError: its options are not possible.
        """
        content = {"messages": transcript} if isinstance(transcript, list) else transcript
        content = content if isinstance(content, dict) else {}
        messages, options = content.get("messages", content.get("chat_history")), content.get("options", {})
        if not isinstance(messages, list) or not isinstance(options, dict) or not all(map(is_message, messages)):
            raise InputError(
                "a transcript is a list of messages, or an object with 'messages' and 'options'; a message has "
                f"a 'role' ({', '.join(ROLES)}) and a 'content'"
            )
        self.set_options(options)
        first = messages[:1] if messages and messages[0]["role"] == "system" else []
        self.system_prompt = first[0]["content"] if first else None
        self.messages = [{"role": one["role"], "content": one["content"]} for one in messages[len(first) :]]


def _keeps_cache(config: GenerationConfig) -> bool:
    """Whether a decoding mode leaves keys and values of the tokens of one row in the cache that it is given."""
    simple = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
    mode = config.get_generation_mode(None)
    return bool(config.use_cache) and config.cache_implementation is None and mode in simple


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of first ids that two sequences have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def without_oldest_turn(messages: list[Message]) -> list[Message]:
    """Messages from the second message of the user on; none if there is only one."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return messages[starts[1] :] if len(starts) > 1 else []


def is_message(value: Any) -> bool:
    """Whether a value is a message of a chat."""
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)
