"""The model class `gptrio` of the lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

Importing this module registers it: `simple_evaluate(model="gptrio", model_args="pretrained=NAME", tasks=[...])`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from gptrio.errors import InputError, OptionError, counted, import_optional
from gptrio.models.auto import AutoModelForCausalLM
from gptrio.scoring.forward import Wanted, check_ids, context_length, default_batch_tokens, predict
from gptrio.scoring.generating import generate_all
from gptrio.scoring.local_tasks import MISSING
from gptrio.scoring.packing import Row
from gptrio.scoring.score import end_of_text
from gptrio.tokenization.auto import AutoTokenizer

TemplateLM: Any = import_optional("lm_eval.api.model", MISSING).TemplateLM
register_model: Any = import_optional("lm_eval.api.registry", MISSING).register_model
harness: Any = import_optional("lm_eval.utils", MISSING)
tqdm: Any = import_optional("tqdm", MISSING).tqdm

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]  # strings, ids of the context, ids to score


@register_model("gptrio")
class GptrioLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A language model of gptrio, as the harness calls it.

    Args:
        pretrained: name or folder of a model, or the model itself.
        tokenizer: name, folder or the tokenizer itself; the model's by default.
        revision: branch, tag or commit of the model's repository.
        dtype: number format; "auto" is the file's.
        quantize: "int8", "int4", "nf4" or "fp4".
        batch_tokens: most tokens that are computed at once; 1,024 on a CPU and 8,192 elsewhere by default.
        max_length: most tokens that the model reads at once; its context by default.
        device: where it computes; a GPU if there is one.
        prefix_token_id: read before a text without a context; by default the tokenizer's bos token, or else its eos
            token.
        seed: of sampled texts.
        batch_size, max_batch_size: no effect, as batches are counted in tokens.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        revision: str = "main",
        dtype: str = "auto",
        quantize: str | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        prefix_token_id: int | None = None,
        seed: int | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        self.revision = revision
        if isinstance(pretrained, str):
            options = {} if quantize is None else {"load_in": quantize}
            self.model = AutoModelForCausalLM.from_pretrained(pretrained, revision=revision, dtype=dtype, **options)
            self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        else:
            self.model = pretrained
        self.model.eval()
        self.tokenizer = _tokenizer(tokenizer, self.model, revision)
        self.batch_tokens = (
            default_batch_tokens(self.model) if batch_tokens is None else _number(batch_tokens, "batch_tokens")
        )
        self.seed = seed
        longest = context_length(self.model)
        self._max_length = longest if max_length is None else _number(max_length, "max_length", longest)
        self._prefix_token_id = prefix_token_id

    # What the harness asks for

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's eos token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return end_of_text(self.tokenizer) if self._prefix_token_id is None else int(self._prefix_token_id)

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads at once."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Most new tokens of a text, unless a task says otherwise."""
        return 256

    @property
    def batch_size(self) -> str:
        """What the harness reports: batches are counted in tokens."""
        return counted(self.batch_tokens, "token")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def tokenizer_name(self) -> str:
        """A file name for the tokenizer."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside results."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_revision": self.revision,
            "model_sha": getattr(self.model.config, "_commit_hash", None) or "",
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a chat as text by the tokenizer's template."""
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **options))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, without special tokens unless they are asked for."""
        found: list[int] = self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False)[
            "input_ids"
        ]
        return found

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    # Processes that share the requests

    @property
    def rank(self) -> int:
        """Number of this process."""
        return torch.distributed.get_rank() if _is_distributed() else 0

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return torch.distributed.get_world_size() if _is_distributed() else 1

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tensors (n, ...) of all processes, joined."""
        if not _is_distributed():
            return tensor
        found = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(found, tensor)
        return torch.cat([part.reshape(-1) if part.dim() == 0 else part for part in found])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Objects of all processes, on process `dst`; None on the others."""
        if not _is_distributed():
            return [obj]
        found = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        if _is_distributed():
            torch.distributed.barrier()

    # Requests

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of continuations after contexts, and whether each is the likeliest; see the harness."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, self._is_quiet(disable_tqdm))
        return found

    def _is_quiet(self, disable_tqdm: bool) -> bool:
        """Whether no progress is shown: it is for terminals, and the first process only."""
        return disable_tqdm or self.rank > 0 or sys.stderr is None or not sys.stderr.isatty()

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the likeliest token at every position.

        Args:
            requests: (strings or None, ids of the context, ids to score); too long a context loses its beginning.
            disable_tqdm: show no progress.
            override_bs: no effect, as batches are counted in tokens.

        Raises:
            InputError: a continuation is empty or longer than the model's context.
        """
        rows = [self._row(strings, context, continuation) for strings, context, continuation in requests]
        answers: list[Any] = [None] * len(rows)
        progress = tqdm(total=len(rows), disable=self._is_quiet(disable_tqdm), desc="Scoring requests")
        with progress:
            for index, found in predict(self.model, rows, Wanted(top=1), self.batch_tokens):
                assert found.top_ids is not None
                row = rows[index]
                is_greedy = found.top_ids[:, 0].tolist() == list(row.ids[row.first :])
                answers[index] = (found.log_probs.double().sum().item(), is_greedy)
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
                progress.update()
        return answers

    def _row(self, strings: tuple[str, str] | None, context: list[int], continuation: list[int]) -> Row:
        """The last ids that the model can read, and where those to score begin."""
        if not context or not 0 < len(continuation) <= self.max_length:
            raise InputError(
                f"a request has {counted(len(context), 'token')} of context and {len(continuation)} to score: {strings}"
                f"; expected at least 1 of each, and at most {self.max_length} to score"
            )
        ids = [*context, *continuation][-(self.max_length + 1) :]
        check_ids(self.model, ids, f"a request {strings}")
        return Row(ids, len(ids) - len(continuation))

    def loglikelihood_rolling(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows that do not overlap; see the harness."""
        texts = [request.args[0] for request in requests]
        windows: list[TokenRequest] = []
        counts = []
        for text in texts:
            parts = harness.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *harness.make_disjoint_window(part)) for part in parts]
            windows += own
            counts.append(len(own))
        found = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(found)[0] for _ in range(count)) for count in counts]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue texts until one of the texts in `until`, which is cut off, or the end of text."""
        arguments = [request.args for request in requests]
        groups: dict[str, list[int]] = {}
        for i, (_, options) in enumerate(arguments):
            groups.setdefault(json.dumps(options, sort_keys=True, default=str), []).append(i)
        texts: list[Any] = [None] * len(arguments)
        with tqdm(total=len(texts), disable=self._is_quiet(disable_tqdm), desc="Generating") as progress:
            for indices in groups.values():
                options = dict(arguments[indices[0]][1])
                for place, text in generate_all(self, [arguments[i][0] for i in indices], options):
                    texts[indices[place]] = text
                    self.cache_hook.add_partial("generate_until", arguments[indices[place]], text)
                    progress.update()
        return texts


def _tokenizer(given: Any, model: Any, revision: str) -> Any:
    """The tokenizer that was given, or the model's."""
    if given is None and not model.config._name_or_path:
        raise InputError("a model that was not loaded by name has no tokenizer of its own; pass tokenizer=")
    if given is None or isinstance(given, str):
        return AutoTokenizer.from_pretrained(given or model.config._name_or_path, revision=revision)
    return given


def _number(value: Any, name: str, most: int | None = None) -> int:
    """A number of 1 or more, perhaps written as text; raises OptionError for anything else."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or (most is not None and number > most):
        raise OptionError(f"{name}={value!r} is impossible; expected 1 {'or more' if most is None else f'to {most}'}")
    return number


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
