"""`Trainer` around its loop: what it refuses, how it is interrupted, what it saves, and the options of a run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

import gptrio
from gptrio import GptrioWarning, InputError, OptionError
from gptrio.testing import byte_tokenizer
from tests.training_pair import arguments, assert_same_weights, checkpoints, collate, pair_of, rows_for

LM = "GPT2LMHeadModel"


def trainer_of(class_name: str = LM, rows: int = 8, cls: type = gptrio.Trainer, **changes):
    """A trainer of our tiny model; keywords that are no arguments of training go to the trainer."""
    torch.manual_seed(0)
    names = gptrio.TrainingArguments.__dataclass_fields__
    options = {name: changes.pop(name) for name in list(changes) if name not in names}
    options = {"train_dataset": rows_for(class_name, rows), "data_collator": collate, **options}
    return cls(pair_of(class_name)[1], arguments(gptrio, **{"max_steps": 4, **changes}), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_strategy": "steps"}, "eval_strategy='steps' needs an eval_dataset"),
        ({"model_init": lambda: None, "optimizers": (object(), None)}, "override create_optimizer"),
        ({"optimizers": (object(), None), "optimizer_cls_and_kwargs": (object, {})}, "pass one of them"),
        ({"batch_eval_metrics": True, "compute_metrics": lambda pair: {}}, "takes no compute_result"),
        ({"max_steps": -1, "train_dataset": iter(())}, "no length"),
        ({"tokenizer": 1, "processing_class": 2}, "earlier name of processing_class"),
        ({"data_collator": 3}, "cannot be called"),
    ],
)
@pytest.mark.filterwarnings("ignore:model_init makes")
def test_what_does_not_fit_is_refused_with_the_way_out(options, message):
    with pytest.raises(OptionError, match=message):
        trainer_of(**options)


def test_sharding_needs_several_processes():
    with pytest.raises(
        OptionError, match=r"fsdp='full_shard' divides parameters .*, but there is one; start .*torchrun"
    ):
        trainer_of(fsdp="full_shard")


def test_a_trainer_needs_a_model_with_a_head():
    with pytest.raises(OptionError, match="there is nothing to train"):
        gptrio.Trainer(args=arguments(gptrio))
    with pytest.raises(InputError, match=r"GPT2Model has no head.*GPT2ForSequenceClassification"):
        gptrio.Trainer(pair_of("GPT2Model")[1], arguments(gptrio))


def test_a_missing_column_is_told_with_those_that_there_are():
    data = Dataset.from_dict({"text": ["a", "b"], "labels": [0, 1]})
    with pytest.raises(InputError, match=r"no column 'input_ids'; it has text, labels\. Tokenize it first"):
        trainer_of("GPT2ForSequenceClassification", train_dataset=data).train()
    with pytest.raises(InputError, match="no column 'input_ids'; it has text"):
        trainer_of(train_dataset=[{"text": "a"}]).train()


def test_columns_that_the_model_does_not_take_are_left_out():
    data = rows_for(LM, 6)
    table = Dataset.from_list([{**row, "text": "x"} for row in data])
    plain = trainer_of(train_dataset=data)
    plain.train()
    for rows in (table, [{**row, "text": "x"} for row in data]):
        other = trainer_of(train_dataset=rows)
        other.train()
        assert_same_weights(other.model, plain.model, 0.0)


def test_a_model_that_returns_no_loss_is_told_what_it_got():
    data = [{"input_ids": row["input_ids"]} for row in rows_for(LM, 4)]
    with pytest.raises(
        InputError, match="but no loss, for the inputs attention_mask, input_ids; the data needs labels"
    ):
        trainer_of(train_dataset=data).train()


def test_the_earlier_name_of_the_tokenizer_works_with_a_warning():
    tokenizer = byte_tokenizer(pad_token="<|endoftext|>")
    with pytest.warns(DeprecationWarning, match="tokenizer"):
        trainer = trainer_of(tokenizer=tokenizer)
    assert trainer.processing_class is tokenizer
    with pytest.warns(DeprecationWarning, match="tokenizer"):
        assert trainer.tokenizer is tokenizer


def test_the_model_takes_over_the_tokenizer_s_special_tokens():
    tokenizer = SimpleNamespace(pad_token_id=3, eos_token_id=5, bos_token_id=59, save_pretrained=lambda folder: None)
    trainer = trainer_of(processing_class=tokenizer, max_steps=1)
    with pytest.warns(GptrioWarning, match="takes over from the tokenizer: eos_token_id=5, pad_token_id=3"):
        trainer.train()
    config, generation = trainer.model.config, trainer.model.generation_config
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (3, 5, 59)
    assert (generation.pad_token_id, generation.eos_token_id) == (3, [5, 59])
    trainer.train()  # nothing is left to be told


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_before_it_ends_the_run_and_the_run_goes_on_as_if_nothing_were(number, error, tmp_path):
    class Interrupt(gptrio.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), number)

    options = {"save_strategy": "steps", "save_steps": 100}
    whole = trainer_of(**options)
    whole.train()
    before = signal.getsignal(number)
    with pytest.warns(GptrioWarning, match="the update is finished and saved"), pytest.raises(error) as caught:
        trainer_of(output_dir=str(tmp_path), callbacks=[Interrupt], **options).train()
    assert signal.getsignal(number) is before
    assert number != signal.SIGTERM or caught.value.code == 143
    assert checkpoints(str(tmp_path)) == ["checkpoint-3"]
    resumed = trainer_of(output_dir=str(tmp_path), **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, whole.model, 0.0)


def test_a_batch_that_does_not_fit_into_memory_shrinks_until_it_does():
    sizes = []

    class Small(gptrio.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().training_step(model, inputs, num_items_in_batch)

    changes = {"auto_find_batch_size": True, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    trainer = trainer_of(cls=Small, **changes)
    with pytest.warns(GptrioWarning, match="out of memory"):
        trainer.train()
    assert sizes == [8, 7, 6, 5, 4, 3, 2, 2, 2, 2]
    assert trainer.state.train_batch_size == 2


def test_noise_on_embeddings_is_there_in_training_alone():
    quiet, noisy = trainer_of(), trainer_of(neftune_noise_alpha=5.0)
    losses = [trainer.train().training_loss for trainer in (quiet, noisy)]
    assert losses[0] != losses[1]
    assert not noisy.model.get_input_embeddings()._forward_hooks
    batch = collate(rows_for(LM, 2))
    assert torch.equal(noisy.model.eval()(**batch).logits, noisy.model(**batch).logits)


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"dataloader_num_workers": 1}])
def test_how_a_run_is_computed_does_not_change_it(options):
    plain, other = trainer_of(max_steps=2), trainer_of(max_steps=2, **options)
    for trainer in (plain, other):
        trainer.train()
    assert_same_weights(other.model, plain.model, 1e-6)


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
def test_bfloat16_is_near_float32_with_weights_in_float32():
    plain, half = trainer_of(), trainer_of(bf16=True)
    losses = [trainer.train().training_loss for trainer in (plain, half)]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert losses[1] != losses[0]
    assert half.model.dtype == torch.float32


def test_rows_of_like_length_are_batched():
    widths = []

    class Widths(gptrio.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            widths.append(inputs["attention_mask"].float().mean().item())
            return super().training_step(model, inputs, num_items_in_batch)

    changes = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 1}
    trainer_of(rows=16, cls=Widths, group_by_length=True, **changes).train()
    grouped, widths[:] = sum(widths), []
    trainer_of(rows=16, cls=Widths, **changes).train()
    assert grouped > sum(widths)


def test_a_stream_is_read_to_its_end_with_a_last_group_of_fewer_batches():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows_for(LM, 8))  # 4 batches: a group of 3 and one of 1

    trainer = trainer_of(train_dataset=Stream(), max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4
    assert [round(entry["epoch"], 3) for entry in trainer.state.log_history[:4]] == [0.25, 0.333, 1.25, 1.333]


def test_models_metrics_and_state_are_written_and_read_again(tmp_path, capsys):
    tokenizer = byte_tokenizer(pad_token="<|endoftext|>")
    options = {"processing_class": tokenizer, "eval_dataset": rows_for(LM, 2)}
    with pytest.warns(GptrioWarning, match="takes over from the tokenizer"):
        trainer = trainer_of(output_dir=str(tmp_path), eval_strategy="steps", eval_steps=2, **options)
        result = trainer.train()
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    trainer.save_metrics("eval", trainer.evaluate())
    trainer.log_metrics("train", result.metrics)
    trainer.create_model_card(dataset="my data", tags="mine")
    assert_same_weights(gptrio.AutoModelForCausalLM.from_pretrained(tmp_path), trainer.model, 0.0)
    assert gptrio.AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|endoftext|>"
    results = json.loads(Path(tmp_path, "all_results.json").read_text())
    assert results["train_loss"] == result.training_loss and "eval_loss" in results
    assert json.loads(Path(tmp_path, "trainer_state.json").read_text())["global_step"] == 4
    shown = capsys.readouterr().out
    assert "***** train metrics *****" in shown and "total_flos" in shown and "0:00:0" in shown
    card = Path(tmp_path, "README.md").read_text()
    assert "- mine\n- generated_from_trainer" in card and "on my data" in card and "| training loss |" in card


def test_a_push_uploads_the_folder_without_its_checkpoints(tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, *args, **options):
            calls.append((args, options))
            return SimpleNamespace(repo_id="me/tiny")

        def upload_folder(self, **options):
            calls.append(options)
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    trainer = trainer_of(output_dir=str(tmp_path), max_steps=1, hub_model_id="me/tiny")
    trainer.train()
    assert trainer.push_to_hub("done") == "address"
    assert calls[0] == (("me/tiny",), {"private": None, "exist_ok": True})
    names = ("folder_path", "repo_id", "commit_message", "run_as_future")
    assert [calls[1][name] for name in names] == [str(tmp_path), "me/tiny", "done", False]
    assert "checkpoint-*" in calls[1]["ignore_patterns"]
    assert {"README.md", "config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_any_module_with_a_loss_is_trained_and_saved(tmp_path):
    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line = torch.nn.Linear(1, 1)

        def forward(self, x, labels=None):
            out = self.line(x)
            return {"loss": (out - labels).pow(2).mean(), "out": out}

    data = [{"x": [float(i)], "labels": [2.0 * i]} for i in range(8)]
    changes = {"max_steps": 60, "learning_rate": 0.3, "output_dir": str(tmp_path), "save_strategy": "steps"}
    model = Line()
    gptrio.Trainer(model, arguments(gptrio, **changes), train_dataset=data).train()
    assert model.line.weight.item() == pytest.approx(2.0, abs=0.2)
    again = gptrio.Trainer(Line(), arguments(gptrio, **{**changes, "max_steps": 61}), train_dataset=data)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 61


def test_a_loss_that_is_not_finite_is_told_with_the_tensor_where_it_began():
    trainer = trainer_of(max_steps=1)
    with torch.no_grad():
        trainer.model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.warns(GptrioWarning, match=r"h\.1\.mlp"):
        trainer.train()
