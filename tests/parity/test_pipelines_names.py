"""Names of the reference's pipeline modules and classes: here too, or absent for a reason; and what they do."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from transformers.pipelines import base as their_base
from transformers.pipelines import pt_utils as theirs
from transformers.pipelines import question_answering as their_qa
from transformers.pipelines.token_classification import TokenClassificationArgumentHandler as TheirTokenHandler
from transformers.pipelines.zero_shot_classification import ZeroShotClassificationArgumentHandler as TheirLabelHandler

import gptrio
from gptrio.errors import GptrioError
from gptrio.pipelines import PIPELINE_REGISTRY, PipelineException, TokenClassificationPipeline
from gptrio.pipelines import pt_utils as ours
from gptrio.pipelines import question_answering as our_qa
from gptrio.pipelines.token_classification import TokenClassificationArgumentHandler
from gptrio.pipelines.zero_shot_classification import ZeroShotClassificationArgumentHandler
from gptrio.testing import byte_tokenizer
from tests.contract.families import FAMILIES

MODULES = (
    "",
    ".base",
    ".feature_extraction",
    ".pt_utils",
    ".question_answering",
    ".text_classification",
    ".text_generation",
    ".token_classification",
    ".zero_shot_classification",
)

OTHER_TASKS = {
    "Audio", "AutomaticSpeech", "Depth", "Document", "FillMask", "Image", "Keypoint", "Mask", "Object", "Summarization",
    "Table", "Text2Text", "TextToAudio", "Translation", "Video", "Visual", "ZeroShotAudio", "ZeroShotImage",
    "ZeroShotObject",
}  # fmt: skip

ABSENT = {
    "_ScikitCompat": "a base of the reference's own; transform and predict are methods of Pipeline",
    "_pad": "a part of pad_collate_fn",
    "build_pipeline_init_args": "writes the reference's documentation",
    "clean_custom_task": "prepares code from a checkpoint, which is never run",
    "get_default_model_and_revision": "a part of the reference's pipeline(); SUPPORTED_TASKS has the default",
    "get_framework": "there is one framework",
    "get_task": "asks the hub for a task; pipeline(model=...) infers it from the model's architecture",
    "infer_framework_from_model": "there is one framework",
    "infer_framework_load_model": "there is one framework, and auto classes load models",
    "load_assistant_model": "a part of the reference's constructor; assistant_model= loads one",
    "no_collate_fn": "for a DataLoader, which there is none of",
    "pad_collate_fn": "for a DataLoader, which there is none of",
    "sigmoid": "a function of numpy arrays for the reference's own use; see ClassificationFunction",
    "softmax": "a function of numpy arrays for the reference's own use; see ClassificationFunction",
    "Pipeline._create_repo": "a part of push_to_hub",
    "Pipeline._get_files_timestamps": "a part of push_to_hub",
    "Pipeline._upload_modified_files": "a part of push_to_hub",
    "PipelineIterator.loader_batch_item": "a step of the reference's iterator",
    "QuestionAnsweringArgumentHandler._load_feature_extractor": "flags of a pipeline, on a class that is none",
    "QuestionAnsweringArgumentHandler._load_image_processor": "flags of a pipeline, on a class that is none",
    "QuestionAnsweringArgumentHandler._load_processor": "flags of a pipeline, on a class that is none",
    "QuestionAnsweringArgumentHandler._load_tokenizer": "flags of a pipeline, on a class that is none",
    "QuestionAnsweringPipeline.get_answer": "answers with one text are looked up in a dictionary",
    "TextGenerationPipeline.XL_PREFIX": "for Transformer-XL and XLNet",
    "TextGenerationPipeline._parse_and_tokenize": "for Transformer-XL; it calls a method that does not exist",
    "ZeroShotClassificationPipeline._parse_and_tokenize": "a step of the reference's preprocess",
}


def modules(suffix: str) -> tuple[ModuleType, ModuleType]:
    return (
        importlib.import_module(f"transformers.pipelines{suffix}"),
        importlib.import_module(f"gptrio.pipelines{suffix}"),
    )


def own_names(module: ModuleType) -> list[str]:
    """Names that a module of the reference defines or, if it gathers names, offers; those of other tasks left out."""
    gathers = module.__name__.endswith(("pipelines", "base"))
    source = "transformers.pipelines" if gathers else module.__name__
    names = [
        name for name, value in vars(module).items() if (getattr(value, "__module__", None) or "").startswith(source)
    ]
    names += [name for name in ("SUPPORTED_TASKS", "TASK_ALIASES", "PIPELINE_REGISTRY") if hasattr(module, name)]
    return [name for name in names if not name.startswith(tuple(OTHER_TASKS))]


def missing_names(suffix: str) -> set[str]:
    """Names of a module, and `Class.name` of its classes, that are not here; of a base class under its own name."""
    their_module, our_module = modules(suffix)
    found = set()
    for name in own_names(their_module):
        theirs, ours = getattr(their_module, name), getattr(our_module, name, None)
        if ours is None:
            found.add(name)
        elif inspect.isclass(theirs):
            absent = [a for a in dir(theirs) if not hasattr(ours, a) and a != "_abc_impl"]
            bases = [c.__name__ for c in theirs.__mro__]
            found |= {next((f"{b}.{a}" for b in bases if f"{b}.{a}" in ABSENT), f"{name}.{a}") for a in absent}
    return found


@pytest.mark.parametrize("suffix", MODULES)
def test_every_name_is_there_or_absent_for_a_reason(suffix: str) -> None:
    assert missing_names(suffix) - ABSENT.keys() == set()


def test_the_reasons_are_of_names_that_are_absent() -> None:
    assert ABSENT.keys() == set().union(*map(missing_names, MODULES))


@pytest.mark.parametrize("suffix", MODULES)
def test_functions_and_methods_take_the_arguments_of_the_reference(suffix: str) -> None:
    their_module, our_module = modules(suffix)
    for name in own_names(their_module):
        if name in ABSENT or f"{name}." in ABSENT:
            continue
        theirs, ours = getattr(their_module, name), getattr(our_module, name)
        if inspect.isfunction(theirs):
            check_arguments(name, theirs, ours)
        for method, function in inspect.getmembers(theirs, inspect.isfunction) if inspect.isclass(theirs) else ():
            if f"{name}.{method}" not in ABSENT and hasattr(ours, method):
                check_arguments(f"{name}.{method}", function, getattr(ours, method))


def check_arguments(name: str, theirs: Any, ours: Any) -> None:
    """Check that whatever can be passed to theirs by name can be passed to ours."""
    parameters = inspect.signature(ours).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for argument, parameter in inspect.signature(theirs).parameters.items():
        is_name = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert not is_name or takes_all or argument in parameters, (name, argument)


def test_tasks_are_mappings_with_the_keys_of_the_reference() -> None:
    from transformers.pipelines import SUPPORTED_TASKS

    for task, row in gptrio.pipelines.SUPPORTED_TASKS.items():
        expected = SUPPORTED_TASKS[task]
        assert set(row) <= set(expected)
        assert row["impl"].__name__ == expected["impl"].__name__
        assert [c.__name__ for c in row["pt"]] == [c.__name__ for c in expected["pt"]]
        assert (row["tf"], row["type"]) == ((), expected["type"] if expected["type"] != "multimodal" else "text")
        assert len(row) == len(list(row))
    name, row, options = PIPELINE_REGISTRY.check_task("ner")
    assert (name, row["impl"], options) == ("token-classification", TokenClassificationPipeline, None)
    model, _ = gptrio.pipelines.check_task("text-generation")[1]["default"]["model"]["pt"]
    assert model == SUPPORTED_TASKS["text-generation"]["default"]["model"]["pt"][0]


def test_an_exception_has_the_fields_of_the_reference() -> None:
    error = PipelineException("ner", "a model", "it failed")
    assert isinstance(error, GptrioError)
    expected = their_base.PipelineException("ner", "a model", "it failed")
    assert (str(error), error.task, error.model) == (str(expected), expected.task, expected.model)


def double(value: Any, by: int = 2) -> Any:
    return {"out": [each * by for each in value["id"]], "t": torch.tensor([value["id"]]).T * by, "none": None}


BATCHES = [{"id": [1, 2, 3]}, {"id": [4, 5, 6]}, {"id": [7]}]


@pytest.mark.parametrize(
    ("items", "function", "batch_size"),
    [
        ([1, 2, 3], lambda value, by: value + by, None),
        ([1, 2, 3], lambda value, by: {"id": [value * by]}, 1),
        (BATCHES, double, 3),
        ([torch.arange(6).reshape(3, 2)], lambda value, by: value * by, 3),
        ([torch.arange(6).reshape(3, 2)], lambda value, by: (value * by, None), 3),
        (BATCHES, lambda value, by: {"id": value["id"], "hidden_states": (torch.tensor(value["id"]) * by,)}, 3),
    ],
)
def test_iterators_give_what_the_references_give(items: Any, function: Any, batch_size: int | None) -> None:
    results = [list(m.PipelineIterator(items, function, {"by": 5}, batch_size)) for m in (ours, theirs)]
    torch.testing.assert_close(*results)
    assert len(ours.PipelineIterator(items, function, {})) == len(items)


def test_chunks_packs_and_datasets_are_those_of_the_reference() -> None:
    def chunks(count: int) -> Any:
        yield from ({"n": i, "is_last": i == count - 1} for i in range(count))

    def together(rows: Any) -> Any:
        return {"n": [row["n"] for row in rows], "is_last": [row["is_last"] for row in rows]}

    rows = [list(m.PipelineChunkIterator([2, 3], chunks, {})) for m in (ours, theirs)]
    assert rows[0] == rows[1]
    packs = [list(m.PipelinePackIterator(list(rows[0]), dict, {})) for m in (ours, theirs)]
    assert packs[0] == packs[1]
    batches = [rows[0][:3], rows[0][3:]]
    packs = [list(m.PipelinePackIterator(batches, together, {}, loader_batch_size=3)) for m in (ours, theirs)]
    assert packs[0] == packs[1] == [[{"n": 0}, {"n": 1}], [{"n": 0}, {"n": 1}, {"n": 2}]]
    sets = [m.PipelineDataset([1, 2], lambda value, by: value * by, {"by": 3}) for m in (ours, theirs)]
    assert [(len(s), s[0], s[1]) for s in sets] == [(2, 3, 6)] * 2
    pairs = [m.KeyPairDataset([{"a": 1, "b": 2}], "a", "b") for m in (ours, theirs)]
    assert (len(pairs[0]), pairs[0][0]) == (len(pairs[1]), pairs[1][0])


def test_rows_of_a_model_output_keep_its_class() -> None:
    output = transformers.modeling_outputs.SequenceClassifierOutput(logits=torch.arange(4.0).reshape(2, 2))
    assert [type(row) for row in theirs.PipelineIterator([0], lambda _: output, {}, 2)] == [type(output)] * 2
    rows = list(ours.PipelineIterator([torch.tensor([[1, 2], [3, 4]])], FAMILIES[0].build(), {}, 2))
    assert [(type(row).__name__, row.logits.shape[:2]) for row in rows] == [
        ("CausalLMOutputWithCrossAttentions", (1, 2))
    ] * 2


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [(0, 0, "My name is Anna"), (3, 8, "My name  is Anna"), (3, 11, "My name is Anna"), (1, 9, "a b"), (4, 2, "a b c")],
)
def test_a_span_of_tokens_has_the_words_of_the_reference(start: int, end: int, text: str) -> None:
    tokenizer = byte_tokenizer()
    pipe = gptrio.pipeline("question-answering", FAMILIES[0].build("ForQuestionAnswering"), tokenizer=tokenizer)
    expected = their_qa.QuestionAnsweringPipeline.span_to_answer(pipe, text, start, end)
    assert pipe.span_to_answer(text, start, end) == expected


@pytest.mark.parametrize("top_k", [1, 4, 500])
@pytest.mark.parametrize("null_score", [1000000, 1e-9])
def test_spans_are_those_of_the_reference(top_k: int, null_score: float) -> None:
    torch.manual_seed(0)
    start, end = torch.randn(2, 1, 12)
    p_mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    attention_mask = torch.tensor([[1] * 10 + [0] * 2])
    given = (null_score, top_k, True, 5)
    found = our_qa.select_starts_ends(start, end, p_mask, attention_mask, *given)
    arrays = (start.numpy(), end.numpy(), p_mask.numpy(), attention_mask.numpy())
    expected = their_qa.select_starts_ends(*arrays, *given)
    is_real = (expected[2] > 0) & (expected[0] > 0)  # theirs has spans without probability, too
    for one, other in zip(found[:3], (values[is_real] for values in expected[:3]), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other))
    assert found[3] == pytest.approx(expected[3])


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ("a text", {}),
        (["a", "b"], {"delimiter": "-", "is_split_into_words": True}),
        (("a", "b"), {"offset_mapping": [[(0, 1)], [(0, 1)]]}),
        ("a", {"offset_mapping": [(0, 1)]}),
    ],
    ids=str,
)
def test_inputs_of_token_classification_are_sorted_as_in_the_reference(inputs: Any, options: Any) -> None:
    mine, reference = TokenClassificationArgumentHandler(), TheirTokenHandler()
    assert mine(inputs, **options) == reference(inputs, **options)
    for wrong in ({"inputs": []}, {"inputs": None}, {"inputs": ["a"], "offset_mapping": [[(0, 1)]] * 2}):
        for handler in (mine, reference):
            with pytest.raises(ValueError, match=r"input"):
                handler(**wrong)


def test_labels_become_the_pairs_of_the_reference() -> None:
    mine, reference = ZeroShotClassificationArgumentHandler(), TheirLabelHandler()
    assert mine._parse_labels(" a, b,,c ") == reference._parse_labels(" a, b,,c ")
    for texts in ("one", ["one", "two"]):
        assert mine(texts, ["x", "y"], "It is {}.") == reference(texts, ["x", "y"], "It is {}.")


class Counted(TokenClassificationArgumentHandler):
    """A handler of one's own."""

    calls = 0

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().__call__(inputs, **kwargs)


def test_a_handler_of_ones_own_is_called() -> None:
    handler = Counted()
    model = FAMILIES[0].build("ForTokenClassification")
    ner = TokenClassificationPipeline(model=model, tokenizer=byte_tokenizer(), args_parser=handler, device="cpu")
    assert [len(entities) for entities in ner(["ab", "c"])] == [len(ner("ab")), len(ner("c"))] == [2, 1]
    assert handler.calls == 3


def test_the_steps_of_a_call_are_methods_that_give_what_the_call_gives() -> None:
    model = FAMILIES[0].build("ForSequenceClassification")
    pipe = gptrio.pipeline("text-classification", model, tokenizer=byte_tokenizer(), device="cpu")
    texts, parameters = ["ab", "c", "def"], ({}, {}, {"top_k": None, "_legacy": False})
    expected = [pipe.run_single(text, *parameters) for text in texts]
    assert [[label["label"] for label in labels] for labels in expected] == [
        [label["label"] for label in labels] for labels in pipe(texts, top_k=None)
    ]
    assert pipe.run_multi(texts, *parameters) == list(pipe.iterate(iter(texts), *parameters)) == expected
    assert list(pipe.get_iterator(texts, 0, 1, *parameters)) == expected


@pytest.mark.parametrize("top_k", [1, 3])
def test_an_answer_without_probability_is_a_span_of_the_context(top_k: int) -> None:
    """Logits so far apart that every span has the probability 0, because the likeliest start follows the end."""
    start, end = torch.zeros(2, 1, 6)
    start[0, 5] = end[0, 3] = 1e6
    p_mask = torch.tensor([[1, 1, 0, 0, 0, 0]])
    firsts, lasts, scores, _ = our_qa.select_starts_ends(start, end, p_mask, None, 1e6, top_k, False, 2)
    assert len(firsts) == top_k
    assert all(2 <= first <= last < first + 2 for first, last in zip(firsts, lasts, strict=True))
    assert scores.tolist() == [0.0] * top_k


class Ticket(transformers.TextClassificationPipeline):  # type: ignore[misc]
    """A pipeline class, for the table alone."""


def test_a_registered_task_keeps_what_the_reference_keeps() -> None:
    theirs_registry = transformers.pipelines.PIPELINE_REGISTRY
    found = []
    for library, registry in ((gptrio, PIPELINE_REGISTRY), (transformers, theirs_registry)):
        classes = (library.AutoModelForSequenceClassification, library.AutoModelForCausalLM)
        default = {"pt": ("someone/model", "2ef615d")}
        try:
            registry.register_pipeline("ticket", Ticket, pt_model=classes, default=default, type="multimodal")
            name, task, _ = registry.check_task("ticket")
            assert task["pt"] == classes
            found.append((name, task["impl"], task["tf"], task["type"], task["default"]))
        finally:
            del registry.supported_tasks["ticket"]
    assert found[0] == found[1]


def test_the_revision_of_a_default_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def described(model: Any, config: Any, hub: dict[str, Any]) -> Any:
        asked.append((model, hub["revision"]))
        raise LookupError

    monkeypatch.setattr("gptrio.pipelines.factory._described", described)
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks, "ticket", None)
    PIPELINE_REGISTRY.register_pipeline("ticket", Ticket, default={"pt": ("someone/model", "2ef615d")})
    for options in ({}, {"revision": "other"}):
        with pytest.raises(LookupError):
            gptrio.pipeline("ticket", **options)
    assert asked == [("someone/model", "2ef615d"), ("someone/model", "other")]


class Lines(torch.utils.data.IterableDataset[str]):
    """Texts without places, of a known number."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(["a", "bc", "def"])


class Length(gptrio.FeatureExtractionPipeline):
    """The number of tokens of a text, as a text."""

    def postprocess(self, model_outputs: Any, return_tensors: bool = False) -> Any:
        return "x" * model_outputs[0].shape[1]


def test_results_are_iterators_of_the_modules_class_and_inputs_of_another_pipeline() -> None:
    pipe = Length(FAMILIES[0].build("Model"), byte_tokenizer())
    for inputs in (Lines(), (text for text in Lines())):
        results = pipe(inputs)
        assert isinstance(results, ours.PipelineIterator)
        assert list(pipe(results)) == ["x", "xx", "xxx"]
    assert len(pipe(Lines())) == 3
    with pytest.raises(TypeError):
        len(pipe(text for text in Lines()))


@pytest.mark.parametrize("arguments", [(None, ["a"]), ("a text", None)])
def test_inputs_of_another_type_have_an_error_of_the_references_type(arguments: Any) -> None:
    for library in (gptrio, transformers):
        config = library.GPT2Config(vocab_size=300, n_embd=8, n_head=1, n_layer=1, pad_token_id=0)
        model = library.GPT2ForSequenceClassification(config)
        tokenizer = byte_tokenizer() if library is gptrio else gptrio.to_transformers(byte_tokenizer())
        pipe = library.pipeline("zero-shot-classification", model, tokenizer=tokenizer, device="cpu")
        with pytest.raises(TypeError):
            pipe(*arguments)
