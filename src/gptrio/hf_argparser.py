"""What scripts import from `transformers.hf_argparser`: the parser of dataclasses."""

from gptrio.training.arguments_parser import HfArg as HfArg
from gptrio.training.arguments_parser import HfArgumentParser as HfArgumentParser
from gptrio.training.arguments_parser import make_choice_type_function as make_choice_type_function
from gptrio.training.arguments_parser import string_to_bool as string_to_bool
