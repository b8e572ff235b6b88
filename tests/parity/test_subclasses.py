"""Model and configuration classes of the user's own, written as for the reference, beside it."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import gptrio
from gptrio.errors import CheckpointError, ConfigError, OptionError, UnsupportedError
from gptrio.testing import assert_close
from tests.parity.test_model_surface import CAUSAL
from tests.reference import model_pair, token_ids
from tests.sizes import SIZES

LIBRARIES = (transformers, gptrio)


def classes(library: Any, family: str, how: str = "annotation") -> tuple[Any, Any]:
    """A configuration with plain attributes, and a model that says by annotation or attribute that it takes it."""
    config_base: Any = getattr(library, f"{family}Config")
    model_base: Any = getattr(library, CAUSAL[family])

    class MyConfig(config_base):
        model_type = "mine"
        temperature = 2.0

        def __init__(self, width: int = 3, names: Any = None, **kwargs: Any) -> None:
            self.width = width
            super().__init__(**kwargs)
            self.names = names or {"a": [1, 2]}
            self.double = 2 * width

    class MyModel(model_base):
        if how == "annotation":
            __annotations__ = {"config": MyConfig}
        else:
            config_class = MyConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.scale = nn.Linear(config.width, config.double)
            self.post_init()

    MyConfig.__qualname__, MyModel.__qualname__ = "MyConfig", "MyModel"
    return MyConfig, MyModel


def file_of(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: content[key] for key in sorted(content)}


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("how", ["annotation", "attribute"])
def test_a_model_and_its_configuration_are_saved_and_loaded(family: str, how: str, tmp_path: Path) -> None:
    found, files, logits = [], [], []
    ids = token_ids()
    for library in LIBRARIES:
        config_class, model_class = classes(library, family, how)
        assert model_class.config_class is config_class
        torch.manual_seed(0)
        config = config_class(width=5, names={"b": [3]}, **SIZES[family])
        model, folder = model_class(config).eval(), tmp_path / library.__name__
        model.save_pretrained(folder)
        files.append(file_of(folder))
        loaded, report = model_class.from_pretrained(folder, output_loading_info=True)
        for one in (config, loaded.config, copy.deepcopy(config)):
            assert type(one) is config_class
            found.append((one.width, one.double, one.names, one.temperature, one.model_type))
        found.append(report)
        with torch.no_grad():
            logits.append(loaded(ids).logits)
            assert torch.equal(loaded(ids).logits, model(ids).logits)
    half = len(found) // 2
    assert found[half:] == found[:half]
    assert files[1] == files[0]
    assert_close(logits[1], logits[0])


@pytest.mark.parametrize("family", SIZES)
def test_attributes_are_overridden_on_load(family: str, tmp_path: Path) -> None:
    found = []
    for library in LIBRARIES:
        config_class, _ = classes(library, family)
        folder = tmp_path / library.__name__
        config_class(**SIZES[family]).save_pretrained(folder)
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del content["names"]  # an override of what the file does not say
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
        config, unused = config_class.from_pretrained(
            folder, return_unused_kwargs=True, width=7, names=[1], temperature=9.0, nothing=3
        )
        found.append((config.width, config.names, config.temperature, unused))
        one = config_class.from_dict({"width": 2}, names="n", temperature=1)
        found.append((one.width, one.names, one.temperature, one.double))
    assert found[2:] == found[:2]


@pytest.mark.parametrize("family", SIZES)
def test_a_familys_checkpoint_is_loaded_into_the_subclass(family: str, tmp_path: Path) -> None:
    base = getattr(transformers, CAUSAL[family])
    plain = base(base.config_class(**SIZES[family])).eval()
    plain.save_pretrained(tmp_path)
    for library in LIBRARIES:
        config_class, model_class = classes(library, family)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the scale is new
            loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True, width=4)
        assert report["missing_keys"] == ["scale.bias", "scale.weight"]
        assert type(loaded.config) is config_class and loaded.scale.weight.shape == (6, 4)  # made with a width of 3
        ids = token_ids()
        with torch.no_grad():
            assert_close(loaded(ids).logits, plain(ids).logits)
    other = "gptrio.GPTNeoConfig" if family != "GPTNeo" else "gptrio.GPT2Config"
    with pytest.raises(ConfigError, match="model_type"):
        getattr(gptrio, other.partition(".")[2]).from_pretrained(tmp_path)


@pytest.mark.parametrize("family", SIZES)
def test_auto_classes_know_what_is_registered(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr("gptrio.config.auto.CONFIG_MAPPING", dict(gptrio.config.auto.CONFIG_MAPPING))
    monkeypatch.setattr(gptrio.AutoModelForCausalLM, "_registered", {})
    for library in LIBRARIES:
        config_class, model_class = classes(library, family)
        library.AutoConfig.register("mine", config_class, exist_ok=True)
        library.AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
        model = library.AutoModelForCausalLM.from_config(config_class(**SIZES[family]))
        folder = tmp_path / library.__name__
        model.save_pretrained(folder)
        loaded = library.AutoModelForCausalLM.from_pretrained(folder)
        assert type(model) is type(loaded) is model_class
        found.append((loaded.config.names, library.AutoConfig.from_pretrained(folder, width=8).width))
    assert found[1] == found[0]


@pytest.mark.parametrize("family", SIZES)
def test_a_constructor_may_have_arguments_without_default(family: str, tmp_path: Path) -> None:
    contents = []
    for library in LIBRARIES:
        base: Any = getattr(library, f"{family}Config")

        class Strict(base):
            model_type = "strict"
            has_no_defaults_at_init = True

            def __init__(self, width: int, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.width = width

        config = Strict(3, **SIZES[family])
        contents.append(config.to_diff_dict())
    assert contents[1] == contents[0]
    config.save_pretrained(tmp_path)
    assert Strict.from_pretrained(tmp_path) == config


class ModuleConfig(gptrio.GPT2Config):
    """In a module whose annotations are text."""

    model_type = "module"
    width = 3


class ModuleModel(gptrio.GPT2LMHeadModel):
    """Names its configuration by an annotation that is text."""

    config: ModuleConfig


def test_an_annotation_that_is_text_is_found_in_its_module() -> None:
    assert ModuleModel.config_class is ModuleConfig
    model = ModuleModel(ModuleConfig(width=4, **SIZES["GPT2"]))
    again = pickle.loads(pickle.dumps(model))
    assert type(again.config) is ModuleConfig and again.config.width == 4
    assert type("Heir", (ModuleModel,), {}).config_class is ModuleConfig  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="needs a ModuleConfig"):
        ModuleModel(gptrio.GPT2Config(**SIZES["GPT2"]))


def test_what_no_attribute_is_remains_an_error(tmp_path: Path) -> None:
    config_class, model_class = classes(gptrio, "GPT2")
    model_class(config_class(**SIZES["GPT2"])).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="nothing"):
        model_class.from_pretrained(tmp_path, nothing=3)


# types --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, torch.float64])
def test_modules_that_a_class_names_stay_in_float32(family: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    base: Any = getattr(transformers, CAUSAL[family])
    base(base.config_class(**SIZES[family])).save_pretrained(tmp_path)
    found = []
    for library in LIBRARIES:
        parent: Any = getattr(library, CAUSAL[family])

        class Careful(parent):
            _keep_in_fp32_modules = ["mlp"]  # noqa: RUF012 - as users write it
            _keep_in_fp32_modules_strict = ["ln_f", "final_layer_norm"][family == "GPTNeoX" :][:1]

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.new = nn.Linear(2, 2)

        for class_ in (parent, Careful):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of new weights
                loaded = class_.from_pretrained(tmp_path, dtype=dtype)
            names = {name: tensor for name, tensor in loaded.named_parameters() if not name.startswith("new")}
            found.append({name: (tensor.dtype, tensor.double().sum().item()) for name, tensor in names.items()})
            if class_ is Careful:
                found.append({"new": loaded.new.weight.dtype})
    assert found[3:] == found[:3]
    kinds = {dtype for dtype, _ in found[1].values()}
    assert len(kinds) == (2 if dtype in (torch.float16, torch.bfloat16) else 1)


# models written from nothing ----------------------------------------------------------------------------------------


def model_from_nothing(library: Any, head_on_body: bool = True) -> Any:
    """A recurrent language model over the library's base classes alone."""
    config_base: Any = library.PretrainedConfig
    model_base: Any = library.PreTrainedModel
    mixin: Any = library.GenerationMixin
    outputs = library.modeling_outputs if library is transformers else gptrio.outputs

    class RecurrentConfig(config_base):
        model_type = "recurrent"

        def __init__(self, width: int = 8, vocab_size: int = 11, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.width, self.hidden_size, self.vocab_size, self.num_hidden_layers = width, width, vocab_size, 1

    class Base(model_base):
        __annotations__ = {"config": RecurrentConfig}
        base_model_prefix = "body"

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.GRU):
                for parameter in module.parameters():
                    parameter.data.normal_(0.0, 0.5)
            else:
                super()._init_weights(module)

    class Body(Base):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
            self.gru = nn.GRU(config.width, config.width, batch_first=True)
            self.post_init()

        def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
            return self.gru(self.embed_tokens(input_ids))[0]

    class Head(Base, mixin):
        _tied_weights_keys = ["lm_head.weight"]  # noqa: RUF012 - as users write it

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.body = Body(config)
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
            self.post_init()

        def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
            logits = self.lm_head(self.body(input_ids))
            loss = None
            if labels is not None:
                loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
            return outputs.CausalLMOutputWithPast(loss=loss, logits=logits)

    torch.manual_seed(0)
    return (Head if head_on_body else Body)(RecurrentConfig()).eval()


def test_a_model_from_nothing_lives_as_in_the_reference(tmp_path: Path) -> None:
    ids, answers = token_ids(2, 5, 11), []
    for library in LIBRARIES:
        model = model_from_nothing(library)
        folder = tmp_path / library.__name__
        assert model.base_model is model.body and model.lm_head.weight is model.body.embed_tokens.weight
        model.save_pretrained(folder)
        loaded, report = type(model).from_pretrained(folder, output_loading_info=True)
        body, body_report = type(model.body).from_pretrained(folder, output_loading_info=True)
        with torch.no_grad():
            result = loaded(ids, labels=ids)
            assert torch.equal(body(ids), model.body(ids))
        answers.append(
            {
                "file": file_of(folder),
                "reports": [report, body_report],
                "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
                "parameters": (loaded.num_parameters(), loaded.num_parameters(exclude_embeddings=True)),
                "loss": pytest.approx(float(result.loss), rel=1e-5),
                "generated": loaded.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False).tolist(),
                "beams": loaded.generate(ids, max_new_tokens=6, num_beams=3, use_cache=False).tolist(),
                "can generate": (loaded.can_generate(), body.can_generate(), type(body).can_generate()),
                "resized": loaded.resize_token_embeddings(13).weight.shape,
                "head": (loaded.lm_head.weight.shape, loaded.lm_head.out_features, loaded.config.vocab_size),
                "tied": loaded.lm_head.weight is loaded.get_input_embeddings().weight,
            }
        )
    assert answers[1] == answers[0]


def test_a_model_without_a_table_says_what_to_define() -> None:
    class Bare(gptrio.PreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.scale = nn.Linear(2, 2)
            self.post_init()

    model = Bare(gptrio.PretrainedConfig())
    assert model.get_output_embeddings() is None and model.base_model is model
    with pytest.raises(UnsupportedError, match="define get_input_embeddings and set_input_embeddings"):
        model.get_input_embeddings()


# extra state --------------------------------------------------------------------------------------------------------


class Counter(nn.Module):
    """Counts calls, and saves the count beside the weights."""

    def __init__(self, state: Any = None) -> None:
        super().__init__()
        self.state = torch.zeros(1) if state is None else state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("state", [torch.tensor([5.0]), torch.arange(4), torch.rand(2, 2).double(), torch.tensor(True)])
@pytest.mark.parametrize("safe", [True, False])
def test_extra_state_is_saved_and_loaded(family: str, state: Tensor, safe: bool, tmp_path: Path) -> None:
    for library in LIBRARIES:
        base: Any = getattr(library, CAUSAL[family])

        class Counting(base):
            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.counter = Counter()
                self.post_init()

        model = Counting(base.config_class(**SIZES[family]))
        model.counter.state = state
        folder = tmp_path / library.__name__
        model.save_pretrained(folder, safe_serialization=safe)
        loaded, report = Counting.from_pretrained(folder, output_loading_info=True)
        assert set(map(tuple, report.values())) == {()}
        assert torch.equal(loaded.counter.state.to(state.dtype), state)
        if library is gptrio:
            assert loaded.counter.state.dtype == state.dtype


@pytest.mark.parametrize("safe", [True, False])
def test_extra_state_that_is_no_tensor_is_refused(safe: bool, tmp_path: Path) -> None:
    model = gptrio.GPT2Model(gptrio.GPT2Config(**SIZES["GPT2"]))
    model.counter = Counter({"count": 3})
    with pytest.raises(CheckpointError, match=r"counter\._extra_state is a dict; .*return one"):
        model.save_pretrained(tmp_path, safe_serialization=safe)
    assert not list(tmp_path.glob("*model*"))


# what a constructor makes and takes ---------------------------------------------------------------------------------


def weighted_class(library: Any, family: str) -> Any:
    """A causal model that makes tensors of several kinds in its constructor, and takes named arguments there."""
    base: Any = getattr(library, CAUSAL[family])

    class Weighted(base):
        def __init__(self, config: Any, power: int = 1, *, scale: float = 1.0) -> None:
            super().__init__(config)
            self.power, self.scale = power, scale
            self.loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, scale]))
            self.norm = nn.BatchNorm1d(3, affine=False)
            self.register_buffer("counts", torch.arange(3))
            self.register_buffer("window", torch.tril(torch.ones(3, 3)), persistent=False)
            self.plain = torch.linspace(0, 1, 3)
            self.rates = [float(rate) for rate in torch.linspace(0, 0.5, 3)]
            self.new = nn.Linear(2, 2)
            self.post_init()

    Weighted.__qualname__ = "Weighted"
    return Weighted


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("options", [{}, {"device_map": {"": "cpu"}}, {"dtype": torch.bfloat16}])
def test_tensors_that_a_constructor_makes_keep_their_values(family: str, options: Any, tmp_path: Path) -> None:
    base: Any = getattr(transformers, CAUSAL[family])
    base(base.config_class(**SIZES[family])).save_pretrained(tmp_path)
    found = []
    for library in LIBRARIES:
        model_class = weighted_class(library, family)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of new weights
            model, report = model_class.from_pretrained(tmp_path, output_loading_info=True, scale=3.0, **options)
            model.save_pretrained(tmp_path / library.__name__)
            again = model_class.from_pretrained(tmp_path / library.__name__, 2, **options)
        own = ("loss.weight", "norm.running_var", "norm.num_batches_tracked", "counts", "window")
        for one in (model, again):
            tensors = {**dict(one.named_buffers()), "plain": one.plain}
            found.append([(name, tensors[name].dtype, tensors[name].tolist()) for name in (*own, "plain")])
            found.append([one.power, one.scale, one.rates, next(one.new.parameters()).dtype])
        found.append(report["missing_keys"])
    assert found[5:] == found[:5]


def test_an_argument_that_the_constructor_does_not_take_is_named(tmp_path: Path) -> None:
    model_class = weighted_class(gptrio, "GPT2")
    model_class(gptrio.GPT2Config(**SIZES["GPT2"])).save_pretrained(tmp_path)
    assert model_class.from_pretrained(tmp_path, power=3, config=gptrio.GPT2Config(**SIZES["GPT2"])).power == 3
    with pytest.raises(OptionError, match="does not know powr;"):
        model_class.from_pretrained(tmp_path, powr=3, scale=2.0)


@pytest.mark.parametrize("family", SIZES)
def test_a_forward_of_any_arguments_takes_a_mask_in_generate(family: str) -> None:
    ids, found = token_ids(2, 7), []
    for model in model_pair(CAUSAL[family]):
        base: Any = type(model)

        class Negated(base):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                out = super().forward(*args, **kwargs)
                out.logits = -out.logits
                return out

        model.__class__ = Negated
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        found.append(model.generate(ids, attention_mask=torch.ones_like(ids), **options))
        with pytest.raises(ValueError, match="bias"):
            model.generate(ids, bias=1, **options)
    assert torch.equal(*found)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}])
@pytest.mark.parametrize("family", SIZES)
def test_what_a_subclass_hands_to_the_next_step_arrives(family: str, options: dict[str, Any]) -> None:
    ids, found = token_ids(2, 7), []
    for model in model_pair(CAUSAL[family]):
        base: Any = type(model)

        class Counting(base):
            def forward(self, input_ids: Any = None, step: int = 0, **kwargs: Any) -> Any:
                out = super().forward(input_ids, **kwargs)
                out.logits = out.logits.roll(step, -1)
                return out

            def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: Any, **kwargs: Any) -> Any:
                updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
                return {**updated, "step": updated.get("step", 0) + 1}

        model.__class__ = Counting
        given = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
        found.append(model.generate(ids, **given))
        del Counting._update_model_kwargs_for_generation
        assert not torch.equal(model.generate(ids, **given), found[-1])
    assert torch.equal(*found)
