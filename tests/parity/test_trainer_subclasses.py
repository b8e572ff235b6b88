"""Subclasses of Trainer, and callbacks, as people write them: each sees the same values in both libraries."""

from __future__ import annotations

import importlib
import os
from collections import defaultdict
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import DataLoader, SequentialSampler, WeightedRandomSampler

import gptrio
from tests.training_pair import arguments, assert_same_history, assert_same_weights, collate, pair_of, rows_for

LIBRARIES = (transformers, gptrio)


def module_of(library: Any, path: str) -> Any:
    return importlib.import_module(f"{library.__name__}.{path}")


def seeing(library: Any, seen: list[Any]) -> type:
    """Notes what is there in each step, and computes it as copies of the reference's own method do."""

    class Trainer(library.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            self.see(model, num_items_in_batch)
            model.train()
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            assert not self.use_apex and self.args.n_gpu < 2
            if (not self.model_accepts_loss_kwargs or num_items_in_batch is None) and self.compute_loss_func is None:
                loss = loss / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss)
            return loss.detach()

        def see(self, model, items):
            of_accelerator = "sync_gradients gradient_accumulation_steps num_processes process_index is_main_process"
            of_accelerator += " is_last_process mixed_precision use_distributed native_amp distributed_type device"
            of_trainer = "is_in_train _train_batch_size current_gradient_accumulation_steps is_deepspeed_enabled"
            of_trainer += " is_fsdp_enabled is_tp_enabled is_model_parallel hp_name deepspeed neftune_noise_alpha"
            of_state = "global_step max_steps num_train_epochs train_batch_size epoch logging_steps"
            of_state += " num_input_tokens_seen is_hyper_param_search"
            of_gradients = "sync_gradients num_steps in_dataloader plugin_kwargs"
            places = (self.accelerator, of_accelerator), (self, of_trainer), (self.state, of_state)
            places += (
                (self.accelerator.gradient_state, of_gradients),
                (self.accelerator.state, "num_processes device"),
            )
            found = [str(getattr(place, name)) for place, names in places for name in names.split()]
            loader = self.callback_handler.train_dataloader
            found += [loader.total_batch_size, len(loader), self.num_examples(loader), self.model_wrapped is model]
            found += [self.get_total_train_batch_size(self.args), self.get_tp_size(), self.lr_scheduler.last_epoch]
            found += [None if items is None else int(items), self.optimizer.param_groups[0]["lr"]]
            seen.append(found)

    return Trainer


def evaluating(library: Any, seen: list[Any]) -> type:
    """Has a loop over the evaluation of its own."""
    tools, results = module_of(library, "trainer_pt_utils"), module_of(library, "trainer_utils")

    class Trainer(library.Trainer):
        def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None, **options):
            model = self._wrap_model(self.model, training=False, dataloader=dataloader)
            if len(self.accelerator._models) == 0 and model is self.model:
                model = self.accelerator.prepare_model(model, evaluation_mode=True)
            model.eval()
            self.callback_handler.eval_dataloader = dataloader
            losses, logits = tools.EvalLoopContainer(True, padding_index=-100), tools.EvalLoopContainer(False)
            for inputs in dataloader:
                rows = tools.find_batch_size(inputs)
                loss, output, labels = self.prediction_step(model, inputs, False, ignore_keys=ignore_keys)
                losses.add(self.gather_function(loss.repeat(rows)))
                logits.add(tools.nested_detach((self.accelerator.pad_across_processes(output, dim=1), labels)))
                seen.append((rows, self.accelerator.gradient_state.end_of_dataloader))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            seen.extend(part[0].shape for part in logits.get_arrays())
            metrics = {"eval_loss": losses.get_arrays().mean()}
            return results.EvalLoopOutput(None, None, results.denumpify_detensorize(metrics), len(self.eval_dataset))

    return Trainer


def with_rates(library: Any, seen: list[Any]) -> type:
    """Has a learning rate for each parameter, and draws its rows with weights."""
    parameters_of = module_of(library, "trainer").get_parameter_names

    class Trainer(library.Trainer):
        def create_optimizer(self):
            if module_of(library, "trainer").is_sagemaker_mp_enabled():
                return super().create_optimizer()
            decayed = parameters_of(self.model, [torch.nn.LayerNorm])
            seen.append(decayed == self.get_decay_parameter_names(self.model))
            groups = [
                {"params": [parameter], "lr": 1e-3 * 0.9**i, "weight_decay": 0.1 * (name in decayed)}
                for i, (name, parameter) in enumerate(self.model.named_parameters())
            ]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **options)
            return self.optimizer

        def _get_train_sampler(self, train_dataset=None):
            generator = torch.Generator().manual_seed(self.args.seed)
            return WeightedRandomSampler(range(1, len(train_dataset) + 1), len(train_dataset), generator=generator)

        def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, *rest, learning_rate=None):
            seen.append((model is self.model, len(rest), learning_rate, self.get_learning_rates()[:3]))
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *rest, learning_rate=learning_rate)

    return Trainer


def logging_more(library: Any, seen: list[Any]) -> type:
    """Logs figures of its own, as trainers of chat models do."""

    class Trainer(library.Trainer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.figures = defaultdict(list)

        def _set_signature_columns_if_needed(self):
            self._signature_columns = ["input_ids", "labels", "attention_mask"]

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            inputs["use_cache"] = False
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch)
            hits = (outputs.logits[:, :-1].argmax(-1) == inputs["labels"][:, 1:]).sum()
            self.figures["train" if model.training else "eval"].append(self.accelerator.gather_for_metrics(hits).sum())
            return (loss, outputs) if return_outputs else loss

        def log(self, logs, start_time=None):
            mode = "train" if self.model.training else "eval"
            prefix = "" if mode == "train" else "eval_"
            logs[f"{prefix}hits"] = float(sum(self.figures[mode]))
            super().log(logs, start_time)
            self.figures[mode].clear()

        def get_batch_samples(self, epoch_iterator, num_batches, device):
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
            seen.append((num_batches, str(device), len(batches), int(items)))
            return batches, items

        def _inner_training_loop(self, *args, **options):
            seen.append((len(args), sorted(options), options["batch_size"], options["args"] is self.args))
            return super()._inner_training_loop(*args, **options)

    return Trainer


def reading(library: Any, seen: list[Any]) -> type:
    """Has loaders of its own, one of them prepared."""

    class Trainer(library.Trainer):
        def get_train_dataloader(self):
            options = {"batch_size": self._train_batch_size, "collate_fn": self.data_collator, "drop_last": True}
            loader = DataLoader(self.train_dataset, sampler=SequentialSampler(self.train_dataset), **options)
            prepared = self.accelerator.prepare(loader)
            seen.append(
                (len(prepared), prepared.total_batch_size, self.accelerator.prepare_data_loader(loader).remainder)
            )
            return prepared

        def get_eval_dataloader(self, eval_dataset=None):
            return DataLoader(eval_dataset or self.eval_dataset, batch_size=3, collate_fn=self.data_collator)

    return Trainer


@pytest.mark.parametrize("make", [seeing, evaluating, with_rates, logging_more, reading])
def test_subclasses_run_alike(make):
    found: list[Any] = []
    pair, data = pair_of("GPT2LMHeadModel"), rows_for("GPT2LMHeadModel", 15)
    changes = {
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": 3,
        "include_num_input_tokens_seen": make is seeing,
    }
    for library, model in zip(LIBRARIES, pair, strict=True):
        seen: list[Any] = []
        options = {"train_dataset": data, "eval_dataset": data[:6], "data_collator": collate}
        trainer = make(library, seen)(model, arguments(library, **changes), **options)
        trainer.train()
        found.append((seen, trainer))
    assert found[0][0] and found[1][0] == found[0][0]
    assert_same_history(found[1][1].state.log_history, found[0][1].state.log_history)
    assert_same_weights(pair[1], pair[0])


def changing_arguments(library: Any, seen: list[Any]) -> type:
    """Changes arguments and the optimizer while it runs."""

    class Callback(library.TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if state.epoch >= 1:
                args.gradient_accumulation_steps, args.max_grad_norm = 1, 0.1

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            for name, parameter in model.named_parameters():
                parameter.requires_grad = state.global_step > 1 or "h.1" in name

        def on_optimizer_step(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
            seen.append((state.global_step, state.epoch, len(optimizer.param_groups), lr_scheduler.last_epoch))
            if state.global_step == 4:
                optimizer.param_groups[0]["lr"] = 0.0

    return Callback


def evaluating_inside(library: Any, seen: list[Any]) -> type:
    """Evaluates the training set too, and writes a text after each evaluation."""

    class Callback(library.TrainerCallback):
        trainer: Any = None

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                metrics = self.trainer.evaluate(self.trainer.train_dataset[:4], metric_key_prefix="train")
                seen.append((sorted(metrics), self.trainer.is_in_train, self.trainer.model.training))
            control.should_evaluate = state.global_step in (3, 4)
            control.should_save = state.global_step == 4
            return control

        def on_evaluate(self, args, state, control, model=None, eval_dataloader=None, metrics=None, **kwargs):
            batch = next(iter(eval_dataloader))
            prompt = batch["input_ids"][:1, :3]
            written = model.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=True)
            seen.append((state.global_step, written.tolist(), len(eval_dataloader), sorted(kwargs)))

        def on_save(self, args, state, control, **kwargs):
            seen.append(sorted(name for name in os.listdir(args.output_dir) if not name.startswith(".")))

        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 5

    return Callback


@pytest.mark.parametrize("make", [changing_arguments, evaluating_inside])
def test_callbacks_see_and_change_the_same(make):
    pair, data, found = pair_of("GPT2LMHeadModel"), rows_for("GPT2LMHeadModel", 18), []
    for library, model in zip(LIBRARIES, pair, strict=True):
        seen: list[Any] = []
        options = {"train_dataset": data, "eval_dataset": data[:4], "data_collator": collate}
        callback = make(library, seen)()
        trainer = library.Trainer(model, arguments(library, num_train_epochs=4), callbacks=[callback], **options)
        callback.trainer = trainer
        trainer.train()
        found.append((seen, trainer.state.log_history))
    assert found[0][0] and found[1][0] == found[0][0]
    assert_same_history(found[1][1], found[0][1])
    assert_same_weights(pair[1], pair[0])


def stateful(library: Any, name: str, order: list[Any]) -> type:
    class Callback(library.TrainerCallback, module_of(library, "trainer_callback").ExportableState):
        def __init__(self, count: int = 0) -> None:
            self.count, self.more = count, 0

        def on_train_begin(self, args, state, control, **kwargs):
            order.append((name, "begin", self.count, self.more))

        def on_step_end(self, args, state, control, **kwargs):
            self.count += 1
            order.append((name, state.global_step, self.count))

        def state(self):
            return {"args": {"count": self.count}, "attributes": {"more": 5}}

    Callback.__name__ = name
    return Callback


@pytest.mark.filterwarnings("ignore:.*already, and now a second one")
def test_callbacks_that_get_their_states_back_are_called_in_the_reference_s_order(tmp_path):
    found, data = [], rows_for("GPT2LMHeadModel", 12)
    for library, model in zip(LIBRARIES, pair_of("GPT2LMHeadModel"), strict=True):
        order: list[Any] = []
        zed, abe, max_, plain = (stateful(library, name, order) for name in ("Zed", "Abe", "Max", "Plain"))
        plain.__bases__ = (library.TrainerCallback,)
        changes = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}
        changes |= {"output_dir": str(tmp_path / library.__name__), "gradient_accumulation_steps": 1}
        trainer: Any = None
        for steps, callbacks in ((2, [zed, max_(), plain, abe, max_(3)]), (4, [plain, max_, abe, zed, max_()])):
            options = {"train_dataset": data, "data_collator": collate, "callbacks": callbacks}
            trainer = library.Trainer(model, arguments(library, **changes, max_steps=steps), **options)
            trainer.train(resume_from_checkpoint=steps > 2)
        found.append((order, [type(each).__name__ for each in trainer.callback_handler.callbacks]))
    (theirs, of_theirs), (ours, of_ours) = found
    assert of_ours == of_theirs == ["DefaultFlowCallback", "Plain", "PrinterCallback", "Abe", "Max", "Max", "Zed"]
    assert [each[:2] for each in ours] == [each[:2] for each in theirs]
    # of several callbacks of a class, the reference gives back the states of the beginning; here they are the last ones
    assert [each for each in ours if each[0] != "Max"] == [each for each in theirs if each[0] != "Max"]
    assert [each for each in ours if each[:2] == ("Max", "begin")][2:] == [
        ("Max", "begin", 2, 5),
        ("Max", "begin", 5, 5),
    ]


def test_a_checkpoint_that_a_callback_or_a_method_changes_is_gone_on_from(tmp_path):
    found, data = [], rows_for("GPT2LMHeadModel", 12)
    for library, model in zip(LIBRARIES, pair_of("GPT2LMHeadModel"), strict=True):
        names: list[Any] = []

        class Average(library.TrainerCallback):
            """Saves the mean of the weights so far in place of the last ones."""

            def on_train_begin(self, args, state, control, model=None, **kwargs):
                self.mean = {name: value.detach().clone() for name, value in model.named_parameters()}

            def on_save(self, args, state, control, model=None, names=names, **kwargs):
                last = {name: value.detach().clone() for name, value in model.named_parameters()}
                folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
                model.load_state_dict({n: (v + self.mean[n]) / 2 for n, v in last.items()}, strict=False)
                model.save_pretrained(folder)
                model.load_state_dict(last, strict=False)
                names.append(sorted(name for name in os.listdir(folder) if name.endswith(".txt")))

        class Own(library.Trainer):
            def _save_checkpoint(self, model, trial, names=names):
                folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
                os.makedirs(folder, exist_ok=True)
                (tmp_path / os.path.join(folder, "before.txt")).write_text("x")
                super()._save_checkpoint(model, trial)
                (tmp_path / os.path.join(folder, "after.txt")).write_text("x")

            def save_model(self, output_dir=None, _internal_call=False, names=names):
                names.append(os.path.basename(output_dir))
                super().save_model(output_dir, _internal_call)

            def _load_optimizer_and_scheduler(self, checkpoint):
                super()._load_optimizer_and_scheduler(checkpoint)
                if checkpoint is not None:
                    self.optimizer.param_groups[0]["weight_decay"] = 0.5

            def _rotate_checkpoints(self, use_mtime=False, output_dir=None, names=names):
                names.append(("rotate", use_mtime, os.path.basename(output_dir)))

        changes = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / library.__name__ / "out")}
        trainer: Any = None
        for steps in (4, 6):
            options = {"train_dataset": data, "data_collator": collate, "callbacks": [Average]}
            trainer = Own(model, arguments(library, **changes, max_steps=steps), **options)
            trainer.train(resume_from_checkpoint=steps > 4)
        found.append((trainer, model, names))
    (theirs, oracle, of_theirs), (ours, model, of_ours) = found
    assert of_ours == of_theirs
    assert ours.optimizer.param_groups[0]["weight_decay"] == theirs.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert_same_history(ours.state.log_history[:-1], theirs.state.log_history[:-1])
    assert_same_weights(model, oracle)


def test_noise_on_embeddings_and_the_loop_can_be_begun_by_themselves():
    found, data = [], rows_for("GPT2LMHeadModel", 8)
    for library, model in zip(LIBRARIES, pair_of("GPT2LMHeadModel"), strict=True):
        options = {"train_dataset": data, "data_collator": collate}
        trainer = library.Trainer(model, arguments(library, max_steps=2, neftune_noise_alpha=5.0), **options)
        trainer.model = trainer._activate_neftune(trainer.model)
        embeddings = trainer.model.get_input_embeddings()
        torch.manual_seed(2)
        noisy, alpha = embeddings.train()(torch.arange(6).view(2, 3)), embeddings.neftune_noise_alpha
        trainer._deactivate_neftune(trainer.model)
        trainer.train()
        trainer.neftune_noise_alpha = None
        output = trainer._inner_training_loop(batch_size=2, args=trainer.args)
        found.append((noisy.detach(), alpha, len(embeddings._forward_hooks), output.training_loss))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert found[1][1:3] == found[0][1:3]
    assert abs(found[1][3] - found[0][3]) < 1e-5
