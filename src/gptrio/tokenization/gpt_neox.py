"""The tokenizer of GPT-NeoX and Pythia, over the `tokenizers` library."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from tokenizers.processors import TemplateProcessing

from gptrio.errors import TokenizationError
from gptrio.tokenization.fast import PreTrainedTokenizerFast
from gptrio.tokenization.prepare import Ids
from gptrio.tokenization.special_tokens import Token

_END_OF_TEXT = "<|endoftext|>"


class GPTNeoXTokenizerFast(PreTrainedTokenizerFast):
    """Byte-level BPE with NFC and tokens for runs of spaces, as in the `tokenizer.json` of GPT-NeoX-20B.

    Args:
        vocab_file, merges_file: vocabulary files of plain byte-level BPE, read if there is no tokenizer_file.
        tokenizer_file: path of a `tokenizer.json`.
        unk_token, bos_token, eos_token, pad_token: special tokens.
        add_bos_token, add_eos_token: put these tokens around each text.
        add_prefix_space: put a space before the text.
        **kwargs: see `PreTrainedTokenizerFast`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        unk_token: Token | None = _END_OF_TEXT,
        bos_token: Token | None = _END_OF_TEXT,
        eos_token: Token | None = _END_OF_TEXT,
        pad_token: Token | None = None,
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        add_prefix_space: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocab_file=vocab_file,
            merges_file=merges_file,
            tokenizer_file=tokenizer_file,
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            add_prefix_space=add_prefix_space,
            **kwargs,
        )
        self._add_bos_token = bool(add_bos_token)
        self._add_eos_token = add_eos_token
        self.update_post_processor()

    @property
    def add_bos_token(self) -> bool:
        """Whether the bos token stands before each text."""
        return self._add_bos_token

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._add_bos_token = value
        self.update_post_processor()

    @property
    def add_eos_token(self) -> bool:
        """Whether the eos token stands after each text."""
        return self._add_eos_token

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._add_eos_token = value
        self.update_post_processor()

    def update_post_processor(self) -> None:
        """Set the special tokens that the backend adds around a text; call this after changing them.

        Raises:
            TokenizationError: one that is switched on is not set.
        """
        around = {"bos_token": self._add_bos_token, "eos_token": self._add_eos_token}
        for name in (name for name, on in around.items() if on and getattr(self, name) is None):
            raise TokenizationError(f"add_{name}=True, but the tokenizer has no {name}; set one")
        single, pair = (
            [
                *[f"{self.bos_token}:{n}"] * self._add_bos_token,
                f"{text}:{n}",
                *[f"{self.eos_token}:{n}"] * self._add_eos_token,
            ]
            for n, text in enumerate(("$A", "$B"))
        )
        special = {getattr(self, name): getattr(self, f"{name}_id") for name, on in around.items() if on}
        self._tokenizer.post_processor = TemplateProcessing(
            single=single, pair=single + pair, special_tokens=list(special.items())
        )

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Put the bos and eos tokens that are switched on around each text."""
        bos = [self.bos_token_id] if self._add_bos_token and self.bos_token_id is not None else []
        eos = [self.eos_token_id] if self._add_eos_token and self.eos_token_id is not None else []
        return bos + token_ids_0 + eos + ([] if token_ids_1 is None else bos + token_ids_1 + eos)

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for special tokens and 0 for others in the result of `build_inputs_with_special_tokens`."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        texts = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        bos, eos = [1] * self._add_bos_token, [1] * self._add_eos_token
        return [flag for ids in texts for flag in (*bos, *[0] * len(ids), *eos)]
