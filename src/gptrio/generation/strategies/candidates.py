"""Sources of draft tokens for assisted generation: a smaller model, the first layers, or the text itself.

A draft never changes what is generated, only how fast. Shapes: `B` rows, `n` drafted tokens, `V` vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gptrio.cache import DynamicCache
from gptrio.config.fields import check_number
from gptrio.errors import OptionError
from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.options.max_length import context_length, last_column
from gptrio.generation.processors.base import TokenIds
from gptrio.generation.prompt import Prompt, keep_last
from gptrio.generation.protocol import CausalLM
from gptrio.generation.sampling import Generators, draw
from gptrio.generation.step import DecodeRunner

Process = Callable[[Tensor, Tensor], Tensor]
MAX_PAUSE = 256  # most steps without a draft after drafts that cost more than they saved
PROBE = 3  # tokens drafted after a pause, to measure the acceptance rate again
CHECKING_COST = 0.2  # time to check one more draft token, in steps of the model
DECAY = 0.8  # factor of the weight of earlier drafts, at each draft


class Draft(Protocol):
    """A source of draft tokens."""

    def propose(self, ids: Tensor, number: int) -> tuple[Tensor, Tensor | None]:
        """Return up to `number` tokens (B, n) that may follow ids (B, T), and what they were drawn from, if they were.

        The second is (B, n, V) probabilities; None for tokens that were not drawn at random.
        """


class DraftLengthPolicy:
    """How many tokens to draft: the number with the least expected time per token, at the recent acceptance rate.

    Time is estimated, not measured, so that a seed reproduces the same tokens.

    Args:
        most: most tokens at once.
        schedule: "constant" keeps `most` as the upper limit; the others always draft `most`, raise it by 2 after a
            draft that was accepted completely, and lower it by 1 after another one.
        cost: time to draft a token, in steps of the model.
    """

    def __init__(self, most: int, schedule: str, cost: float) -> None:
        self.most = most
        self._steady = schedule == "constant"
        self._cost = CHECKING_COST + cost
        self._num_accepted, self._num_tried = 2.0, 3.0  # decaying counts; they start at an acceptance rate of 2/3
        self._pause = self._waiting = 0
        self._probing = True

    def next(self) -> int:
        """Number of tokens to draft for this step."""
        if not self._steady:
            return self.most
        if self._waiting:
            self._waiting -= 1
            return 0
        if self._probing:
            self._probing = False
            return min(self.most, PROBE)
        number = max(range(self.most + 1), key=self._worth)
        if number == 0:
            self._pause = self._waiting = min(max(2 * self._pause, 8), MAX_PAUSE)
            self._probing = True
        return number

    def _worth(self, number: int) -> float:
        """Tokens that a draft of `number` is expected to yield, for each step's time."""
        rate = self._num_accepted / self._num_tried
        return sum(rate**i for i in range(number + 1)) / (1 + number * self._cost)

    def learn(self, drafted: int, matched: int, ended: bool = False) -> None:
        """Record that `matched` of `drafted` tokens were accepted, and whether all rows `ended` within them."""
        if not self._steady:
            self.most = self.most + 2 if matched == drafted and not ended else max(1, self.most - 1)
        if drafted == 0:
            return
        self._num_accepted = DECAY * self._num_accepted + matched
        self._num_tried = DECAY * self._num_tried + min(matched + 1, drafted)
        if matched:
            self._pause //= 2


def relative_cost(draft: CausalLM, model: CausalLM) -> float:
    """Time of a step of the draft model in steps of the model, by layers and parameters; at most 0.5."""
    sizes = (draft.num_parameters(exclude_embeddings=True), model.num_parameters(exclude_embeddings=True))
    layers = draft.config.num_hidden_layers / (2 * model.config.num_hidden_layers)  # many small calls take time too
    cost: float = min(max(sizes[0] / max(sizes[1], 1), layers), 0.5)
    return cost


class ModelDraft:
    """Tokens that a smaller model of the same vocabulary would write.

    Args:
        model: the smaller model.
        prompt: the rows, one for each sequence.
        config: the options of the call.
        process: the call's processors.
        threshold: drafting ends after a token below this probability.
        generators: where random numbers come from.
    """

    def __init__(
        self,
        model: CausalLM,
        prompt: Prompt,
        config: GenerationConfig,
        process: Process,
        threshold: float,
        generators: Generators,
    ) -> None:
        plain = copy.copy(config)
        plain.output_attentions = plain.output_hidden_states = False
        prompt = prompt.without_cache()
        self._step = DecodeRunner(model, prompt, plain, 1, DynamicCache())
        self._last_column = last_column(model, prompt)
        self._do_sample = config.do_sample
        self._process = process
        self._threshold = threshold
        self._generators = generators

    def propose(self, ids: Tensor, number: int) -> tuple[Tensor, Tensor | None]:
        """Return up to `number` tokens (B, n), and their distributions (B, n, V) if they were drawn."""
        start = ids.shape[1]
        self._step.crop(start - 1)
        if self._last_column is not None:
            number = min(number, self._last_column - start)
        distributions = []
        for _ in range(number):
            scores = self._process(ids, self._step(ids).logits[:, -1].float())
            probabilities = scores.softmax(-1)
            if self._do_sample:
                tokens = draw(probabilities, 1, self._generators)
                distributions.append(probabilities)
            else:
                tokens = scores.argmax(-1, keepdim=True)
            ids = torch.cat([ids, tokens], dim=1)
            if self._threshold and bool((probabilities.gather(1, tokens) < self._threshold).any()):
                break
        return ids[:, start:], torch.stack(distributions, dim=1) if distributions else None


def find_continuation(input_ids: Tensor, length: int, longest_ngram: int) -> Tensor:
    """Return up to `length` tokens that followed the first earlier occurrence of the longest n-gram that ends the row.

    Args:
        input_ids: (T,) the tokens so far.
        length: most tokens to return.
        longest_ngram: longest n-gram to look for; shorter ones follow down to a single token.

    Returns:
        (n,) tokens, none if no n-gram occurs twice.
    """
    for size in range(min(longest_ngram, input_ids.shape[0] - 1), 0, -1):
        earlier = input_ids[:-1].unfold(0, size, 1)  # (N, size)
        found = (earlier == input_ids[-size:]).all(-1).nonzero()
        if len(found):
            start = int(found[0]) + size
            return input_ids[start : start + length]
    return input_ids[:0]


class PromptLookupCandidateGenerator:
    """Draft tokens for assisted generation by looking n-grams up in the row itself.

    Source: Saxena, "Prompt Lookup Decoding" (2023).

    Args:
        eos_token_id: token or tokens that end a row; a draft stops before them.
        num_output_tokens: most tokens to draft.
        max_matching_ngram_size: longest n-gram to look up (2 by default).
        max_length: most tokens of the row with its draft.
    """

    def __init__(
        self,
        eos_token_id: int | Sequence[int] | Tensor | None = None,
        num_output_tokens: int = 10,
        max_matching_ngram_size: int | None = None,
        max_length: int = 20,
    ) -> None:
        self.num_output_tokens = check_number("num_output_tokens", num_output_tokens, int, ge=1)
        size = 2 if max_matching_ngram_size is None else max_matching_ngram_size
        self.max_matching_ngram_size = check_number("max_matching_ngram_size", size, int, ge=1)
        self.max_length = max_length
        self._ends = frozenset(() if eos_token_id is None else TokenIds("eos_token_id", eos_token_id).ids)

    def get_candidates(self, input_ids: Tensor) -> tuple[Tensor, None]:
        """Return ids (1, T) with drafted tokens appended, (1, T + n), and no scores for them."""
        space = self.max_length - input_ids.shape[1] - 1  # the model itself adds a token to every draft
        if space <= 0:
            return input_ids, None
        draft = find_continuation(input_ids[0], min(self.num_output_tokens, space), self.max_matching_ngram_size)
        tokens = draft.tolist()
        kept = next((index for index, token in enumerate(tokens) if token in self._ends), len(tokens))
        return torch.cat([input_ids, draft[None, :kept]], dim=1), None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Do nothing: lookup does not adapt to the number of accepted tokens."""


class LookupDraft:
    """Draft tokens: those that followed the same n-gram earlier in the row."""

    def __init__(self, config: GenerationConfig) -> None:
        self._config = config

    def propose(self, ids: Tensor, number: int) -> tuple[Tensor, None]:
        """Return up to `number` tokens (B, n); rows that have found fewer are filled with their last token."""
        config = self._config
        lookup = PromptLookupCandidateGenerator(
            eos_ids(config) or None, number, config.max_matching_ngram_size, max_length=ids.shape[1] + number + 1
        )
        found = [lookup.get_candidates(row[None])[0][0, ids.shape[1] :] for row in ids]
        longest = max(len(tokens) for tokens in found)
        rows = [torch.cat([own, row[-1:].expand(longest - len(own))]) for own, row in zip(found, ids, strict=True)]
        return torch.stack(rows), None


class TextDraft:
    """Tokens for the text that a model of another vocabulary would write; one row.

    Args:
        model: the other model.
        tokenizer: the main model's.
        assistant_tokenizer: the other model's.
        config: the options of the call.
    """

    def __init__(self, model: CausalLM, tokenizer: Any, assistant_tokenizer: Any, config: GenerationConfig) -> None:
        self._model, self._tokenizer, self._other = model, tokenizer, assistant_tokenizer
        self._lookbehind = config.target_lookbehind
        self._cache = DynamicCache()
        self._read: list[int] = []  # tokens that the cache holds
        self._context = context_length(model)

    def propose(self, ids: Tensor, number: int) -> tuple[Tensor, None]:
        """Return up to `number` tokens (1, n)."""
        tokens = ids[0].tolist()
        before = self._other.encode(self._decode(self._tokenizer, tokens), add_special_tokens=False)
        new = self._write(before, min(number, self._context - len(before)))
        text = self._decode(self._other, before)
        added = self._decode(self._other, before + new)[len(text) :]
        tail = tokens[-self._lookbehind :]
        whole = self._tokenizer.encode(self._decode(self._tokenizer, tail) + added, add_special_tokens=False)
        continues = whole[: len(tail)] == tail  # the boundary may be inside a token
        draft = whole[len(tail) :] if continues else self._tokenizer.encode(added, add_special_tokens=False)
        return torch.tensor([draft[:number]], dtype=torch.long, device=ids.device), None

    def _write(self, before: list[int], number: int) -> list[int]:
        """The likeliest tokens after `before`, of the other vocabulary."""
        same = next((i for i, (a, b) in enumerate(zip(before, self._read, strict=False)) if a != b), None)
        kept = min(len(before) - 1, len(self._read)) if same is None else min(same, len(before) - 1)
        self._cache.crop(max(kept, 0))
        written = list(before)
        device = self._model.device
        for _ in range(number if before else 0):
            unread = torch.tensor([written[self._cache.get_seq_length() :]], device=device)
            logits = self._model(unread, past_key_values=self._cache, use_cache=True, **keep_last(self._model)).logits
            self._read = list(written)
            written.append(int(logits[0, -1].argmax()))
        return written[len(before) :]

    @staticmethod
    def _decode(tokenizer: Any, ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def first_layers(model: CausalLM, number: int) -> Any:
    """The model with its first `number` blocks only; weights are shared.

    Raises:
        OptionError: the model does not have more blocks than that.
    """
    base = model.base_model
    if number >= len(base.blocks):
        raise OptionError(f"assistant_early_exit={number} must be below the model's {len(base.blocks)} layers")
    name = next(name for name, module in base.named_children() if module is base.blocks)
    config = copy.copy(model.config)
    config.num_hidden_layers = number
    shallow_base = _with_child(base, config, name, base.blocks[:number])
    return _with_child(model, config, model.base_model_prefix, shallow_base)


def _with_child(module: Any, config: Any, name: str, child: Any) -> Any:
    """A copy of a module that shares everything but its configuration and one child."""
    new = copy.copy(module)
    new._modules = {**module._modules, name: child}
    new.config = config
    return new
