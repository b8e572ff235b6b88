"""Templates that attack the machine that renders them get an error, soon and within little memory."""

from __future__ import annotations

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import jinja2
import pytest

from gptrio.errors import ChatTemplateError
from gptrio.tokenization.templates import limits
from gptrio.tokenization.templates.limits import MOST_PARTS
from gptrio.tokenization.templates.render import render
from tests.cases import first

MESSAGES = [{"role": "user", "content": "hi"}]
MB = 1 << 20

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ ''['__class__'].__mro__ }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{x.__class__.__mro__}'.format_map({'x': 1}) }}",
    "{{ ('{0.__class__.__mro__}'|attr('format'))(1) }}",
    "{{ messages|map(attribute='__class__.__mro__')|list|string ~ messages.__class__.x }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__.json }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
]

LOOPS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if i in (range(99999)|list) and false %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(30) }}",
    "{% for x in range(5) recursive %}{{ loop(range(90000)) if loop.depth < 5 }}{% endfor %}",
    "{{ range(99999)|select('in', range(99999)|list)|list|length }}",
    "{{ ([[1]] * 1000000)|sum(start=[])|length }}",
    "{% set b = 'x' * 2000000 %}{% set c = b ~ '' %}{% for i in range(99999) %}{% if b == c %}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{{ i|string|sort|list|length }}{% endfor %}",
    "{% set x = [1] * 2000000 %}{% set y = x[:] %}{{ x " + "== y " * 3000 + "}}",
    "{% set x = (1,) * 2000000 %}{{ {" + "x: 1, " * 3000 + "}|length }}",
]

TOO_LARGE = [
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** 10 * 'x' }}",
    "{{ [0] * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set ns = namespace(n=2) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1.5 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(a(b))1000000000d' % {'a(b)': 1} }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ ('%(x)s' * 1000) % {'x': 'y' * 1000000} }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "{{ ('{:>1000000000}'|escape).format(1) }}",
    "{{ 'x'|center(10 ** 9) }}",
    "{% filter center(1000000000) %}x{% endfilter %}",
    "{{ 'x'.ljust(10 ** 9) }}",
    "{{ 'x'.zfill(10 ** 9) }}",
    "{{ ('a\n' * 1000)|indent(10 ** 9) }}",
    "{{ [1]|batch(10 ** 9, 1)|list }}",
    "{{ [1]|slice(10 ** 9)|list }}",
    "{{ lipsum(10 ** 6) }}",
    "{{ ('x' * 1000).replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 1000)|replace('', 'y' * 1000000) }}",
    "{{ ('y' * 1000000).join(['x'] * 1000) }}",
    "{{ ('y' * 1000000).join(range(9999)|map('string')) }}",
    "{{ (['x'] * 1000)|join('y' * 1000000) }}",
    "{{ range(9999)|map('string')|join('y' * 100000) }}",
    "{{ ('y' * 1000000).join('x' * 1000000) }}",
    "{{ ('x' * 1000000)|join('y' * 1000000) }}",
    "{{ range(9999)|list|reverse|join('y' * 100000) }}",
    "{% set ns = namespace(a='x' * 1000000) %}{{ ([ns] * 5000)|join(attribute='a') }}",
    "{% set c = cycler('x' * 1000000) %}{{ ([c] * 5000)|join(',', 'current') }}",
    "{% set c = cycler('x' * 1000000) %}{{ ([c] * 5000)|sort(attribute='current')|length }}",
    "{% set c = cycler('x' * 1000000) %}{{ ([c] * 5000)|groupby('current')|length }}",
    "{% set x = [1] * 100000 %}{{ x " + "~ x " * 3000 + "}}",
    "{{ ('a.com ' * 600)|urlize(rel='x' * 1000000) }}",
    "{{ range(99999)|map('center', 99999)|list }}",
    "{{ (5).to_bytes(10 ** 10) }}",
    "{{ 5|round(-1000000000) }}",
    "{{ 5.5|round(1000000000, 'ceil') }}",
    "{{ 'a\tb'.expandtabs(10 ** 9) }}",
    "{{ 'aaaa'.translate({97: 'x' * 2000000}) }}",
    "{{ messages|tojson(indent=10 ** 9) }}",
    "{{ ([1] * 40000)|tojson(separators=('x' * 4000, 'y')) }}",
    "{{ strftime_now('%Y' * 1000000) }}",
    "{{ ('x ' * 1000)|wordwrap(1, true, 'y' * 1000000) }}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=(1,)) %}{% for i in range(99) %}{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ {ns.s: 1} }}",
    "{% set ns = namespace(s=1) %}{% for i in range(99) %}{% set ns.s = {1: ns.s, 2: ns.s} %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=1) %}{% for i in range(99) %}{% set ns.s = dict(a=ns.s, b=ns.s) %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[]) %}{% set b = 'x' * 2000000 %}"
    "{% for i in range(99) %}{% set ns.s = ns.s + [b[:-1]] %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = 'x' * 2000000 %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endset %}",
    "{% macro m() %}{% for i in range(2000) %}" + "x" * 10000 + "{% endfor %}{% endmacro %}{{ m() }}",
    "{% for i in range(99999) %}" + "x" * 20000 + "{% endfor %}",
]

QUADRATIC = [  # the work grows with the square of what they are given
    "{{ ('a' * 2000000).rfind('b' ~ 'a' * 1000000) }}",
    "{{ ('a' * 2000000).strip('b' * 3000000 ~ 'a') }}",
    "{{ ('a' * 2000000)|trim('b' * 2000000 ~ 'a') }}",
    "{{ (('<a>' * 600000)|safe).striptags() }}",
    "{{ ('a' * 400000).encode('punycode') }}",
    "{{ ('x' * 2000000)|pprint }}",
    "{{ ('<a>' * 1000000)|striptags }}",
    "{{ ('http://a.bc ' * 300000)|urlize }}",
]

TOO_DEEP = [
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "{% if a %}" * 2000 + "{% endif %}" * 2000,
    "{% for a in b %}" * 100 + "{% endfor %}" * 100,
    "{{ " + "9" * 20000 + " }}",
    "{{ a }}" * 10000,
    "{% for i in range(10 ** 9) %}x{% endfor %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_cannot_reach_what_it_was_not_given(template):
    with pytest.raises(ChatTemplateError, match=r"unsafe|undefined|no loader|no attribute"):
        render(template, {"messages": MESSAGES})


@pytest.mark.parametrize("template", first(LOOPS, 4))
def test_endless_work_ends_after_about_a_second(template):
    start = time.thread_time()
    with pytest.raises(ChatTemplateError, match="has not finished after 1 second of work"):
        render(template, {"messages": MESSAGES})
    assert time.thread_time() - start < 10  # a second and what one filter takes, on any machine


@pytest.mark.parametrize("template", [*first(TOO_LARGE, 16), *first(QUADRATIC, 4)])
def test_a_large_value_is_refused_before_it_is_made(template):
    tracemalloc.start()
    try:
        with pytest.raises(ChatTemplateError, match=r"fails.*: (it makes values that are too large|filter|encoding)"):
            render(template.replace("\n", r"\n"), {"messages": MESSAGES})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * MB


@pytest.mark.parametrize("template", TOO_DEEP)
def test_what_python_cannot_compile_or_call_is_an_error_of_the_template(template):
    with pytest.raises(ChatTemplateError, match="chat template"):
        render(template, {"messages": MESSAGES})


def test_errors_are_also_those_of_jinja2_and_name_the_line():
    with pytest.raises(jinja2.TemplateError, match=r"in line 2: UndefinedError: 'nothing' is undefined"):
        render("\n{{ nothing.at.all }}", {})
    with pytest.raises(jinja2.TemplateError, match=r"in line 2: TemplateSyntaxError"):
        render("\n{% if %}", {})
    with pytest.raises(jinja2.TemplateError, match=r"^no system messages$"):
        render("{{ raise_exception('no system messages') }}", {})


def count_time(monkeypatch, ticks: int) -> None:
    """Let time pass by the number of looks at the clock, so many in a second, whatever the machine."""
    looks = count()
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(limits, name, lambda: next(looks) / ticks)


FOR_EACH_ALL = "{% for m in messages %}{% for other in messages %}{% endfor %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(("number", "seconds"), [(1, 1), (30, 2), (200, 7), (1000, 31), (10_000, 61)])
def test_a_template_may_take_longer_for_a_longer_conversation(monkeypatch, number, seconds):
    count_time(monkeypatch, 500)
    forever = LOOPS[0].replace("99999", "9999")
    messages = [{"role": "user", "content": "hi"}] * number
    with pytest.raises(ChatTemplateError, match=f"has not finished after {seconds} seconds? of work"):
        render(forever, {"messages": messages})


@pytest.mark.parametrize("number", [10, 100, 200])
def test_work_that_grows_with_the_square_of_a_conversation_may_end(monkeypatch, number):
    count_time(monkeypatch, 20_000)
    messages = [{"role": "user", "content": "hi"}] * number
    assert "".join(render(FOR_EACH_ALL, {"messages": messages}).blocks) == "hi" * number


def test_values_that_hold_themselves_do_not_count_for_ever():
    inside: list[object] = []
    inside.append(inside)
    assert limits.Rendering({"messages": inside})._most_seconds == 61


def test_a_long_conversation_is_within_the_limits():
    loop = "{% for m in messages %}{% set seen = messages[:loop.index] %}"
    template = loop + "{{ m.role ~ ': ' ~ m.content|trim + '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": f"message {i} " * 20} for i in range(2000)]
    text = "".join(render(template, {"messages": messages}).blocks)
    assert text == "".join(f"user: {message['content'].strip()}\n" for message in messages)
    assert len(text) < MOST_PARTS


def test_a_rendering_does_not_use_up_what_the_next_one_may_do():
    template = "{% for i in range(30000) %}{{ 'x' * 50 }}{% endfor %}"
    assert {len("".join(render(template, {}).blocks)) for _ in range(6)} == {30000 * 50}


def test_renderings_in_several_threads_do_not_meet():
    template = (
        "{% for m in messages %}{{ m.content }}{% generation %}{{ m.content * 2 }}{% endgeneration %}{% endfor %}"
    )

    def spans(size):
        return render(template, {"messages": [{"content": "x" * size}] * 200}).spans

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(spans, range(1, 9)))
    assert results == [[(3 * n * i + n, 3 * n * (i + 1)) for i in range(200)] for n in range(1, 9)]


def test_a_namespace_that_holds_itself_has_a_text():
    template = "{% set ns = namespace() %}{% set ns.a = [ns, ns] %}{{ ns.a }}"
    assert "".join(render(template, {}).blocks) == "[<Namespace>, <Namespace>]"
