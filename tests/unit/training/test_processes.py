"""Where a run happens: what arguments say of devices and processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptrio import GptrioWarning, OptionError, TrainingArguments, logging
from gptrio.training.enums import ParallelMode

TWO = """
import os, sys, time
from gptrio import TrainingArguments
args = TrainingArguments("out", use_cpu=True, ddp_timeout=60)
with args.main_process_first(desc="a file"):
    if args.process_index == 0:
        time.sleep(0.5)
        open("file", "w").write("written")
    print(open("file").read())
state = args.distributed_state
print(args.device.type, args.parallel_mode.value, args.should_save, args.local_rank, state.num_processes, state.backend)
import torch.distributed as dist
dist.destroy_process_group()
"""


@pytest.fixture
def launched(monkeypatch):
    """Sets what a launcher sets for each process."""

    def launch(rank, local_rank, world_size):
        for name, value in {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world_size}.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_processes_are_those_of_the_launcher(launched):
    launched(3, 1, 4)
    args = TrainingArguments("out")
    assert (args.world_size, args.process_index, args.local_process_index, args.local_rank) == (4, 3, 1, 1)
    assert args.parallel_mode == ParallelMode.DISTRIBUTED
    assert args.average_tokens_across_devices is True
    assert (args.should_save, args.should_log) == (False, False)


@pytest.mark.parametrize(("everywhere", "expected"), [(True, True), (False, False)])
def test_the_first_process_of_a_machine_logs_and_saves_if_asked(everywhere, expected, launched):
    launched(2, 0, 4)
    args = TrainingArguments("out", log_on_each_node=everywhere, save_on_each_node=everywhere)
    assert (args.should_log, args.should_save) == (expected, expected)


def test_a_variable_of_the_environment_alone_launches_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # as cluster schedulers set it
    args = TrainingArguments("out")
    assert (args.world_size, args.parallel_mode) == (1, ParallelMode.NOT_PARALLEL)
    assert args.distributed_state is None


def test_levels_of_the_log_depend_on_the_process(launched):
    args = TrainingArguments("out", log_level="debug", log_level_replica="error")
    assert args.get_process_log_level() == logging.DEBUG
    launched(1, 1, 2)
    assert args.get_process_log_level() == logging.ERROR
    passive = TrainingArguments("out", log_level_replica="passive")
    assert passive.get_process_log_level() == logging.get_verbosity()


def test_two_processes_wait_for_the_first_one(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO],
            cwd=tmp_path,
            env={**os.environ, **launcher, "RANK": rank, "LOCAL_RANK": rank},
            **pipes,
        )
        for rank in "01"
    ]
    results = [process.communicate(timeout=120) for process in started]
    for rank, (output, errors) in enumerate(results):
        assert output.splitlines() == ["written", f"cpu distributed {rank == 0} {rank} 2 gloo"], errors


def test_the_cpu_can_be_asked_for_by_the_environment(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert TrainingArguments("out").device == torch.device("cpu")
    assert TrainingArguments("out", use_cpu=True).device == torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2])
def test_one_process_uses_one_gpu_and_says_so_if_there_are_more(count, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    args = TrainingArguments("out", per_device_train_batch_size=4)
    if count == 1:
        assert args.device == torch.device("cuda:0")
    else:
        with pytest.warns(GptrioWarning, match=r"2 GPUs are visible, .*`torchrun --nproc_per_node 2`"):
            assert args.device == torch.device("cuda:0")
    assert (args.n_gpu, args.train_batch_size, chosen) == (1, 4, [0])


def gpu(monkeypatch, major, has_bfloat16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))


def test_bfloat16_is_refused_on_gpus_without_it(monkeypatch):
    gpu(monkeypatch, 7, has_bfloat16=False)
    for name in ("bf16", "bf16_full_eval"):
        with pytest.raises(OptionError, match="from Ampere on, and this is a Tesla T4; use fp16=True"):
            TrainingArguments("out", **{name: True})
    assert TrainingArguments("out", fp16=True).fp16
    with pytest.raises(OptionError, match="tf32=True needs an NVIDIA GPU from Ampere on"):
        TrainingArguments("out", tf32=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"tf32": True}, "high"), ({"tf32": False}, "highest"), ({"torch_compile": True}, "high"), ({}, "highest")],
)
def test_tf32_is_switched_on_gpus_that_have_it(given, expected, monkeypatch):
    gpu(monkeypatch, 8, has_bfloat16=True)
    before = torch.get_float32_matmul_precision()
    try:
        TrainingArguments("out", bf16=True, **given)
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("amx", "message"), [(True, "computed by AMX"), (False, "neither AMX nor AVX512-BF16")])
def test_bfloat16_on_a_cpu_is_allowed_and_the_log_says_how_it_is_computed(amx, message, monkeypatch, caplog):
    from gptrio.training import arguments_precision

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    arguments_precision._report_cpu.cache_clear()
    logger = logging.get_logger()
    logger.addHandler(caplog.handler)
    level = logger.level
    try:
        logger.setLevel(logging.INFO)
        assert TrainingArguments("out", use_cpu=True, bf16=True).bf16
        assert TrainingArguments("out", use_cpu=True, bf16=True).bf16
    finally:
        logger.setLevel(level)
        logger.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if message in record.message] == caplog.messages
    assert len(caplog.messages) == 1


def test_arguments_are_made_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from gptrio import TrainingArguments, HfArgumentParser, TrainerState, EarlyStoppingCallback\n"
        "args = TrainingArguments('out', eval_strategy='epoch')\n"
        "(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(['--output_dir', 'o'])\n"
        "assert args.to_dict()['output_dir'] == 'o'\n"
        "print(sorted({'numpy', 'jax', 'transformers', 'accelerate'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, (True, [])),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_FSDP": "true"}, (False, ["full_shard"])),
        (
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_RESHARD_AFTER_FORWARD": "false",
                "FSDP_OFFLOAD_PARAMS": "true",
            },
            (False, ["shard_grad_op", "offload"]),
        ),
    ],
)
def test_what_accelerate_launch_was_told_is_done(variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    args = TrainingArguments("out", use_cpu=True)
    assert (args.bf16, [option.value for option in args.fsdp]) == expected
