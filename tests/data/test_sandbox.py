"""A template makes nothing huge, whatever it does, and all that prompts need works as ever."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from mtlcore.data.example import RowError
from mtlcore.data.template import RowTemplate
from mtlcore.errors import UserError
from tests.helpers import small_tokenizer

TOKENIZER = small_tokenizer()
ROW: dict[str, Any] = {
    "text": "  a quick Fox\n",
    "n": 12345678,
    "x": 2.567,
    "words": ["b", "a", "B"],
    "turns": [{"role": "user", "text": "hi"}, {"role": "bot", "text": "<yo>"}],
    "null": None,
    "data": b"%*d",
}
ORDINARY = [
    ("{{ text | trim }}|{{ text.strip() }}", "a quick Fox|a quick Fox"),
    ("{{ text | replace('a', 'the') | upper | trim }}", "THE QUICK FOX"),
    ("{{ text.replace('q', 'Q', 1).strip().lower() }}", "a quick fox"),
    ("{{ 'aaa' | replace('a', 'b', 2) }}{{ 'ab' | replace('', '-') }}", "bba-a-b-"),
    ("{{ text | title | trim }} {{ text.split() | length }}", "A Quick Fox 3"),
    (
        "{{ words | join(', ') }} {{ ', '.join(words) }} {{ 'abc' | join('-') }}",
        "b, a, B b, a, B a-b-c",
    ),
    ("{{ words | map('upper') | join }} {{ ' '.join(words | map('lower')) }}", "BAB b a b"),
    ("{{ turns | map(attribute='text') | join(' ') }}", "hi <yo>"),
    ("{{ turns | join('/', attribute='role') }}", "user/bot"),
    ("{{ words | sort }} {{ words | unique | list }}", "['a', 'b', 'B'] ['b', 'a']"),
    ("{{ words | first }}{{ words | last }}{{ words | reverse | list }}", "bB['B', 'a', 'b']"),
    (
        "{{ [3, 1, 2] | sort(reverse=true) }}{{ [1, 2] | sum }}{{ [[1], [2]] | sum(start=[]) }}",
        "[3, 2, 1]3[1, 2]",
    ),
    (
        "{{ words | select('eq', 'a') | list }}{{ words | reject('eq', 'a') | list }}",
        "['a']['b', 'B']",
    ),
    ("{{ turns | selectattr('role', 'eq', 'bot') | map(attribute='text') | list }}", "['<yo>']"),
    ("{{ turns | groupby('role') | map('first') | join(',') }}", "bot,user"),
    ("{{ {'b': 1, 'a': 2} | dictsort }}", "[('a', 2), ('b', 1)]"),
    (
        "{{ words | batch(2, '-') | list }}{{ words | slice(2) | list }}",
        "[['b', 'a'], ['B', '-']][['b', 'a'], ['B']]",
    ),
    ("{{ x | round(1) }} {{ x | int }} {{ '7' | float }} {{ 7.5 | round | int }}", "2.6 2 7.0 8"),
    ("{{ '%d %s %.1f' % (n, 'a', x) }} {{ '%05d' | format(42) }}", "12345678 a 2.6 00042"),
    (
        "{{ '%d' | format(n) }} {{ '%(a)s' % {'a': n} }} {{ '%(a)s' | format(a=1) }}",
        "12345678 12345678 1",
    ),
    ("{{ '{:,}'.format(n) }} {{ '{:>5}|{a!r}'.format('x', a='b') }}", "12,345,678     x|'b'"),
    ("{{ '{a}{b[0]}'.format_map({'a': 1, 'b': [2]}) }}{{ '{:{w}}|'.format(1, w=3) }}", "12  1|"),
    (
        "{{ turns | tojson }}",
        '[{"role": "user", "text": "hi"}, {"role": "bot", "text": "\\u003cyo\\u003e"}]',
    ),
    ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
    ("{{ null | default('-', true) }}{{ nosuch | default(n) }}", "-12345678"),
    ("{{ words | default([]) | length }}{{ nosuch | default([]) | length }}", "30"),
    (
        "{{ turns[0].get('n', 5000000) }}{{ turns[0].items() | list }}",
        "5000000[('role', 'user'), ('text', 'hi')]",
    ),
    (
        "{% for t in turns %}{{ loop.index }}/{{ loop.length }}{{ t.role }}{% endfor %}",
        "1/2user2/2bot",
    ),
    ("{% for w in words %}{{ w }}{{ ', ' if not loop.last }}{% endfor %}", "b, a, B"),
    ("{% for w in words if w != 'a' %}{{ w }}{{ loop.length }}{% else %}none{% endfor %}", "b2B2"),
    ("{% for w in words | map('upper') %}{{ loop.revindex }}{{ w }}{% endfor %}", "3B2A1B"),
    ("{% for k, v in {'a': 1}.items() %}{{ k ~ '=' ~ v }}{% endfor %}", "a=1"),
    ("{% for _ in [] %}{% else %}-{% endfor %}", "-"),
    ("{% for i in [[1, [2]]] recursive %}{{ i if i is integer else loop(i) }}{% endfor %}", "12"),
    (
        "{% set ns = namespace(s='', l=[]) %}{% for w in words %}"
        "{% set ns.s = ns.s + w %}{% set ns.l = ns.l + [w] %}{% endfor %}{{ ns.s }}{{ ns.l }}",
        "baB['b', 'a', 'B']",
    ),
    (
        "{% macro m(a, b='!') %}<{{ a }}{{ b }}>{% endmacro %}{{ m(n) }}{{ m('x', b='?') }}",
        "<12345678!><x?>",
    ),
    ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}", "[x]"),
    (
        "{% set s %}a{{ n }}{% endset %}{{ s | length }}{% filter upper %}b{{ s }}{% endfilter %}",
        "9BA12345678",
    ),
    ("{% block b %}x{% endblock %}{{ self.b() }}", "xx"),
    ("{{ words[1:] + ['c'] * 2 }}{{ text[2:9] }}", "['a', 'B', 'c', 'c']a quick"),
    ("{{ '-' * 3 }}{{ 2 * 3 }}{{ 2 ** 3 }}{{ 7 % 4 }}", "---683"),
    ("{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent('> ', first=true) }}", "a\n  b|> a\n> b"),
    ("{{ 'a b' | wordwrap(1) }}", "a\nb"),
    ("{{ 'a b c' | wordwrap(1, wrapstring='\n> ') }}", "a\n> b\n> c"),
    ("{{ 'abcdefghijklm' | truncate(5, leeway=0) }}", "ab..."),
    (
        "{{ 'x' | center(5) }}{{ 'x'.ljust(3) }}{{ '7'.zfill(3) }}{{ 'a\tb'.expandtabs(2) }}",
        "  x  x  007a b",
    ),
    ("{{ 'a&b' | e }}{{ '<b>x</b>' | striptags }}{{ 'ä b' | urlencode }}", "a&amp;bx%C3%A4%20b"),
    ("{{ 'é'.encode() | length }}", "2"),
    ("{{ ('<{}>' | safe).format('&') }}{{ ('a' | safe).replace('a', '<') }}", "<&amp;>&lt;"),
    (
        "{{ 'a' in words }}{{ text is string }}{{ 'a' is lower }}{{ text.startswith('  a') }}",
        "TrueTrueTrueTrue",
    ),
    ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}", "ab"),
    ("{% set j = joiner() %}{{ j() }}{{ j() }}", ", "),
    (
        "{{ dict(a=1) }}{{ range(3) | list }}{{ [1, 2] | max }}{{ 'abc' | list }}",
        "{'a': 1}[0, 1, 2]2['a', 'b', 'c']",
    ),
]

NS = "{% set ns = namespace(s='a' * 1000000, l=['aaa'], n=3) %}"
DEEP = NS + "{% for i in range(50) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}"
"""A list of 50 lists whose text would have 2 ** 50 words."""
MANY = "{% set many = ['ab' * 400000] * 1000 %}"
"""A thousand times the same text."""
LONG = "{% for i in range(100000) %}{{ 'a' * 1000000 }}{% endfor %}"
STEPS = "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"
HUGE = [
    "{{ ('a' * 1000) | replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000) | replace('a', 'b' * 1000000) | length }}",
    "{{ ('a' * 1000).replace('a', 'b' * 1000000) | length }}",
    "{{ ('a' * 1000000).replace('', 'b' * 1000, 900000) | length }}",
    "{{ (data * 10000).replace(data, data * 10000) | length }}",
    "{{ ('a' * 1000) | join('b' * 1000000) | length }}",
    "{{ ('b' * 1000000).join('a' * 1000) | length }}",
    "{{ ('b' * 1000000).join(('a' * 1000) | map('upper')) | length }}",
    "{{ ('{:999999}' * 1000).format(*range(1000)) | length }}",
    "{{ ('{0}' * 1000).format('b' * 1000000) | length }}",
    "{{ ('{a}' * 1000).format_map({'a': 'b' * 1000000}) | length }}",
    "{{ (('{a}' * 1000) | safe).format(a='b' * 1000000) | length }}",
    "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
    "{{ ('%(a)s' * 1000) % {'a': 'b' * 1000000} }}",
    "{{ ('%(a)s' * 1000) | format(a='b' * 1000000) | length }}",
    "{{ ('%999999d' * 1000) | format(*range(1000)) | length }}",
    "{{ '%*d' % (10 ** 9, 3) }}",
    "{{ data % (10 ** 9, 3) }}",
    "{{ 'a'.center(10 ** 9) }}",
    "{{ 'a'.rjust(10 ** 9, 'b') }}",
    "{{ '7'.zfill(10 ** 9) }}",
    "{{ (1).to_bytes(10 ** 9, 'big') | length }}",
    "{{ ('\t' * 1000).expandtabs(1000000) | length }}",
    "{{ ('a' * 1000).translate({97: 'b' * 1000000}) | length }}",
    "{{ ('é' * 100000).encode('ascii', 'namereplace') | length }}",
    "{{ ('\n' * 100000) | indent(10000) | length }}",
    "{{ ('a ' * 100000) | wordwrap(1, wrapstring='b' * 10000) | length }}",
    "{{ ('a ' * 100000) | wordwrap(1, wrapstring='b' * 90) | length }}",
    "{{ [[1]] | tojson(indent=1000000) | length }}",
    "{{ ([[[[[1]]]]] * 50000) | tojson(indent=90) | length }}",
    "{{ 1 | round(10 ** 9, 'ceil') }}",
    "{{ 5 | round(-10 ** 9) }}",
    "{{ ([[1] * 100000] * 100000) | sum(start=[]) | length }}",
    "{{ range(10000) | groupby('a', default='b' * 1000000) | length }}",
    "{{ range(100000) | map('string') | map('center', 1000000) | list | length }}",
    "{{ range(100000) | map('string') | map('batch', 1000000, 1) | map('list') | list | length }}",
    "{{ (range(100000) | list) | sort(attribute='a,' * 100000) | length }}",
    *(
        NS + "{% for i in range(60) %}{% set ns." + step + " %}{% endfor %}{{ ns.s | length }}"
        for step in ("s = ns.s + ns.s", "s = ns.s ~ ns.s", "l = ns.l + ns.l", "n = ns.n * ns.n")
    ),
    *(
        NS + "{% for i in range(100000) %}{% set ns.l = [ns.l, " + made + "] %}{% endfor %}"
        for made in ("ns.s[1:]", "ns.s.upper()", "ns.s | upper", "ns.s.partition('b')")
    ),
    *(
        DEEP + use
        for use in (
            "{{ ns.l }}",
            "{{ [ns] }}",
            "{{ ns.l ~ 'a' }}",
            "{{ ns.l | string }}",
            "{{ ns.l | tojson }}",
            "{{ ns.l | join }}",
            "{{ [ns.l] | map('upper') | list }}",
            "{{ {'a': ns.l}.values() }}",
            "{{ {'a': ns.l} | xmlattr }}",
            "{{ 'a' | replace('a', ns.l) }}",
            "{{ '%s' % [ns.l] }}",
            "{{ '{!r}'.format(ns.l) }}",
            "{{ ns.l is lower }}",
            "{{ [][ns.l] }}",
            "{{ [].index(ns.l) }}",
            "{{ ('a' | safe).join([ns.l]) }}",
            "{% set ns.l = ns %}{{ ns }}",
        )
    ),
    *(
        MANY + use
        for use in (
            "{{ many | sort | length }}",
            "{{ many | join | length }}",
            "{{ many | groupby(0) | list | length }}",
            "{{ {}.fromkeys(range(1000), many) | dictsort(by='value') | length }}",
        )
    ),
    LONG,
    "{% set s %}" + LONG + "{% endset %}{{ s | length }}",
    "{% filter length %}" + LONG + "{% endfilter %}",
    "{% macro m() %}" + LONG + "{% endmacro %}{{ m() | length }}",
    "{% if 0 %}{% block b %}" + LONG + "{% endblock %}{% endif %}{{ self.b() | length }}",
    "{% set s %}" + STEPS + "{% endset %}{{ s | length }}",
]


def render(source: str, row: dict[str, Any] = ROW) -> str:
    return "".join(RowTemplate(source, option="template").render(row, TOKENIZER))


@pytest.mark.parametrize(("source", "printed"), ORDINARY)
def test_what_prompts_need_works_as_in_jinja(source: str, printed: str) -> None:
    assert render(source) == printed


@pytest.mark.parametrize("source", HUGE)
def test_nothing_huge_is_made(source: str) -> None:
    started = time.monotonic()
    with pytest.raises((UserError, RowError), match=r"sandbox refuses|of more than 100000000 char"):
        render(source)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("source", HUGE[:10])
def test_what_would_be_huge_is_refused_before_it_is_made(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"(?s)1000000 characters.*fix: use smaller numbers"):
            render(source)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_all_operations_on_a_row_are_counted_anew_for_each_row() -> None:
    template = RowTemplate("{{ ('a' * 900000 ~ n) | length }}", option="template")
    for n in range(200):
        assert template.render({"n": n}, TOKENIZER).startswith("9000")
    with pytest.raises(UserError, match=r"more than 100000\d00 characters in all operations"):
        render("{% for i in range(200) %}{% set _ = 'a' * 900000 %}{% endfor %}", {"n": 1})


def test_long_rows_can_be_used_as_short_ones() -> None:
    text = "a word, " * 300_000
    source = "{{ text | trim | upper }}{{ text ~ 'x' }}{{ [text, 'y'] | join('-') }}{{ texts }}"
    assert len(render(source, {"text": text, "texts": [text] * 2})) > 5 * len(text) - 10
    with pytest.raises(UserError, match="beyond the row's own"):
        render("{{ text ~ text }}", {"text": text})


@pytest.mark.parametrize("name", ["urlize", "pprint"])
def test_filters_that_no_prompt_needs_are_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"No filter named '{name}'"):
        render(f"{{{{ text | {name} }}}}")


def test_a_method_that_is_not_known_to_be_safe_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"(?s)the method 'translate' of a text.*fix: write it with"
    ):
        render("{{ text.translate({97: 'b'}) }}")


@pytest.mark.parametrize("source", ["{{ text | truncate(2) }}", "{{ words | indent }}"])
def test_a_filter_that_fails_makes_the_row_bad(source: str) -> None:
    with pytest.raises(RowError, match=r"template fails: (Assertion|Attribute)Error: "):
        render(source)
