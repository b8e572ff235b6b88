"""What the reference's example scripts call before they train: here with the same answers."""

from __future__ import annotations

import importlib
import logging

import pytest
import transformers

import gptrio

LIBRARIES = (gptrio, transformers)


def module(library, path):
    return importlib.import_module(f"{library.__name__}.{path}")


@pytest.mark.parametrize(
    ("requirement", "error"),
    [
        ("numpy", None),
        ("numpy>=1.0,<100", None),
        ("python>=3.8", None),
        ("numpy>=100", ImportError),
        ("numpy!=1.0,<1.0", ImportError),
        ("python<3.0", ImportError),
        ("no-such-package>=1", importlib.metadata.PackageNotFoundError),
        ("numpy>>1", ValueError),
    ],
)
def test_requirements_are_met_where_the_reference_says_so(requirement, error):
    for library in LIBRARIES:
        require = module(library, "utils.versions").require_version
        if error is None:
            assert require(requirement) is None
            continue
        with pytest.raises(error) as raised:
            require(requirement, "what to do")
        assert error is ValueError or "what to do" in str(raised.value.args[0])


def test_scripts_of_this_interface_run_and_those_of_a_later_one_do_not():
    for library in LIBRARIES:
        library.utils.check_min_version("4.56.0")
        with pytest.raises(ImportError, match=r"4\.57\.0"):
            library.utils.check_min_version("4.57.0")


def test_nothing_is_sent(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a connection"))
    assert gptrio.utils.send_example_telemetry("run_clm", object(), framework="flax") is None


def test_the_earlier_name_of_language_models_builds_them_and_warns():
    config = gptrio.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5)
    with pytest.warns(FutureWarning, match="AutoModelForCausalLM"):
        assert type(gptrio.AutoModelWithLMHead.from_config(config)) is gptrio.GPT2LMHeadModel


def test_messages_of_a_logger_are_captured():
    heard = []
    for library in LIBRARIES:
        logger = logging.getLogger("captured.here")
        with module(library, "testing_utils").CaptureLogger(logger) as captured:
            logger.warning("longer than the model")
        logger.warning("not heard")
        heard.append((captured.out, repr(captured)))
    assert heard[0] == heard[1] == ("longer than the model\n", "captured: longer than the model\n\n")


def test_names_of_files_and_choices_are_the_references():
    names = [name for name, value in vars(gptrio.utils).items() if name.endswith("_NAME") and isinstance(value, str)]
    assert len(names) > 8
    for name in names:
        assert getattr(gptrio.utils, name) == getattr(transformers.utils, name)
    for name in ("PaddingStrategy", "TensorType"):
        ours, theirs = (list(getattr(library.utils, name)) for library in LIBRARIES)
        assert [(each.name, each.value) for each in ours] == [(each.name, each.value) for each in theirs]
