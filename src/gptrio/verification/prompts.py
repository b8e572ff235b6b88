"""Fixed prompts of different lengths for a model, in its own tokens."""

from __future__ import annotations

import random
from typing import Any

from gptrio.errors import GptrioError
from gptrio.verification.paths import NEW_TOKENS

TEXTS = (
    "def main():\n    import sys\n    for name in sys.argv[1:]:\n        print(name)\n    return None\n",
    "The quick brown fox jumps over the lazy dog, and the dog is not amused.",
    "import os\n\n\nclass Node:\n",
    "Once upon a time there was a king who had three sons",
)
_MOST_TOKENS = 48


def make_prompts(name_or_path: str, config: Any) -> tuple[list[list[int]], str]:
    """Ids of prompts that leave room for new tokens, and why they are not text, or "".

    Args:
        name_or_path: whose tokenizer is used; fixed random ids take the place of texts if it has none that fits.
        config: of the model.
    """
    from gptrio import AutoTokenizer

    longest = max(2, min(_MOST_TOKENS, config.max_position_embeddings - NEW_TOKENS))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:longest] for text in TEXTS]
        problem = ""
    except GptrioError as error:
        rows, problem = [], f"random ids take the place of text, as there is no tokenizer ({error})"
    if not all(len(row) > 1 and max(row) < config.vocab_size for row in rows):
        rows = []
        problem = f"random ids take the place of text: the tokenizer does not fit the {config.vocab_size} tokens"
    if not rows:
        draw = random.Random(0)
        lengths = [max(2, longest - longest * i // 5) for i in range(4)]
        rows = [[draw.randrange(config.vocab_size) for _ in range(length)] for length in lengths]
    return rows, problem
