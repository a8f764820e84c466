"""prompt_completion: only the completion is learned, and templates are safe and exact."""

from __future__ import annotations

from typing import Any

import pytest

from mtlcore.data.example import Example, RowError
from mtlcore.errors import UserError
from mtlcore_plugins.formats.prompt_completion import PromptCompletion
from tests.helpers import learned_text, small_tokenizer

TOKENIZER = small_tokenizer()


def example(row: dict[str, Any], tokenizer: Any = TOKENIZER, **options: Any) -> Example:
    made = PromptCompletion(**options)
    return made.example(row, task="a", index=4, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("prompt", "completion", "learned"),
    [
        ("the film", "was good", " was good</s>"),
        ("the film ", "was good", "was good</s>"),
        ("the film", "\nwas good", "\nwas good</s>"),
        ("Q: 1\n", "was good", "was good</s>"),
    ],
)
def test_one_space_is_put_at_a_seam_without_white_space(
    prompt: str, completion: str, learned: str
) -> None:
    made = example({"prompt": prompt, "completion": completion})
    assert learned_text(made, TOKENIZER) == learned
    assert list(made.input_ids[: made.prompt_length]) == TOKENIZER(prompt).input_ids
    assert (made.prompt, made.target) == (prompt, completion)
    assert (made.task, made.row) == ("a", 4)


@pytest.mark.parametrize("adds_eos", [False, True])
def test_the_prompt_has_a_bos_and_no_eos(adds_eos: bool) -> None:
    tokenizer = small_tokenizer(adds_eos=adds_eos)
    made = example({"prompt": "the film", "completion": "good"}, tokenizer)
    assert made.input_ids[0] == tokenizer.bos_token_id
    assert made.input_ids.count(tokenizer.eos_token_id) == 1
    assert made.input_ids[-1] == made.labels[-1] == tokenizer.eos_token_id


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)has no eos token.*fix: set eos_token"):
        example({"prompt": "x", "completion": "y"}, small_tokenizer(eos=False))


def test_templates_make_prompt_and_completion_from_any_column() -> None:
    row = {"question": "why", "a b": "because", "extra": None}
    made = example(
        row,
        template="Q: {{ question }}{% if extra %} ({{ extra }}){% endif %}\nA:",
        completion_template='{{ row["a b"] | upper }}',
    )
    assert (made.prompt, made.target) == ("Q: why\nA:", "BECAUSE")
    assert made.fields == row
    assert PromptCompletion(template="x", completion_template="y").columns == {}
    assert set(PromptCompletion(template="x").columns) == {"completion"}


def test_an_undefined_name_is_a_missing_column() -> None:
    with pytest.raises(RowError, match="template: 'questoin' is undefined") as caught:
        example({"question": "x", "extra": "", "completion": "y"}, template="{{ questoin }}")
    assert (caught.value.option, caught.value.missing) == ("template", "questoin")


def test_a_null_is_never_printed_as_none() -> None:
    with pytest.raises(RowError, match=r"template prints a null .*'question'"):
        example({"question": None, "completion": "y"}, template="{{ question }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ x.append(1) }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_refuses_the_internals_of_python(template: str) -> None:
    with pytest.raises((UserError, RowError), match=r"sandbox|unsafe|undefined"):
        example({"x": [], "completion": "y"}, template="a" + template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ x.upper }}",
            r"a method \(`x\.upper`\).*fix: write {{ x\.upper\(\) }} or {{ x \| upper",
        ),
        ("{{ x.upper ~ '!' }}", r"a method \(`x\.upper`\)"),
        ("{{ x.strip | upper }}", r"a method \(`x\.strip`\).*fix: write {{ x\.strip\(\) }}$"),
        ("{{ '%s' % x.upper }}", r"a method \(`x\.upper`\)"),
        ("{{ [x.upper] }}", r"a method \(`x\.upper`\)"),
        ("{{ x.upper() }}{{ (x or 1).upper }}", r"a method \(`upper`\)"),
        ("{{ row.items }}", r"a method \(`row\.items`\).*fix: write {{ row\['items'\] }}"),
        ("{{ x | map('upper') }}", r"a generator, .*fix: add `\| list` or `\| join"),
        ("{{ x | map('upper') | trim }}", "a generator"),
        ("{{ range }}", "a function"),
        ("{{ dict }}", "a class"),
        ("{{ cycler('a') }}", "an object of Python"),
        ("{% macro m() %}x{% endmacro %}{{ m }}", r"a macro \(`m`\).*fix: write {{ m\(\) }}"),
    ],
)
def test_a_template_that_prints_what_is_no_value_is_refused(template: str, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s)the template prints {message}"):
        example({"x": "a", "items": "b", "completion": "y"}, template=template)


def test_values_are_printed_as_ever() -> None:
    template = (
        "{{ x }}{{ n }}{{ row }}{{ x | map('upper') | join }}{{ nosuch | default('-') | upper }}"
        "{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(3) | upper }}{{ 'a' ~ n }}{{ range(2) }}"
    )
    row = {"x": ["a"], "n": 2.5, "completion": "y"}
    assert example(row, template=template).prompt == f"['a']2.5{row}A-<3>a2.5range(0, 2)"


def test_a_broken_template_is_refused_before_any_row() -> None:
    with pytest.raises(ValueError, match="template is not a Jinja2 template"):
        PromptCompletion(template="{{ x ")


@pytest.mark.parametrize("template", ["{{ x / 0 }}", "{{ x + 'a' }}", "{{ x | nosuch }}"])
def test_a_template_that_fails_on_a_row_says_so(template: str) -> None:
    with pytest.raises((RowError, ValueError), match="template"):
        example({"x": 1, "completion": "y"}, template=template)
