"""Steps that run the model's own code, module after module."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

from gptrio.cache.transformers import as_own_cache
from gptrio.generation.inputs import ModelInputs
from gptrio.generation.prompt import keep_last
from gptrio.generation.protocol import CausalLM
from gptrio.generation.runners.protocol import Logits, Step
from gptrio.nn.fast_call import is_written_in
from gptrio.nn.masks import tokens_are_real

# arguments of a step that generate finds itself
_FOUND_EACH_STEP = {"attention_mask", "cache_position", "input_ids", "inputs_embeds", "output_attentions"}
_FOUND_EACH_STEP |= {"output_hidden_states", "past_key_values", "position_ids", "token_type_ids", "use_cache"}


class EagerRunner:
    """The model's forward; for plain steps `next_logits`, which costs less, if it gives the same for all rows.

    Attributes:
        prepare: the model's `prepare_inputs_for_generation`, if it or the model's `_update_model_kwargs_for_generation`
            is not this package's.
    """

    threads = 0

    def __init__(self, model: CausalLM, inputs: ModelInputs, has_next_logits: bool) -> None:
        self._update = own_method(model, "_update_model_kwargs_for_generation")
        self.prepare = own_preparation(model) or (self._update and cast(Any, model).prepare_inputs_for_generation)
        self._kept: dict[str, Any] = {}  # arguments that the model's own update has set for the next step
        self._model, self._inputs = model, inputs
        self._next_logits = model.next_logits if has_next_logits else None
        self._keeps = bool(keep_last(model))  # else the model gives the logits of all positions

    def supports(self, step: Step) -> bool:
        """Whether this can run a step: always."""
        return True

    def run(self, step: Step) -> Any:
        """The model's output, with logits (B, keep, V)."""
        if self._next_logits is not None and step.is_plain:
            return Logits(self._next_logits(step.new_ids, step.cache))
        if self.prepare is None:
            arguments = self._inputs.arguments(step)
        else:
            given = {**self._inputs.arguments_to_prepare(step), **self._kept}
            arguments = dict(self.prepare(step.ids, **given))
            arguments.pop("logits_to_keep", None)
        if self._keeps:
            arguments["logits_to_keep"] = step.keep
        with nullcontext() if "attention_mask" in arguments else tokens_are_real():
            output = self._model(return_dict=True, **arguments)
        if not self._keeps:
            output.logits = output.logits[:, -step.keep :]
        if step.cache is not None:
            self._inputs.cache = cache = as_own_cache(output.past_key_values)
            self._inputs.extra_positions = 0 if self.prepare is None else cache.get_seq_length() - step.end
        if self._update is not None:
            updated = self._update(output, {**given, "past_key_values": step.cache})
            self._kept = {name: value for name, value in updated.items() if name not in _FOUND_EACH_STEP}
        return output


def own_preparation(model: CausalLM) -> Any:
    """The model's `prepare_inputs_for_generation`, where its class has not just inherited this package's."""
    return own_method(model, "prepare_inputs_for_generation")


def own_method(model: CausalLM, name: str) -> Any:
    """A method of the model, where its class has not just inherited this package's; None otherwise."""
    method = getattr(model, name, None)
    return None if method is None or is_written_in(method, "gptrio.") else method
