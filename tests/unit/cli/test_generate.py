"""`gptrio generate` on a tiny random model: what it reads, what it prints, and what it says of mistakes."""

from __future__ import annotations

import json
import logging
import sys
import warnings

import pytest
import torch

from gptrio import AutoModelForCausalLM, AutoTokenizer
from gptrio.cli import generate as command
from gptrio.cli.app import run
from gptrio.cli.generate import sampling_options
from gptrio.errors import GptrioWarning, OptionError
from gptrio.testing import VOCABULARY_SIZE

END = VOCABULARY_SIZE - 1


@pytest.fixture
def generate(model_folder, capsys):
    """Run the command on the tiny model and return (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["generate", "--model", model_folder, *arguments])
        return (code, *capsys.readouterr())

    return call


def completion(generate, *arguments):
    """The one JSON object printed, checked to be all of the output."""
    code, out, err = generate("--json", *arguments)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_greedy_prints_the_prompt_and_what_the_model_writes(generate, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert generate("ab", "--greedy", "--max-new-tokens", "12") == (0, expected + "\n", "")


@pytest.mark.parametrize("name", ["int8", "int4", "nf4", "fp4"])
def test_quantized_models_write_what_the_library_makes_them_write(generate, model_folder, name):
    if name in ("nf4", "fp4"):
        pytest.importorskip("bitsandbytes")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32", load_in=name)
    assert model.is_quantized
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    code, out, err = generate("ab", "--greedy", "--max-new-tokens", "12", "--quantize", name, "--verbose")
    assert (code, out) == (0, expected + "\n")
    assert f", {name} on cpu" in err


def test_a_missing_quantization_library_is_one_line(generate, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    code, out, err = generate("ab", "--quantize", "nf4")
    assert (code, out) == (1, "")
    assert "pip install 'gptrio[bitsandbytes]'" in err and err.count("\n") == 1


def test_prompt_comes_from_argument_file_or_standard_input(generate, tmp_path, stdin):
    (tmp_path / "prompt.txt").write_text("ab\n", encoding="utf-8")
    arguments = ("--greedy", "--max-new-tokens", "5")
    expected = generate("ab\n", *arguments)
    assert generate("--file", str(tmp_path / "prompt.txt"), *arguments) == expected
    for given in ((), ("-",)):
        stdin(b"ab\n")
        assert generate(*given, *arguments) == expected


def test_seed_repeats_a_sample(generate):
    one, two, three = (completion(generate, "ab", "--seed", seed) for seed in ("1", "1", "2"))
    assert one == two
    assert one["completions"] != three["completions"]


def test_without_a_seed_runs_differ_and_the_seed_is_told(generate):
    one, two = (completion(generate, "ab") for _ in range(2))
    assert one["seed"] != two["seed"]
    assert completion(generate, "ab", "--seed", str(one["seed"]))["completions"] == one["completions"]


def test_default_length_stays_within_the_context(generate):
    done = completion(generate, "a" * 50, "--seed", "1")["completions"][0]
    assert 0 < done["tokens"] <= 14


def test_several_sequences_are_printed_one_after_the_other(generate):
    arguments = ("ab", "--seed", "3", "--num-return-sequences", "3", "--max-new-tokens", "6")
    rows = completion(generate, *arguments)["completions"]
    code, out, err = generate(*arguments)
    assert (code, err) == (0, "")
    assert out == "".join(f"ab{row['text']}\n" for row in rows)


def test_stop_ends_the_text_and_is_the_reason(generate):
    text = completion(generate, "ab", "--greedy", "--max-new-tokens", "20")["completions"][0]["text"]
    stop = text[3]
    done = completion(generate, "ab", "--greedy", "--max-new-tokens", "20", "--stop", stop)["completions"][0]
    assert done["text"] == text[: text.index(stop) + 1]
    assert done["finish_reason"] == "stop"


def test_dtype_and_attention_reach_the_model(generate, monkeypatch):
    seen = {}
    original = command.load

    def spy(*arguments):
        seen["model"], tokenizer = original(*arguments)
        return seen["model"], tokenizer

    monkeypatch.setattr(command, "load", spy)
    code, _, _ = generate("ab", "--dtype", "bfloat16", "--attn-implementation", "eager", "--max-new-tokens", "1")
    assert code == 0
    assert seen["model"].dtype == torch.bfloat16
    assert seen["model"].config._attn_implementation == "eager"


def test_verbose_reports_on_standard_error_only(generate):
    quiet = generate("ab", "--seed", "1", "--max-new-tokens", "4")
    code, out, err = generate("ab", "--seed", "1", "--max-new-tokens", "4", "--verbose")
    assert (code, out) == quiet[:2]
    assert "4 tokens in" in err
    assert "seed 1" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("ab", "--model", "/no/such/model"), 1, ("/no/such/model",)),
        (("ab", "--file", __file__), 2, ("--file", "give one of them")),
        (("",), 2, ("empty",)),
        (("ab", "--greedy", "--top-p", "0.5"), 2, ("--greedy", "--top-p", "drop one")),
        (("ab", "--greedy", "--num-return-sequences", "2"), 2, ("--num-return-sequences 2 would be copies",)),
        (("ab", "--temperature", "0"), 2, ("--temperature 0", "pass --greedy for the most likely")),
        (("ab", "--top-p", "1.5"), 2, ("--top-p 1.5 is out of range",)),
        (("ab", "--stop", ""), 2, ("--stop [''] must be strings",)),
        (("ab", "--attn-implementation", "magic"), 1, ("--attn-implementation magic",)),
        (("ab", "--device", "abacus"), 2, ("abacus", "expected cpu")),
        (("ab", "--device", "cuda:99"), 2, ("cuda:99", "--device cpu")),
        (("ab", "--device", "meta"), 2, ("--device meta", "expected cpu")),
        (("ab", "--seed", str(2**64)), 2, (f"--seed {2**64} is out of range",)),
        (("ab", "--seed", str(-(2**63) - 1)), 2, ("64 bits",)),
        (("a" * 65,), 2, ("65 tokens", "64 positions", "pass --overflow truncate_left to")),
        (("ab", "-n", "65", "--overflow", "truncate_left"), 2, ("--max-new-tokens 65 alone",)),
    ],
)
def test_mistakes_are_one_line_with_a_code(generate, arguments, code, words):
    got, out, err = generate(*arguments)
    assert (got, out) == (code, "")
    assert err.startswith("gptrio: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


def test_no_prompt_on_a_terminal_is_a_mistake(generate, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    code, _, err = generate()
    assert code == 2
    assert 'gptrio generate "def hello_world():"' in err


def test_standard_input_that_is_no_text_is_a_mistake(generate, stdin):
    stdin(b"ab\xff")
    code, _, err = generate()
    assert code == 2
    assert "standard input is not UTF-8 text (byte 2)" in err


def failing_load(*_):
    raise RuntimeError("the wheels\ncame off")


def test_the_unexpected_is_one_line_and_a_traceback_only_on_request(generate, monkeypatch):
    monkeypatch.setattr(command, "load", failing_load)
    assert generate("ab") == (1, "", "gptrio: RuntimeError: the wheels came off (--verbose shows where)\n")
    code, out, err = generate("ab", "--verbose")
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert "failing_load" in err


def test_warnings_of_gptrio_are_one_line_and_others_are_left_out(generate, monkeypatch):
    def warning_load(*_):
        warnings.simplefilter("default")
        warnings.warn("weights\nare odd", GptrioWarning, stacklevel=1)
        warnings.warn("not yours to mend", UserWarning, stacklevel=1)
        raise OptionError("enough")

    monkeypatch.setattr(command, "load", warning_load)
    assert generate("ab") == (2, "", "gptrio: warning: weights are odd\ngptrio: enough\n")
    assert "not yours to mend" in generate("ab", "--verbose")[2]


def test_the_log_is_told_in_lines_and_from_info_on_with_verbose(generate, monkeypatch):
    log = logging.getLogger("gptrio")
    before = log.handlers[:], log.level

    def talking_load(*_):
        log.info("going on without %s", "steps")
        log.warning("compiling\nonce")
        logging.getLogger("kernels").warning("not installed")
        raise OptionError("enough")

    monkeypatch.setattr(command, "load", talking_load)
    assert generate("ab") == (2, "", "gptrio: compiling once\ngptrio: enough\n")
    assert "gptrio: going on without steps\ngptrio: compiling once\n" in generate("ab", "--verbose")[2]
    assert (log.handlers, log.level) == before


def expected_rows(folder, prompt, stops, limit, **options):
    """Rows of `generate`, each ended by hand at its first end token or stop text: text, tokens and reason."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=limit, tokenizer=tokenizer, stop_strings=stops or None, **options)
    rows, length = [], inputs["input_ids"].shape[1]
    for row in ids[:, length:].tolist():
        number = next((i for i in range(1, limit) if ended(row[:i], stops, tokenizer)), limit)
        reason = "stop" if ended(row[:number], stops, tokenizer) else "length"
        text = tokenizer.decode(row[:number], skip_special_tokens=True)
        rows.append({"text": text, "tokens": number, "finish_reason": reason})
    return rows


def ended(ids, stops, tokenizer):
    return ids[-1] == END or any(stop in tokenizer.decode(ids) for stop in stops)


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_stop_early_are_counted_without_their_padding(generate, model_folder, seed):
    stops = ["e", "u", "(", "~", "Q"]
    arguments = ["--num-return-sequences", "8", "-n", "40", "--seed", str(seed)]
    got = completion(generate, "ab", *arguments, *(part for stop in stops for part in ("--stop", stop)))
    torch.manual_seed(seed)
    expected = expected_rows(model_folder, "ab", stops, 40, do_sample=True, num_return_sequences=8)
    assert got["completions"] == expected
    assert len({row["tokens"] for row in expected}) > 1


def test_a_text_that_ends_like_a_stop_text_by_chance_was_still_cut_by_length(generate):
    """The reason is told by the loop: `stop` spans prompt and text here, which ends nothing."""
    text = completion(generate, "ab", "--greedy", "-n", "4")["completions"][0]
    done = completion(generate, "ab", "--greedy", "-n", "4", "--stop", text["text"] + "?")["completions"][0]
    assert done == text and done["finish_reason"] == "length"


@pytest.mark.filterwarnings("always::gptrio.errors.GptrioWarning")
@pytest.mark.parametrize("asked", ["9", "100000"])
def test_more_tokens_than_fit_are_warned_of_at_once_and_the_text_ends_with_the_context(generate, asked):
    arguments = ("a" * 60, "--seed", "0", "--json")
    code, out, err = generate(*arguments, "-n", asked)
    done = json.loads(out)["completions"]
    assert (code, done[0]["tokens"], done[0]["finish_reason"]) == (0, 5, "length")
    assert done == completion(generate, *arguments, "-n", "5")["completions"]
    assert err.startswith(
        f"gptrio: warning: --max-new-tokens {asked} is more than fits: a prompt of 60 tokens leaves room"
    )
    assert "for 5 in the model's 64 positions" in err and "--overflow truncate_left drops" in err
    assert err.count("\n") == 1


@pytest.mark.filterwarnings("always::gptrio.errors.GptrioWarning")
def test_the_warning_comes_before_the_text(generate, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    code, out, _ = generate("a" * 60, "-n", "9", "--seed", "0")
    assert (code, out.splitlines()[0][:15]) == (0, "gptrio: warning")


def test_what_the_warning_about_too_many_tokens_advises_works(generate):
    """More new tokens than positions: dropping the beginning of the prompt alone would not help."""
    code, _, err = generate("a" * 60, "-n", "100", "--greedy", "--json", "--overflow", "truncate_left")
    assert code == 2 and "pass 64 or less" in err
    done = completion(generate, "a" * 60, "-n", "64", "--greedy", "--overflow", "truncate_left")["completions"][0]
    assert done["tokens"] == 64 or done["finish_reason"] == "stop"


def test_a_prompt_past_the_context_is_refused(generate):
    code, out, err = generate("a" * 65, "-n", "100", "--greedy", "--json")
    assert (code, out) == (2, "")
    assert "--overflow truncate_left" in err and "64 or less" in err


def test_an_unknown_way_of_compiling_is_refused_before_anything_runs(generate, monkeypatch):
    monkeypatch.setenv("GPTRIO_COMPILE", "later")
    code, out, err = generate("ab", "--seed", "0")
    assert (code, out) == (2, "")
    assert err.startswith("gptrio: GPTRIO_COMPILE='later' in the environment is not known; expected background, wait")


def test_a_prompt_past_the_context_loses_its_beginning_on_request(generate):
    long = "ab" * 40
    done = completion(generate, long, "--greedy", "-n", "6", "--overflow", "truncate_left")
    short = completion(generate, long[-59:], "--greedy", "-n", "6")
    assert done["prompt"] == long
    assert done["completions"] == short["completions"] and done["completions"][0]["tokens"] == 6
    assert 0 < completion(generate, long, "--overflow", "truncate_left")["completions"][0]["tokens"] <= 32


def test_beams_of_the_models_own_settings_are_printed_when_they_are_known(generate, model_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.generation_config.num_beams = 3
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    arguments = ("ab", "--model", str(tmp_path), "-n", "6", "--seed", "1")
    rows = completion(generate, *arguments, "--num-return-sequences", "2")["completions"]
    assert generate(*arguments, "--num-return-sequences", "2") == (0, "".join(f"ab{r['text']}\n" for r in rows), "")
    assert generate("ab", "--model", str(tmp_path), "-n", "6", "--greedy") == generate("ab", "-n", "6", "--greedy")


def test_only_given_options_override_the_model():
    kept = {"num_return_sequences": 1}
    assert sampling_options(False, 1, temperature=None, top_k=5) == {"do_sample": True, "top_k": 5, **kept}
    assert sampling_options(True, 1, temperature=None) == {"do_sample": False, "num_beams": 1, **kept}


@pytest.mark.parametrize(("has_units", "dtype"), [(True, torch.float16), (False, torch.float32)])
def test_files_are_run_as_stored_where_the_processor_can(has_units, dtype, model_folder, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(model_folder).half()
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    monkeypatch.setattr("gptrio.kernels.packing.can_pack", lambda dtype: has_units)
    assert command.load(str(tmp_path), "cpu", None, None)[0].dtype is dtype
