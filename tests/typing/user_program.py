"""Read by type checkers only: a program as users of Transformers write it, with the types that it relies on."""

from __future__ import annotations

import torch
from typing_extensions import assert_type

from gptrio import (
    AutoConfig,
    BatchEncoding,
    FinishReason,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    GPTNeoXForCausalLM,
    GPTNeoXTokenizerFast,
    StoppingCriteria,
    TextStreamer,
    logging,
    set_seed,
)
from gptrio.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from gptrio.outputs import CausalLMOutputWithCrossAttentions

Output = GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


class WeightedModel(GPT2LMHeadModel):
    """Overrides forward with the annotations that Transformers' documentation uses, in an order of its own."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        weight: float = 1.0,
    ) -> tuple[torch.Tensor, ...] | CausalLMOutputWithCrossAttentions:
        """Scale the loss."""
        output: CausalLMOutputWithCrossAttentions = super().forward(
            input_ids, attention_mask=attention_mask, labels=labels
        )
        if output.loss is not None:
            output.loss = output.loss * weight
        return output


class StopAtZero(StoppingCriteria):
    """Ends every row at token 0."""

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        return input_ids[:, -1] == 0


def tell(row: int, reason: FinishReason, tokens: int) -> None:
    print(row, reason.value, tokens)


def main(name: str) -> list[str]:
    set_seed(0, deterministic=True)
    logging.set_verbosity_error()
    tokenizer = GPT2Tokenizer.from_pretrained(name, padding_side="left")
    model = WeightedModel.from_pretrained(name, dtype=torch.float32).eval()
    assert_type(tokenizer, GPT2Tokenizer)
    assert_type(model, WeightedModel)
    batch = tokenizer(["one", "two"], padding=True, return_tensors="pt").to(model.device)
    assert_type(batch, BatchEncoding)
    ids = torch.tensor([tokenizer.encode("text")])
    assert_type(model.generate(ids, max_new_tokens=3, stopping_criteria=[StopAtZero()], on_finish=tell), torch.Tensor)
    assert_type(model.generate(ids, do_sample=False, streamer=TextStreamer(tokenizer)), torch.Tensor)
    full = model.generate(ids, output_scores=True, return_dict_in_generate=True)
    assert_type(full, Output)
    assert_type(full.sequences, torch.Tensor)
    assert_type(model.generate(ids, generation_config=GenerationConfig(top_k=5)), torch.Tensor | Output)
    loss: torch.Tensor = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    neox, _ = GPTNeoXForCausalLM.from_pretrained(name, output_loading_info=True)
    assert_type(neox.to("cpu").train(), GPTNeoXForCausalLM)
    fast = GPTNeoXTokenizerFast.from_pretrained(name)
    assert_type(fast.train_new_from_iterator([["a b"]], 300), GPTNeoXTokenizerFast)
    assert_type(GPT2Config.from_pretrained(name, n_layer=2).n_layer, int)
    AutoConfig.from_pretrained(name)
    return tokenizer.batch_decode(full.sequences, skip_special_tokens=True)
