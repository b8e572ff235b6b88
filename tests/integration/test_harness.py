"""The lm-evaluation-harness gives by our model class what its own gives by the reference; skipped without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval")
os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gptrio.errors import InputError, OptionError
from gptrio.scoring.harness import GptrioLM
from gptrio.scoring.local_tasks import local_tasks
from gptrio.testing.tiny import byte_tokenizer
from tests.architecture.source import ROOT
from tests.integration.test_command_line import gptrio
from tests.reference import model_pair

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

CLASSES = ("GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM")
SENTENCES = ["The cats sleep", "A dog barks at cats", "Who saw the birds", "They like it", "I see where she goes"]
FILES = {
    "lambada_local": [{"text": f"{one}. {other} {word}"} for one in SENTENCES for other in SENTENCES for word in "ab"],
    "blimp_local": [
        {"UID": f"rule_{i % 3}", "sentence_good": one + ".", "sentence_bad": one.replace("s", "z", 1) + "."}
        for i, one in enumerate(SENTENCES * 2)
    ],
    "wikitext_local": [{"text": " ".join(SENTENCES) * n} for n in (1, 2, 3)],
}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=CLASSES)
def pair(request, tokenizer_folder):
    """The harness' model over the reference, and ours, of equal weights."""
    import transformers

    oracle, ours = model_pair(request.param, "sdpa", vocab_size=257, max_length=None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    reference = HFLM(pretrained=oracle, tokenizer=tokenizer, batch_size=4, max_length=32)
    return reference, GptrioLM(ours, byte_tokenizer())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for task, documents in FILES.items():
        (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return {task: folder / f"{task}.jsonl" for task in FILES}


def evaluate(lm, files, **options):
    with local_tasks(files, include_defaults=False) as manager:
        return lm_eval.simple_evaluate(model=lm, tasks=list(files), task_manager=manager, bootstrap_iters=0, **options)


def requests(kind: str, *arguments) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def test_tasks_have_equal_accuracies_and_perplexities(pair, files):
    expected, found = (evaluate(lm, files)["results"] for lm in pair)
    for task, metrics in expected.items():
        for name, value in metrics.items():
            exact = name.startswith("acc") or not isinstance(value, float)
            assert found[task][name] == (value if exact else pytest.approx(value, rel=1e-4)), (task, name)
    assert {"acc,none", "acc_rule_0,none", "acc_rule_1,none", "acc_rule_2,none"} <= found["blimp_local"].keys()


def test_log_likelihoods_are_equal(pair):
    contexts = ["", "The cats sleep ", "Who", "x" * 40, "The cats sleep "]
    continuations = ["The dog.", "well", " saw it?", " yes", "badly"]
    asked = requests("loglikelihood", *zip(contexts, continuations, strict=True))
    expected, found = (lm.loglikelihood(asked, disable_tqdm=True) for lm in pair)
    for (value, greedy), (our_value, our_greedy) in zip(expected, found, strict=True):
        assert our_value == pytest.approx(value, abs=1e-4)
        assert our_greedy == greedy


def test_greedy_continuations_are_recognised(pair):
    ours, context = pair[1], [1, 2, 3]
    greedy = ours.model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False)[0, 3:].tolist()
    other = [*greedy[:-1], (greedy[-1] + 1) % 257]
    found = ours._loglikelihood_tokens([(None, context, greedy), (None, context, other)], disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_rolling_log_likelihoods_are_equal(pair):
    asked = requests("loglikelihood_rolling", ("The cats sleep " * 7,), ("a",), ("x" * 32,), ("y" * 33,))
    expected, found = (lm.loglikelihood_rolling(asked, disable_tqdm=True) for lm in pair)
    assert found == pytest.approx(expected, abs=1e-4 * 10)


def test_generated_texts_are_equal(pair):
    greedy = {"until": ["e", "\n"], "max_gen_toks": 8}
    arguments = [
        ("The cats", greedy),
        ("x" * 40, greedy),
        ("Who", {"until": "t", "max_gen_toks": 5, "do_sample": False}),
    ]
    expected, found = (lm.generate_until(requests("generate_until", *arguments), disable_tqdm=True) for lm in pair)
    assert found == expected


def test_the_harness_own_class_takes_our_model(pair, tokenizer_folder):
    reference, ours = pair
    theirs = HFLM(pretrained=ours.model, tokenizer=tokenizer_folder, batch_size=4, max_length=32)
    asked = requests("loglikelihood", ("The cats", " sleep"), ("", "A dog"))
    expected, found = (lm.loglikelihood(asked, disable_tqdm=True) for lm in (reference, theirs))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_answers_go_to_the_cache_of_the_harness(pair):
    ours, stored = pair[1], {}
    hook = SimpleNamespace(add_partial=lambda kind, key, value: stored.update({(kind, key): value}))
    ours.set_cache_hook(hook)
    found = ours.loglikelihood(requests("loglikelihood", ("The", " cat"), ("", "A")))
    assert stored == {("loglikelihood", ("The", " cat")): found[0], ("loglikelihood", ("", "A")): found[1]}


def test_the_model_class_is_known_by_name_and_loads_checkpoints(files, tmp_path):
    _, ours = model_pair("GPT2LMHeadModel", vocab_size=257)
    ours.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    named = evaluate("gptrio", files, model_args=f"pretrained={tmp_path},batch_tokens=64", limit=4)
    given = evaluate(GptrioLM(ours, byte_tokenizer()), files, limit=4)
    assert named["results"]["lambada_local"]["perplexity,none"] == pytest.approx(
        given["results"]["lambada_local"]["perplexity,none"], rel=1e-4
    )
    assert named["config"]["model_num_parameters"] == ours.num_parameters()


def test_the_command_prints_a_table_over_tasks(files, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {files['wikitext_local']}\noutput_type: loglikelihood_rolling\ntest_split: test\n"
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n  - metric: bits_per_byte\n'
    )
    tasks = f"blimp_local={files['blimp_local']},{tmp_path / 'own.yaml'}"
    done = gptrio("eval", "gptrio/stdlib-gpt2", "--tasks", tasks, "--limit", "3")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["task", "metric", "main"]
    assert {"acc", "acc_rule_0", "bits_per_byte"} <= {row[1] for row in rows[1:]}


def test_the_page_on_scoring_evaluates_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lambada_test.jsonl").write_text("\n".join(map(json.dumps, FILES["lambada_local"])))
    scope: dict[str, object] = {}
    page = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/scoring.md", "exec"), scope)
    assert "perplexity,none" in scope["results"]["results"]["lambada_local"]


def test_impossible_requests_are_named(pair):
    with pytest.raises(InputError, match="at most 32 to score"):
        pair[1].loglikelihood(requests("loglikelihood", ("a", "x" * 33)), disable_tqdm=True)
    with pytest.raises(OptionError, match="lower max_gen_toks"):
        pair[1].generate_until(requests("generate_until", ("a", {"max_gen_toks": 32})), disable_tqdm=True)
    with pytest.raises(InputError, match="pass tokenizer="):
        GptrioLM(pair[1].model)


def test_evaluation_works_without_transformers(tmp_path):
    program = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_others(name, *rest):
    return None if name.partition(".")[0] == "transformers" else find(name, *rest)
PathFinder.find_spec = staticmethod(find_others)
from gptrio.scoring.harness import GptrioLM
from gptrio.testing import tiny_config
from gptrio.testing.tiny import byte_tokenizer
from gptrio import AutoModelForCausalLM
from gptrio.scoring.local_tasks import local_tasks
import lm_eval
lm = GptrioLM(AutoModelForCausalLM.from_config(tiny_config()), byte_tokenizer())
with local_tasks({"lambada_local": sys.argv[1]}, include_defaults=False) as manager:
    print(lm_eval.simple_evaluate(lm, tasks=["lambada_local"], task_manager=manager)["results"].keys())
"""
    file = tmp_path / "file.jsonl"
    file.write_text(json.dumps(FILES["lambada_local"][0]))
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, env=environment, check=False
    )
    assert "lambada_local" in done.stdout, done.stderr
