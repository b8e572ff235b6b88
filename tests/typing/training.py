"""Arguments of a training run have the types of their fields for those who use them."""

from __future__ import annotations

from typing_extensions import assert_type

from gptrio import EarlyStoppingCallback, TrainerState, TrainingArguments

assert_type(TrainingArguments("out", learning_rate=1e-4), TrainingArguments)
assert_type(TrainingArguments("out").set_training(num_epochs=1), TrainingArguments)
assert_type(TrainingArguments().learning_rate, float)
assert_type(TrainerState.load_from_json("trainer_state.json"), TrainerState)
assert_type(EarlyStoppingCallback.from_state({}), EarlyStoppingCallback)
