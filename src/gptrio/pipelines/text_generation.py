"""`TextGenerationPipeline`: continues prompts and chats."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gptrio.errors import InputTypeError, OptionError
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.resolve import config_of_caller, merge_config
from gptrio.generation.options.schema import GenerationMode, option_types
from gptrio.outputs import ModelOutput
from gptrio.pipelines.base import Parameters, Pipeline, without_none
from gptrio.pipelines.batching import Row, by_length, collate, in_order, length_of, of_equal_length
from gptrio.pipelines.chats import Chat, with_chat
from gptrio.pipelines.results import Report, ignore
from gptrio.tokenization.encoding import short

_OF_TOKENIZER = ("add_special_tokens", "padding", "truncation", "max_length")
# arguments of a call besides options with which its rows may run together
_ALLOWED_IN_BATCHES = ("generation_config", "prefix_length", "seed")
# options that look at the ids of the prompt, or count them, for which padding would make a difference
_SEE_PROMPT = (
    "bad_words_ids", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "guidance_scale", "min_length",
    "no_repeat_ngram_size", "repetition_penalty", "sequence_bias", "stop_strings", "token_healing",
    "watermarking_config",
)  # fmt: skip


class ReturnType(enum.Enum):
    """What a result holds: ids, the new text, or the prompt and the new text."""

    TENSORS = 0
    NEW_TEXT = 1
    FULL_TEXT = 2


class TextGenerationPipeline(Pipeline):
    """Continues texts, or chats with the tokenizer's chat template, with a language model.

    Where neither the model nor the caller sets them, `max_new_tokens` is 256, `do_sample` True and `temperature` 0.7.

    Greedy and beam search over many prompts run in batches on a CPU unasked. Sampling does so with `seed`, which gives
    each prompt its own random numbers; otherwise it runs prompt by prompt, so that a seeded program draws the same
    tokens for a list as for single calls. Results have no padding.

    Example:
        >>> generator = pipeline("text-generation", "gptrio/stdlib-gpt2")
        >>> generator(["import os", "def main("], max_new_tokens=5, do_sample=False)[0][0].keys()
        dict_keys(['generated_text'])
    """

    _pipeline_calls_generate = True
    _load_tokenizer = True
    _batches_by_length = True
    _max_rows = 64
    _default_generation_config: ClassVar[GenerationConfig] = GenerationConfig(
        max_new_tokens=256, do_sample=True, temperature=0.7
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "prefix" not in self._preprocess_params and self.prefix is not None:
            preprocess, forward, _ = self._sanitize_parameters(prefix=self.prefix, **self._forward_params)
            self._preprocess_params.update(preprocess)
            self._forward_params.update(forward)

    def _sanitize_parameters(
        self,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        return_type: ReturnType | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        prefix: str | None = None,
        handle_long_generation: str | None = None,
        stop_sequence: str | None = None,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool | None = None,
        tokenizer_encode_kwargs: dict[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> Parameters:
        if handle_long_generation not in (None, "hole"):
            raise OptionError(
                f"handle_long_generation={handle_long_generation!r} is not known; expected None or 'hole'"
            )
        of_tokenizer = {name: generate_kwargs.pop(name, None) for name in _OF_TOKENIZER}
        if of_tokenizer["max_length"] is not None:
            generate_kwargs["max_length"] = of_tokenizer["max_length"]
        if prefix:
            special = of_tokenizer["add_special_tokens"] or False
            generate_kwargs["prefix_length"] = len(self.tokenizer(prefix, add_special_tokens=special)["input_ids"])
        preprocess = {
            **of_tokenizer,
            "prefix": prefix,
            "handle_long_generation": handle_long_generation,
            "continue_final_message": continue_final_message,
            "tokenizer_encode_kwargs": tokenizer_encode_kwargs,
        }
        postprocess = {
            "return_type": _return_type(return_type, return_full_text, return_tensors, return_text),
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
            "continue_final_message": continue_final_message,
            "skip_special_tokens": skip_special_tokens,
        }
        forward = dict(generate_kwargs)
        if stop_sequence is not None:
            forward["eos_token_id"] = self.tokenizer.encode(stop_sequence, add_special_tokens=False)
        if self.assistant_model is not None:
            forward["assistant_model"] = self.assistant_model
        if self.assistant_tokenizer is not None:
            forward |= {"tokenizer": self.tokenizer, "assistant_tokenizer": self.assistant_tokenizer}
        return {**without_none(preprocess), **generate_kwargs}, forward, without_none(postprocess)

    def __call__(self, text_inputs: Any, **kwargs: Any) -> Any:
        """Continue one prompt or chat, or several.

        Args:
            text_inputs: a text; a chat, which is a list of dictionaries with "role" and "content"; or a list, a
                generator or a dataset of either.
            kwargs: any of

                - return_full_text: False for the new text alone.
                - return_tensors: ids (`generated_token_ids`) in place of texts.
                - return_text: the default; contradicts the two above.
                - clean_up_tokenization_spaces: drop spaces before punctuation; True.
                - skip_special_tokens: leave special tokens out of texts; True.
                - continue_final_message: continue a chat's last message; by default if it is the assistant's.
                - prefix: a text before every prompt.
                - handle_long_generation: "hole" drops the first tokens of prompts that leave no room in the context.
                - stop_sequence: a text, each of whose tokens ends the generation.
                - add_special_tokens, padding, truncation, max_length, tokenizer_encode_kwargs: of the tokenizer;
                  `max_length` is an option of `generate` too.
                - batch_size: see `Pipeline`.
                - everything that `generate` takes, such as max_new_tokens, num_return_sequences, generation_config.

        Returns:
            For one input a list of dictionaries, one for each returned sequence, with "generated_text" (a text, or
            messages for a chat) or "generated_token_ids"; for several inputs one such list for each.

        Raises:
            OptionError: arguments are unknown or contradict each other.
            InputError: an input is neither a text nor a chat, or a message of a chat lacks its role or content.
        """
        return super().__call__(with_chat(text_inputs), **kwargs)

    def preprocess(
        self,
        prompt_text: Any,
        prefix: str = "",
        handle_long_generation: str | None = None,
        add_special_tokens: bool | None = None,
        truncation: Any = None,
        padding: Any = None,
        max_length: int | None = None,
        continue_final_message: bool | None = None,
        tokenizer_encode_kwargs: dict[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> dict[str, Any]:
        """Encode a text after the prefix, or a chat with its template."""
        values = (add_special_tokens, padding, truncation, max_length)
        options = {**without_none(dict(zip(_OF_TOKENIZER, values, strict=True))), **(tokenizer_encode_kwargs or {})}
        if max_length is not None and truncation is None and padding is None:
            options.setdefault("truncation", True)
        if isinstance(prompt_text, (list, tuple)):
            prompt_text = Chat(prompt_text)
        if isinstance(prompt_text, Chat):
            options.pop("add_special_tokens", None)  # the template writes them
            is_continued = prompt_text.is_continued(continue_final_message)
            inputs = self.tokenizer.apply_chat_template(
                prompt_text.messages,
                add_generation_prompt=not is_continued,
                continue_final_message=is_continued,
                return_dict=True,
                return_tensors="pt",
                **options,
            )
        elif isinstance(prompt_text, str):
            inputs = self.tokenizer(prefix + prompt_text, return_tensors="pt", **options)
        else:
            raise InputTypeError(f"an input is {short(prompt_text)}; expected a text, or a chat as a list of messages")
        row = {**inputs, "prompt_text": prompt_text}
        return self._with_hole(row, generate_kwargs) if handle_long_generation == "hole" else row

    def _with_hole(self, row: dict[str, Any], generate_kwargs: dict[str, Any]) -> dict[str, Any]:
        """A row without its first tokens, if the new tokens do not fit into the context after all of them.

        Raises:
            OptionError: the number of new tokens is not known, or too large for the context.
        """
        length, context = length_of(row), self.tokenizer.model_max_length
        new_tokens = generate_kwargs.get("max_new_tokens")
        if new_tokens is None:
            most = generate_kwargs.get("max_length", self.generation_config.max_length)
            new_tokens = (most or 0) - length
            if new_tokens < 0:
                raise OptionError(
                    f"handle_long_generation='hole' needs the number of new tokens, but max_length={most} is less than "
                    f"the prompt's {length} tokens; pass max_new_tokens"
                )
        if length + new_tokens <= context:
            return row
        if new_tokens >= context:
            raise OptionError(
                f"{new_tokens} new tokens leave no room for a prompt in a context of {context} tokens; pass a smaller "
                "max_new_tokens"
            )
        for name in {"input_ids", "attention_mask"} & row.keys():
            row[name] = row[name][:, new_tokens - context :]
        return row

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        ids, mask = model_inputs["input_ids"], model_inputs.get("attention_mask")
        rows = ids.shape[0]
        if ids.shape[1] == 0:  # an empty prompt starts with bos_token_id
            ids, mask, rows = None, None, 1
        generate_kwargs = self._with_config(generate_kwargs)
        if generate_kwargs.get("stop_strings"):
            generate_kwargs.setdefault("tokenizer", self.tokenizer)
        self._lengthen(generate_kwargs, generate_kwargs.pop("prefix_length", 0))
        output = self.model.generate(input_ids=ids, attention_mask=mask, **generate_kwargs)
        sequences = output["sequences"] if isinstance(output, ModelOutput) else output
        outputs = {
            "generated_sequence": sequences.reshape(rows, -1, sequences.shape[1]),
            "input_ids": ids,
            "prompt_text": model_inputs["prompt_text"],
        }
        if isinstance(output, ModelOutput):
            outputs["additional_outputs"] = _additional(output, rows, sequences.shape[0])
        return outputs

    def _lengthen(self, generate_kwargs: dict[str, Any], prefix_length: int) -> None:
        """Count the prefix in the lengths that count the prompt."""
        config = generate_kwargs["generation_config"]

        def counts_prompt(option: str) -> bool:
            return option not in generate_kwargs and getattr(config, option) is None

        if prefix_length and counts_prompt("max_new_tokens"):
            most = generate_kwargs.get("max_length") or self.generation_config.max_length
            generate_kwargs["max_length"] = (most or 0) + prefix_length
        if prefix_length and "min_length" in generate_kwargs and counts_prompt("min_new_tokens"):
            generate_kwargs["min_length"] += prefix_length

    def _batches(self, rows: Sequence[Row], batch_size: int | None, forward_params: dict[str, Any]) -> list[list[int]]:
        if len(rows) == 1:
            return [[0]]
        lengths = [length_of(row) for row in rows]
        if not forward_params.keys() <= {*option_types(), *_ALLOWED_IN_BATCHES} or min(lengths, default=0) == 0:
            return in_order(len(rows), 1)
        config = self._options_of(forward_params)
        if config.return_dict_in_generate:
            return in_order(len(rows), 1)
        if not self._may_batch(forward_params) or not _is_reproducible(config, forward_params):
            return in_order(len(rows), batch_size or 1)
        is_seen = any(getattr(config, name) != getattr(GenerationConfig, name) for name in _SEE_PROMPT)
        equal = is_seen or config.max_new_tokens is None
        if batch_size is not None:
            batches = in_order(len(rows), batch_size)
            return [part for batch in batches for part in of_equal_length(batch, lengths)] if equal else batches
        copies = max(config.num_beams, config.num_return_sequences)
        runs = config.max_new_tokens or max((config.max_length or 0) - min(lengths), 1)
        return by_length(lengths, max(self._max_rows // copies, 1), self._max_tokens, equal, runs)

    def _options_of(self, forward_params: dict[str, Any]) -> GenerationConfig:
        """The options with which `generate` will run."""
        params = self._with_config(forward_params)
        given = {name: value for name, value in params.items() if name in option_types()}
        return merge_config(self.model, params["generation_config"], None, given)[0]

    def _with_config(self, forward_params: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `generate` with its config: the caller's, or the pipeline's, of which defaults are kept."""
        given = config_of_caller(forward_params.get("generation_config"))
        if given is not None:
            return {**forward_params, "generation_config": given}
        kept = {name: getattr(self.generation_config, name) for name in self._kept_options}
        return {**kept, **forward_params, "generation_config": self.generation_config}

    def _run_batch(self, rows: Sequence[Row], forward_params: dict[str, Any], report: Report) -> list[Any]:
        own: dict[str, Any] = {}
        if report is not ignore and "streamer" not in forward_params and self._may_batch(forward_params):
            own["on_step"] = lambda new, most: report(new / most)
        if len(rows) == 1:
            return super()._run_batch(rows, {**forward_params, **own}, report)
        batch = collate(rows, self._pad_token_id(), "left")
        new_tokens: dict[int, int] = {}
        own["on_finish"] = lambda row, reason, number: new_tokens.update({row: number})
        if isinstance(seed := forward_params.get("seed"), int):
            own["seed"] = [seed] * len(rows)
        outputs = self.forward(batch, **{**forward_params, **own})
        columns = length_of(batch)
        results = []
        for i, row in enumerate(rows):
            sequences = outputs["generated_sequence"][i : i + 1]
            copies, first = sequences.shape[1], columns - length_of(row)
            end = columns + max(new_tokens[i * copies + j] for j in range(copies))
            kept = {"generated_sequence": sequences[:, :, first:end], "input_ids": row["input_ids"]}
            results.append({**kept, "prompt_text": row["prompt_text"]})
        return results

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        return_type: ReturnType = ReturnType.FULL_TEXT,
        clean_up_tokenization_spaces: bool = True,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool = True,
    ) -> list[dict[str, Any]]:
        """Turn the sequences of one prompt into ids, texts or messages."""
        sequences = model_outputs["generated_sequence"][0].tolist()
        additional = {
            name: value.tolist()
            for name, value in model_outputs.get("additional_outputs", {}).items()
            if isinstance(value, Tensor) and value.shape[0] == len(sequences)
        }
        ids, prompt = model_outputs["input_ids"], model_outputs["prompt_text"]

        def decode(tokens: Any) -> str:
            return str(
                self.tokenizer.decode(
                    tokens,
                    skip_special_tokens=skip_special_tokens,
                    clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                )
            )

        records = []
        for index, sequence in enumerate(sequences):
            if return_type is ReturnType.TENSORS:
                record: dict[str, Any] = {"generated_token_ids": sequence}
            else:
                text: Any = decode(sequence)[0 if ids is None else len(decode(ids[0])) :]
                if return_type is ReturnType.FULL_TEXT and isinstance(prompt, Chat):
                    text = prompt.with_answer(text, prompt.is_continued(continue_final_message))
                elif return_type is ReturnType.FULL_TEXT:
                    text = prompt + text
                record = {"generated_text": text}
            records.append({**record, **{name: values[index] for name, values in additional.items()}})
        return records


def _return_type(
    return_type: ReturnType | None, full_text: bool | None, tensors: bool | None, text: bool | None
) -> ReturnType | None:
    """What results hold: by its own argument or three others, of which at most one may be given; None by default."""
    if return_type is not None:
        if not isinstance(return_type, ReturnType):
            raise OptionError(f"return_type={return_type!r} is not known; expected one of {[*map(str, ReturnType)]}")
        return return_type
    names = {"return_full_text": full_text, "return_tensors": tensors, "return_text": text}
    given = [name for name, value in names.items() if value is not None]
    if len(given) > 1:
        raise OptionError(f"`{given[1]}` is mutually exclusive with `{given[0]}`; pass one of them")
    if tensors:
        return ReturnType.TENSORS
    return None if full_text is None else ReturnType.FULL_TEXT if full_text else ReturnType.NEW_TEXT


def _additional(output: ModelOutput, rows: int, sequences: int) -> dict[str, Any]:
    """What `generate` returned besides sequences and cache, with one entry for each row or sequence."""
    found: dict[str, Any] = {}
    for name, value in output.items():
        if name in ("sequences", "past_key_values"):
            continue
        found[name] = value
        if isinstance(value, Tensor) and value.shape[0] == sequences:
            found[name] = value.reshape(rows, sequences // rows, *value.shape[1:])
        elif isinstance(value, tuple) and isinstance(value[0], Tensor) and len(value[0]) == sequences:
            found[name] = torch.stack(value).swapaxes(0, 1)
    return found


def _is_reproducible(config: GenerationConfig, forward_params: dict[str, Any]) -> bool:
    """Whether a row's tokens depend on nothing but the row, however the rows are put together."""
    mode = config.get_generation_mode(None)
    if mode is GenerationMode.SAMPLE:
        return isinstance(forward_params.get("seed"), int) and config.num_return_sequences == 1
    return mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.BEAM_SEARCH)
