"""Verbosity, seeds and what is installed, beside the reference's functions of the same names."""

from __future__ import annotations

import io
import logging as standard
import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers
from transformers import utils as reference

import gptrio
from gptrio import utils
from gptrio.errors import GptrioWarning, warn

CHECKS = [
    name for name in dir(utils) if name.startswith("is_") and name.endswith("_available") and hasattr(reference, name)
]


@pytest.fixture
def logging(monkeypatch):
    """Our logging and the reference's, both put back afterwards."""
    loggers = [standard.getLogger(name) for name in ("gptrio", "transformers")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    monkeypatch.setattr(gptrio.logging, "_is_configured", False)
    yield gptrio.logging, transformers.logging
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers


@pytest.mark.parametrize("name", CHECKS)
def test_packages_are_found_as_the_reference_finds_them(name):
    assert getattr(utils, name)() == getattr(reference, name)()


def test_most_checks_are_compared():
    assert len(CHECKS) >= 18
    assert {getattr(utils, name)() for name in CHECKS} == {True, False}


@pytest.mark.parametrize("module", ["torch", "jax", "tokenizers"])
def test_a_package_that_is_not_there_is_not_available(module, monkeypatch):
    find = utils.installed.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else find(name))
    assert not {"torch": utils.is_torch_available, "jax": utils.is_flax_available}.get(
        module, utils.is_tokenizers_available
    )()


def test_checks_import_nothing():
    code = "import sys, gptrio; print(gptrio.is_torch_available(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def drawn():
    return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()


@pytest.mark.parametrize("seed", [0, 42])
def test_a_seed_gives_the_references_random_numbers(seed):
    gptrio.set_seed(seed)
    ours = drawn()
    transformers.set_seed(seed)
    assert drawn() == ours


@pytest.mark.parametrize("library", [gptrio, transformers])
def test_deterministic_algorithms_on_request(library):
    try:
        library.set_seed(1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_levels_and_names_are_the_references(logging):
    ours, theirs = logging
    assert ours.get_log_levels_dict() == theirs.get_log_levels_dict()
    for name in ("CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "NOTSET", "WARN", "WARNING"):
        assert getattr(ours, name) == getattr(theirs, name)
    public = [name for name, value in vars(theirs).items() if callable(value) and value.__module__ == theirs.__name__]
    wanted = {name for name in public if not name.startswith("_")} - {"EmptyTqdm", "warning_advice", "warning_once"}
    assert wanted - {"info_once"} <= set(dir(ours))


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_verbosity_is_set_as_in_the_reference(logging, level):
    for library in logging:
        getattr(library, f"set_verbosity_{level}")()
    ours, theirs = logging
    assert ours.get_verbosity() == theirs.get_verbosity() == ours.log_levels[level]
    ours.set_verbosity(ours.CRITICAL)
    assert ours.get_verbosity() == standard.CRITICAL
    assert standard.getLogger("gptrio.generation").getEffectiveLevel() == standard.CRITICAL


def written(library, name, use):
    """What a logger of the library writes to a handler of ours."""
    stream = io.StringIO()
    handler = standard.StreamHandler(stream)
    library.add_handler(handler)
    try:
        use(library.get_logger(name))
    finally:
        library.get_logger().removeHandler(handler)  # the reference's remove_handler refuses handlers that are there
    return stream.getvalue()


def talk(logger):
    for _ in range(2):
        logger.debug("debug")
        logger.info("info %d", 1)
        logger.warning("warning")
        logger.warning_once("once in this test: %s", logger.level)
        logger.info_once("told once: %s", logger.level)
        logger.warning_advice("advice")
        logger.error("error")


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_loggers_write_what_the_references_write(logging, level):
    ours, theirs = logging
    for library in logging:
        getattr(library, f"set_verbosity_{level}")()
    assert written(ours, None, talk) == written(theirs, None, talk) != ""
    assert written(ours, "gptrio.models", talk) == written(theirs, "transformers.models", talk)


def test_advice_is_left_out_on_request(logging, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    ours, theirs = (written(library, None, lambda logger: logger.warning_advice("x")) for library in logging)
    assert ours == theirs == ""


def test_formats_handlers_and_propagation_are_the_references(logging):
    facts = []
    for library, name in zip(logging, ("gptrio", "transformers"), strict=True):
        logger = standard.getLogger(name)
        library.set_verbosity_info()
        library.disable_propagation()  # which the environment decides until somebody does
        others = len(logger.handlers) - 1
        seen = [logger.propagate]
        library.enable_propagation()
        seen.append(logger.propagate)
        library.disable_propagation()
        library.enable_explicit_format()
        seen += [logger.propagate, {handler.formatter._fmt for handler in logger.handlers}]
        library.reset_format()
        library.disable_default_handler()
        seen.append(len(logger.handlers) - others)
        library.enable_default_handler()
        seen += [len(logger.handlers) - others, {handler.formatter for handler in logger.handlers}]
        facts.append(seen)
    assert facts[0] == facts[1]


def test_progress_bars_are_switched_as_in_the_reference():
    """In a program of its own: the tests' environment decides for good."""
    code = (
        "import gptrio.utils, transformers.utils\n"
        "for library in (gptrio.utils.logging, transformers.utils.logging):\n"
        "    print(library.is_progress_bar_enabled())\n"
        "    library.disable_progress_bar(); print(library.is_progress_bar_enabled())\n"
        "    library.enable_progress_bar(); print(library.is_progress_bar_enabled())"
    )
    clean = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout == "True\nFalse\nTrue\n" * 2


def test_a_handler_of_the_callers_can_be_removed(logging):
    handler = standard.NullHandler()
    logging[0].add_handler(handler)
    logging[0].remove_handler(handler)
    assert handler not in standard.getLogger("gptrio").handlers


def test_progress_bars_give_what_they_are_given(logging):
    assert [list(library.tqdm(range(3))) for library in logging] == [[0, 1, 2]] * 2


def test_errors_only_means_no_warnings_of_gptrio(logging):
    ours, _ = logging
    ours.set_verbosity_error()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn("not heard")
        gptrio.GPT2TokenizerFast.from_pretrained("gptrio/stdlib-gpt2")("word " * 600)
        assert seen == []
        ours.set_verbosity_warning()
        warn("heard")
        gptrio.GPT2TokenizerFast.from_pretrained("gptrio/stdlib-gpt2")("word " * 600)
    assert [item.category for item in seen] == [GptrioWarning, GptrioWarning]


@pytest.mark.parametrize(
    ("environment", "level"),
    [({}, 30), ({"GPTRIO_VERBOSITY": "error"}, 40), ({"TRANSFORMERS_VERBOSITY": "info"}, 20),
     ({"GPTRIO_VERBOSITY": "debug", "TRANSFORMERS_VERBOSITY": "error"}, 10)],
)  # fmt: skip
def test_verbosity_of_the_environment(environment, level):
    code = (
        "import gptrio, logging, warnings; from gptrio.errors import warn\n"
        "early = logging.getLogger('gptrio').level\n"
        "with warnings.catch_warnings(record=True) as seen:\n    warn('x')\n"
        "print(early, gptrio.logging.get_verbosity(), len(seen))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    assert [int(number) for number in done.stdout.split()] == [level if environment else 0, level, int(level <= 30)]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("GPT2LMHeadmodel", "GPT2LMHeadModel"),
        ("gpt2tokenizer", "GPT2Tokenizer"),
        ("AutoModelForCasualLM", "AutoModelForCausalLM"),
        ("GPTNeoXForCausalLm", "GPTNeoXForCausalLM"),
        ("set_sead", "set_seed"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; did you mean '{nearest}'"):
        getattr(gptrio, name)


@pytest.mark.parametrize("name", ["BertModel", "__wrapped__", "_GPT2Model", "x"])
def test_another_name_gets_no_advice(name):
    with pytest.raises(AttributeError) as error:
        getattr(gptrio, name)
    assert str(error.value) == f"module 'gptrio' has no attribute {name!r}"
    assert not hasattr(gptrio, name)
