"""The prompt of `generate`: ids or embeddings, attention mask, cache, and further arguments of the model's forward."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptrio.cache.protocol import windows_of
from gptrio.cache.transformers import cache_of
from gptrio.config.fields import as_list
from gptrio.errors import InputError, OptionError, TokenIdError, warn
from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.protocol import CausalLM

if TYPE_CHECKING:
    from gptrio.generation.columns import Moved

_BY_POSITION = ("attention_mask", "position_ids", "token_type_ids", "inputs_embeds")
COLUMNS = ("ids", "attention_mask", "embeds", "position_ids", "token_type_ids")  # fields with an axis of positions


@dataclass
class Prompt:
    """The rows to continue.

    Attributes:
        ids: (B, T) tokens; T may be 0 with embeddings.
        attention_mask: (B, S) bool, True for real tokens, S the longer of ids and embeddings; None if all are real.
        embeds: (B, S, C) that the first step reads instead of ids, or None.
        position_ids: (B, S) given by the caller, or None.
        token_type_ids: (B, S) or None; new tokens get those of the last column.
        cache: keys and values of the first positions, or None.
        constants: further arguments of the model's forward, the same at every step.
        moved: the permutation of the caller's columns, or None if they were not moved.
        skipped: number of first positions that are in the cache but not in `ids`; the other columns include them.
    """

    ids: Tensor
    attention_mask: Tensor | None = None
    embeds: Tensor | None = None
    position_ids: Tensor | None = None
    token_type_ids: Tensor | None = None
    cache: Any = None
    constants: dict[str, Any] = field(default_factory=dict)
    moved: Moved | None = None
    skipped: int = 0

    @property
    def length(self) -> int:
        """S: positions of the prompt."""
        return self.skipped + self.ids.shape[1] if self.embeds is None else self.embeds.shape[1]

    @property
    def longest_row(self) -> int:
        """Largest number of real tokens in a row."""
        return self.length if self.attention_mask is None else int(self.attention_mask.sum(-1).max())

    @property
    def has_left_padding_only(self) -> bool:
        """Whether padding precedes the real tokens in every row."""
        return self.attention_mask is None or not bool((self.attention_mask[:, 1:] < self.attention_mask[:, :-1]).any())

    @property
    def has_gaps(self) -> bool:
        """Whether ids after the cached positions include padding, which cannot be moved without those positions."""
        return (
            bool(self.skipped)
            and self.attention_mask is not None
            and not bool(self.attention_mask[:, self.skipped :].all())
        )

    def repeated(self, times: int) -> Prompt:
        """Repeat every row `times` times, copies side by side; the cache is not repeated."""
        if times == 1:
            return self

        def repeat(name: str, value: Any) -> Any:
            shared = name == "head_mask" or not isinstance(value, Tensor) or value.dim() < 2
            return value if shared else value.repeat_interleave(times, dim=0)

        constants = {name: repeat(name, value) for name, value in self.constants.items()}
        by_row = {name: repeat(name, getattr(self, name)) for name in COLUMNS}
        return replace(self, constants=constants, **by_row)

    def without_cache(self) -> Prompt:
        """Return the prompt without its cache and without the positions that only the cache has."""
        if not self.skipped:
            return replace(self, cache=None)
        tensors = {name: getattr(self, name) for name in COLUMNS if name != "ids"}
        rest = {name: tensor[:, self.skipped :] for name, tensor in tensors.items() if tensor is not None}
        return replace(self, cache=None, skipped=0, **rest)

    def without_first(self, number: int) -> Prompt:
        """Return the prompt without its first `number` positions."""
        tensors = {name: getattr(self, name) for name in COLUMNS}
        rest = {name: tensor[:, number:] for name, tensor in tensors.items() if tensor is not None}
        return replace(self, moved=None, **rest)


def keep_last(model: CausalLM) -> dict[str, int]:
    """Return `logits_to_keep=1` as a dictionary, which is empty if the model's forward does not take it."""
    own = model.__dict__.get("forward")
    return {"logits_to_keep": 1} if _takes_logits_to_keep(own or type(model).forward) else {}


@functools.lru_cache(maxsize=64)
def _takes_logits_to_keep(forward: Any) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


def build_prompt(model: CausalLM, inputs: Tensor | None, arguments: dict[str, Any], config: GenerationConfig) -> Prompt:
    """Check the rows to continue and build their attention mask.

    Args:
        model: its device and vocabulary are used.
        inputs: (B, T) ids, or None.
        arguments: arguments of the model's forward; `input_ids` and the fields of `Prompt` are removed from it.
        config: its special tokens are used.

    Raises:
        InputError: the tensors do not fit each other or the model.
        OptionError: there is no prompt, and no `bos_token_id` to start from.
        TokenIdError: an id outside the vocabulary.
    """
    own = arguments.pop("input_ids", None)
    where = arguments.pop("cache_position", None)  # computed anew in every step
    if inputs is not None and own is not None:
        raise InputError("the prompt was given twice, as the first argument and as input_ids; give one of them")
    ids = own if inputs is None else inputs
    given = {name: arguments.pop(name, None) for name in _BY_POSITION}
    given = {name: value if value is None else value.to(model.device) for name, value in given.items()}
    embeds, mask = given["inputs_embeds"], given["attention_mask"]
    ids = _checked_ids(model, ids) if ids is not None else _start(model, given, arguments, config.bos_token_id)
    if ids.shape[1] == 0 and embeds is None:
        ids, mask = _from_bos(ids, config.bos_token_id), None
    if embeds is not None and (embeds.dim() != 3 or embeds.shape[0] != ids.shape[0] or embeds.shape[1] == 0):
        raise InputError(f"inputs_embeds must be ({ids.shape[0]}, length, width); got shape {tuple(embeds.shape)}")
    cache = cache_of(arguments.pop("past_key_values", None))
    prompt = Prompt(
        ids, None, embeds, given["position_ids"], given["token_type_ids"], cache, _on_device(model, arguments)
    )
    if cache is not None and embeds is None:
        _skip_cached(prompt, mask, where)
    prompt.attention_mask = _attention_mask(prompt, mask, config)
    if prompt.has_gaps:
        _check_gaps(model, prompt)
    if cache is not None:
        _check_cache(prompt)
    return prompt


def _skip_cached(prompt: Prompt, mask: Tensor | None, cache_position: Tensor | None) -> None:
    """Set `skipped` if the ids are only the new tokens after the cached positions.

    They are if the mask (B, S) covers the cached positions too, or if `cache_position` (T,) starts after these.
    """
    held, new = prompt.cache.get_seq_length(), prompt.ids.shape[1]
    start = int(cache_position[0]) if cache_position is not None and cache_position.shape[0] == new else 0
    if start > 0 and start != held:
        raise InputError(
            f"cache_position starts at {start}, but past_key_values hold {held} positions; expected "
            f"{held} (cache.crop shortens the cache)"
        )
    if start == 0 and (mask is None or mask.shape[-1] != held + new):
        return
    prompt.skipped = held
    for name in ("position_ids", "token_type_ids"):
        columns = getattr(prompt, name)
        if columns is not None and columns.shape[1] == new:  # of the new tokens alone
            setattr(prompt, name, torch.cat([columns.new_zeros(len(columns), held), columns], dim=1))


def _check_gaps(model: CausalLM, prompt: Prompt) -> None:
    """Raise InputError for padding among new tokens that a mask cannot hide from the tokens after it."""
    assert prompt.attention_mask is not None
    windows = any(window is not None for window in windows_of(model.config))
    if windows or prompt.cache.real_positions_last or not bool(prompt.attention_mask[:, -1].all()):
        why = "a local window would count it" if windows else "it is not on the left of the new tokens alone"
        raise InputError(
            f"padding is among new tokens that follow past_key_values, and {why}; pass the whole prompt, with what "
            "the cache holds, or rows of new tokens without padding"
        )


def _checked_ids(model: CausalLM, ids: Any) -> Tensor:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in (torch.long, torch.int) or not len(ids):
        what = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"the prompt must be a tensor of token ids (batch, length), such as input_ids; got {what}")
    on_device: Tensor = ids.to(model.device, torch.long)
    rows = getattr(model.get_input_embeddings(), "num_embeddings", model.config.vocab_size)
    if on_device.numel():
        lowest, highest = (int(end) for end in on_device.aminmax())
        if lowest < 0 or highest >= rows:
            wrong = lowest if lowest < 0 else highest
            raise TokenIdError(f"the prompt holds token id {wrong}; the model knows 0 to {rows - 1}")
    return on_device


def _start(
    model: CausalLM, given: dict[str, Tensor | None], arguments: dict[str, Any], bos: int | list[int] | None
) -> Tensor:
    """Return the ids if none were given: empty rows with embeddings, else `bos` for each row of the other tensors."""
    others = [value for value in [*given.values(), *arguments.values()] if isinstance(value, Tensor)]
    empty = torch.empty((others[0].shape[0] if others else 1, 0), dtype=torch.long, device=model.device)
    return empty if given["inputs_embeds"] is not None else _from_bos(empty, bos)


def _from_bos(empty: Tensor, bos_token_id: int | list[int] | None) -> Tensor:
    if bos_token_id is None:
        raise OptionError("the prompt is empty and there is no bos_token_id to start from; pass input_ids")
    return empty.new_tensor(as_list(bos_token_id)).expand(empty.shape[0], -1)


def _on_device(model: CausalLM, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
        if value is not None
    }


def _attention_mask(prompt: Prompt, mask: Tensor | None, config: GenerationConfig) -> Tensor | None:
    """Return the mask of real tokens, by the given one or by the padding tokens in the ids; None if all are real."""
    if mask is None:
        ids, pad = prompt.ids, config.pad_token_id
        if prompt.embeds is not None and ids.shape[1] != prompt.length:
            return None
        ends = eos_ids(config)
        if pad is None or pad in ends:
            _warn_of_unseen_padding(ids, next(iter(ends), None) if pad is None else pad)
            return None
        is_real: Tensor = torch.cat([ids.new_ones(len(ids), prompt.skipped).bool(), ids != pad], dim=1)
    else:
        rows, length = prompt.ids.shape[0], prompt.length
        if mask.dim() != 2 or mask.shape != (rows, length):
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}; expected ({rows}, {length}), one number for each token "
                "of the prompt, what a cache already holds included"
            )
        is_real = mask != 0
    if bool(is_real.all()):
        return None
    return is_real


def _warn_of_unseen_padding(ids: Tensor, pad: int | None) -> None:
    """Warn if rows begin or end with a token that may be padding but counts as an end-of-text token."""
    if pad is not None and ids.shape[0] > 1 and bool((ids[:, [0, -1]] == pad).any()):
        warn(
            f"some prompts begin or end with token {pad}, which is both padding and end of text; pass the tokenizer's "
            "attention_mask to distinguish them"
        )


def _check_cache(prompt: Prompt) -> None:
    """Raise InputError unless the cache is shorter than the prompt."""
    held = prompt.cache.get_seq_length()
    if held >= prompt.length:
        raise InputError(
            f"past_key_values hold {held} positions and the prompt has {prompt.length}; the prompt starts with the "
            "cached tokens, and at least one token must follow (cache.crop shortens it); for new tokens alone pass "
            "an attention_mask that counts the cache's positions too"
        )
