"""`HfArgumentParser` beside the reference's, on the kinds of fields that its own tests have."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Union  # the older forms are what is tested

import pytest
import transformers
from transformers.hf_argparser import HfArg as ReferenceArg

from gptrio import FileOptionError, HfArgumentParser, OptionError, TrainingArguments
from gptrio.training.arguments_parser import HfArg, string_to_bool

Reference = transformers.HfArgumentParser


def of(default):
    return field(default_factory=lambda: default)


@dataclass
class Basic:
    foo: int
    bar: float
    baz: str
    flag: bool


@dataclass
class WithDefault:
    foo: int = 42
    baz: str = field(default="toto", metadata={"help": "help message"})


@dataclass
class WithBoolean:
    foo: bool = False
    baz: bool = True
    opt: bool | None = None


class Plain(Enum):
    titi = "titi"
    toto = "toto"


class Mixed(Enum):
    titi = "titi"
    toto = "toto"
    fourtytwo = 42


@dataclass
class WithEnum:
    foo: Plain = "toto"

    def __post_init__(self):
        self.foo = Plain(self.foo)


@dataclass
class WithMixedEnum:
    foo: Mixed = "toto"

    def __post_init__(self):
        self.foo = Mixed(self.foo)


@dataclass
class WithLiteral:
    foo: Literal["titi", "toto", 42] = "toto"


@dataclass
class WithOptional:
    foo: int | None = None
    bar: float | None = field(default=None, metadata={"help": "help message"})
    baz: str | None = None
    ces: list[str] | None = of([])
    des: list[int] | None = of([])


@dataclass
class WithOptionalOfNow:
    foo: int | None = None
    bar: float | None = None
    ces: list[str] | None = None
    flag: bool | None = True
    either: int | str = 3


@dataclass
class WithLists:
    foo_int: list[int] = of([])
    bar_int: list[int] = of([1, 2, 3])
    foo_str: list[str] = of(["Hallo", "Bonjour", "Hello"])
    foo_float: list[float] = of([0.1, 0.2, 0.3])


@dataclass
class WithRequired:
    required_list: list[int] = field()
    required_str: str = field()
    required_enum: Plain = field()

    def __post_init__(self):
        self.required_enum = Plain(self.required_enum)


@dataclass
class WithGroup:
    _argument_group_name = "a group"
    group_option: int = 1


CASES = [
    (Basic, "--foo 1 --baz quux --bar 0.5"),
    (Basic, "--foo 1 --baz quux --bar 0.5 --flag"),
    (Basic, "--foo 1 --baz quux --bar 0.5 --flag no"),
    (WithDefault, ""),
    (WithDefault, "--foo 12"),
    (WithBoolean, ""),
    (WithBoolean, "--foo --no_baz"),
    (WithBoolean, "--foo --no-baz"),
    (WithBoolean, "--foo --baz"),
    (WithBoolean, "--foo True --baz True --opt True"),
    (WithBoolean, "--foo False --baz False --opt False"),
    (WithEnum, ""),
    (WithEnum, "--foo titi"),
    (WithMixedEnum, ""),
    (WithMixedEnum, "--foo 42"),
    (WithLiteral, ""),
    (WithLiteral, "--foo titi"),
    (WithLiteral, "--foo 42"),
    (WithOptional, ""),
    (WithOptional, "--foo 12 --bar 3.14 --baz 42 --ces a b c --des 1 2 3"),
    (WithOptionalOfNow, ""),
    (WithOptionalOfNow, "--foo 12 --bar 3.14 --ces a b --no_flag --either 4"),
    (WithLists, ""),
    (WithLists, "--foo_int 1 --bar-int 2 3 --foo_str a b c --foo_float 0.1 0.7"),
    (WithRequired, "--required_list 1 2 --required_str word --required_enum toto"),
    (WithGroup, "--group_option 3"),
]


@pytest.mark.parametrize(("kind", "words"), CASES)
def test_command_lines_give_the_references_objects(kind, words):
    (ours,) = HfArgumentParser(kind).parse_args_into_dataclasses(words.split(), look_for_args_file=False)
    (expected,) = Reference(kind).parse_args_into_dataclasses(words.split(), look_for_args_file=False)
    assert ours == expected
    assert [type(value) for value in vars(ours).values()] == [type(value) for value in vars(expected).values()]


@pytest.mark.parametrize("kind", list(dict.fromkeys(kind for kind, _ in CASES)))
def test_options_and_their_help_are_the_references(kind):
    def actions(parser):
        names = ("option_strings", "dest", "nargs", "const", "default", "required", "help", "metavar")
        return [[*(getattr(action, name) for name in names), list(action.choices or ())] for action in parser._actions]

    assert actions(HfArgumentParser(kind, prog="p")) == actions(Reference(kind, prog="p"))
    assert HfArgumentParser(kind, prog="p").format_help() == Reference(kind, prog="p").format_help()


@pytest.mark.parametrize(
    "words", ["--foo 1 --bar 0.5 --baz", "--foo x --bar 1 --baz b", "--foo 1", "--foo 1 --bar 1 --baz b --flag perhaps"]
)
def test_wrong_words_end_the_program(words, capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(Basic).parse_args_into_dataclasses(words.split(), look_for_args_file=False)
    assert "usage:" in capsys.readouterr().err


def test_choices_are_checked(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(WithLiteral).parse_args_into_dataclasses(["--foo", "43"], look_for_args_file=False)
    assert "invalid choice: '43'" in capsys.readouterr().err


WORDS = """--output_dir out --learning_rate 1e-4 --eval-strategy steps --bf16 --use_cpu --no_dataloader_pin_memory
--lr_scheduler_kwargs {"num_cycles":2} --include_for_metrics inputs loss --label_names labels --seed 3 --optim sgd
--no_save_safetensors --remove_unused_columns False --logging_dir logs --fsdp_config {}"""


def test_training_arguments_are_options_of_a_command_line(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # the reference sets it
    (ours,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(WORDS.split())
    (expected,) = Reference(transformers.TrainingArguments).parse_args_into_dataclasses(WORDS.split())
    assert ours.to_dict() == expected.to_dict()


def test_earlier_names_of_arguments_are_read_everywhere(tmp_path):
    parser = HfArgumentParser(TrainingArguments)
    given = {"output_dir": "out", "evaluation_strategy": "epoch"}
    (tmp_path / "args.json").write_text(json.dumps(given))
    for read in (
        lambda: parser.parse_args_into_dataclasses(["--output_dir", "out", "--evaluation_strategy", "epoch"]),
        lambda: parser.parse_dict(given),
        lambda: parser.parse_json_file(tmp_path / "args.json"),
    ):
        with pytest.warns(DeprecationWarning, match="evaluation_strategy is deprecated; use eval_strategy"):
            (args,) = read()
        assert args.eval_strategy == "epoch"


def test_several_dataclasses_and_further_options_share_a_command_line():
    def parsed(kind):
        parser = kind((Basic, WithGroup), description="two")
        parser.add_argument("--extra", type=int, default=0)
        words = ["--foo", "1", "--bar", "2", "--baz", "b", "--group_option", "7", "--extra", "5", "--unknown", "3"]
        *objects, namespace, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
        return objects, vars(namespace), rest

    assert parsed(HfArgumentParser) == parsed(Reference)
    assert parsed(HfArgumentParser)[1:] == ({"extra": 5}, ["--unknown", "3"])


def test_words_that_no_option_takes_are_an_error_with_the_nearest_option():
    with pytest.raises(OptionError, match=r"no option takes --fo0 3; did you mean '--foo'\?"):
        HfArgumentParser(WithDefault).parse_args_into_dataclasses(["--fo0", "3"], look_for_args_file=False)


def test_files_of_words_come_before_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "script.args").write_text("--foo 1 --baz script")
    (tmp_path / "one.args").write_text("--foo 2 --baz one")
    (tmp_path / "two.args").write_text("--baz two")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py"), "--foo", "9"])
    flags = ["--files", str(tmp_path / "one.args"), "--files", str(tmp_path / "two.args")]
    for arguments in (
        {},
        {"look_for_args_file": False},
        {"args": ["--baz", "word"]},
        {"args_filename": str(tmp_path / "one.args")},
        {"args_filename": str(tmp_path / "absent.args")},
        {"args": flags, "args_file_flag": "--files"},
        {"args": [*flags, "--foo", "5"], "args_file_flag": "--files"},
    ):
        ours = HfArgumentParser(WithDefault).parse_args_into_dataclasses(**arguments)
        assert ours == Reference(WithDefault).parse_args_into_dataclasses(**arguments), arguments


def test_dictionaries_and_files_give_objects(tmp_path):
    values = {"foo": 1, "bar": 0.5, "baz": "b", "flag": True, "group_option": 4}
    (tmp_path / "args.json").write_text(json.dumps(values))
    (tmp_path / "args.yaml").write_text("foo: 1\nbar: 0.5\nbaz: b\nflag: true\ngroup_option: 4\n")
    ours, expected = HfArgumentParser([Basic, WithGroup]), Reference([Basic, WithGroup])
    assert ours.parse_dict(values) == expected.parse_dict(values)
    assert ours.parse_json_file(tmp_path / "args.json") == expected.parse_dict(values)
    assert ours.parse_yaml_file(tmp_path / "args.yaml") == expected.parse_dict(values)
    assert ours.parse_dict({**values, "extra": 1}, allow_extra_keys=True) == expected.parse_dict(values)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    (tmp_path / "args.yaml").write_text("output_dir: out\nlearning_rate: 5e-4\nmax_steps: '20'\n")
    (args,) = HfArgumentParser(TrainingArguments).parse_yaml_file(tmp_path / "args.yaml")
    assert (args.learning_rate, args.max_steps) == (5e-4, 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"foo": 1, "bazz": 2}', r"no field is named 'bazz'; did you mean 'baz'\?"),
        ("[1]", "holds a list; expected values by name"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_files_are_errors_that_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "args.json"
    path.write_text(text)
    for read in (HfArgumentParser(WithDefault).parse_json_file, HfArgumentParser(WithDefault).parse_yaml_file):
        with pytest.raises(OptionError, match=message):
            read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileOptionError, match=r"no file .*absent\.json"):
        HfArgumentParser(WithDefault).parse_json_file(tmp_path / "absent.json")


def test_unions_of_two_types_are_refused():
    wrong = dataclasses.make_dataclass("Wrong", [("foo", Union[int, float], 1)])  # noqa: UP007 - the form is tested
    with pytest.raises(OptionError, match="field 'foo' may have several types"):
        HfArgumentParser(wrong)


def test_fields_are_declared_with_aliases_and_help():
    def parsed(declare, kind):
        made = dataclasses.make_dataclass(
            "Made", [("number", int, declare(default=1, aliases=["-n"], help="How many."))]
        )
        parser = kind(made, prog="p")
        return vars(parser.parse_args_into_dataclasses(["-n", "3"])[0]), parser.format_help()

    assert parsed(HfArg, HfArgumentParser) == parsed(ReferenceArg, Reference)
    assert parsed(HfArg, HfArgumentParser)[0] == {"number": 3}


def test_words_for_true_and_false_are_the_references():
    for word in ("yes", "True", "T", "y", "1", "no", "FALSE", "f", "n", "0", True, False):
        assert string_to_bool(word) == transformers.hf_argparser.string_to_bool(word)


def test_our_arguments_work_in_the_references_parser():
    (args,) = Reference(TrainingArguments).parse_args_into_dataclasses(["--output_dir", "out", "--max_steps", "3"])
    assert (args.max_steps, type(args)) == (3, TrainingArguments)
