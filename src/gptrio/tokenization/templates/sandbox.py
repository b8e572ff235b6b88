"""Jinja2's immutable sandbox for chat templates, with the reference's extensions and limits on output and work.

A chat template is code from a checkpoint. The sandbox keeps it from Python's internals; the limits of `limits` keep
it from using up time or memory: every loop, call, filter, test, operator and display of a list is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_eval_context
from jinja2.visitor import NodeTransformer

from gptrio.tokenization.templates import functions
from gptrio.tokenization.templates.growth import reserve_method, reserve_operator
from gptrio.tokenization.templates.limits import rendering

_TAGS = {"generation"}


class GenerationTag(Extension):
    """`{% generation %}` ... `{% endgeneration %}` around what the assistant says: notes where in the text it is."""

    tags = _TAGS

    def parse(self, parser: Parser) -> nodes.Node:
        """Make a call around the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        text, current = caller(), rendering()
        current.spans.append((current.length, current.length + len(text)))
        return text


class _CountedNodes(NodeTransformer):
    """Puts calls that count into a parsed template, where jinja2 has no hook."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Count each iteration, also of the loop's condition."""
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call(node, "step"), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_call(node, "step"), node.test)
        return node

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:
        """Count each comparison of a chain."""
        self.generic_visit(node)
        node.expr = nodes.And(_call(node, "step"), node.expr)  # the value of the second: the first one is True
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        """Count each key of a dictionary, which has to be hashed."""
        self.generic_visit(node)
        node.key = nodes.And(_call(node, "step"), node.key)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Count the text that `~` makes."""
        self.generic_visit(node)
        return _call(node, "join_texts", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Count what a slice copies."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _call(node, "cut", node.node, *(bound or nodes.Const(None) for bound in bounds))

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        """Count the items of a list or a dictionary."""
        self.generic_visit(node)
        return _call(node, "made", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """Count the items of a tuple that is not a target of an assignment."""
        self.generic_visit(node)
        return _call(node, "made", node) if node.ctx == "load" else node


def _call(at: nodes.Node, method: str, *args: nodes.Expr) -> nodes.Call:
    """Make a call of the environment's method, on the line of a node."""
    call = nodes.Call(nodes.EnvironmentAttribute(method), list(args), [], None, None)
    call.set_lineno(at.lineno)
    return call


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment that compiles chat templates; a compiled one runs while a `Rendering` has been started."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            optimized=False,  # compiling computes nothing
            finalize=functions.count_output,
        )
        filters = {**self.filters, "sum": functions.sum_items, "tojson": functions.to_json}
        self.filters = {name: functions.counted_filter(name, function) for name, function in filters.items()}
        self.tests = {name: functions.counted_test(function) for name, function in self.tests.items()}
        self.globals |= {
            "lipsum": functions.lorem_ipsum,
            "namespace": functions.QuietNamespace,
            "raise_exception": functions.raise_exception,
            "strftime_now": functions.strftime_now,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        counted = _CountedNodes().visit(source)
        counted.set_environment(self)
        return super()._generate(counted, *args, **kwargs)

    # What compiled templates call

    def step(self) -> bool:
        """Return True; see `Rendering.step`."""
        return rendering().step()

    def made(self, value: Any) -> Any:
        """Return the value; see `Rendering.made`."""
        return rendering().made(value)

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Return a slice of a value."""
        part = value[start:stop:step]
        rendering().reserve(len(part))
        return part

    @pass_eval_context
    def join_texts(self, context: EvalContext, *values: Any) -> str:
        """Return the values as one text."""
        texts = []
        for value in values:
            texts.append(value if isinstance(value, str) else str(value))
            rendering().reserve(len(texts[-1]))
        return markup_join(texts) if context.autoescape else str_join(texts)

    def concat(self, parts: Iterable[str]) -> str:
        """Join the parts of a block's text."""
        texts = []
        for part in parts:
            rendering().reserve(len(part))
            texts.append(part)
        return "".join(texts)

    # Hooks of the sandbox

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls (jinja2 names the first parameters otherwise)."""
        current = rendering()
        args = tuple(map(current.counted, args))
        if isinstance(function, (BuiltinMethodType, MethodType)):
            if function.__name__ == "join":
                args = tuple(map(functions.sized, args))
            given = {name: value for name, value in kwargs.items() if not name.startswith("_")}  # not jinja2's own
            reserve_method(function.__name__, function.__self__, *args, **given)
        with current.inside_call():
            return current.made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what a binary operator gives."""
        current = rendering()
        current.step()
        reserve_operator(operator, left, right)
        return current.made(self.binop_table[operator](left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item; filters look attributes up by this too."""
        rendering().step()
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a safe `str.format` or `str.format_map` in place of the real one, None for anything else."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text, formatter = value.__self__, functions.CountedFormatter(self)

        def format_counted(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (kwargs,), args = args, ()
            return formatter.vformat(text, args, kwargs)

        return format_counted
