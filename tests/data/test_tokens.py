"""The seam between prompt and answer, and texts that are spelt like special tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.data.special import CUT, cut_printed, cut_special, make_example, uncut
from mtlcore.data.tokens import encode_pair, encode_plain, encode_prompt, encode_start, join_space
from mtlcore.demo.tiny import TOKENIZER
from mtlcore.errors import UserError
from mtlcore_plugins.formats.classification import Classification
from mtlcore_plugins.formats.messages import Messages
from mtlcore_plugins.formats.multiple_choice import MultipleChoice
from mtlcore_plugins.formats.prompt_completion import PromptCompletion
from mtlcore_plugins.formats.text import Text
from tests.helpers import learned_text

SPECIAL = ["<unk>", "<s>", "</s>"]
CHAT = (
    "{% for m in messages %}{{ bos_token }}[{{ m.role }}] {{ m.content }} "
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}[assistant]{% endif %}"
)
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


@cache
def trained(kind: str) -> dict[str, Any]:
    """A model of the demo's texts, in the form of tokenizer.json, with a token for every byte."""
    texts = [
        str(value)
        for file in sorted((TOKENIZER.parent / "data").rglob("dev.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
        for value in json.loads(line).values()
    ]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    options: dict[str, Any] = {"vocab_size": 900, "special_tokens": tokens, "show_progress": False}
    trainer: Any = (
        trainers.BpeTrainer(**options)
        if kind == "bpe"
        else trainers.UnigramTrainer(unk_token="<unk>", **options)
    )
    tokenizer.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    unknown = {"unk_token": "<unk>", "fuse_unk": True} if kind == "bpe" else {"unk_id": 0}
    return model | unknown | {"byte_fallback": True}


def of_json(kind: str, normalizer: Any, pre_tokenizer: Any) -> Any:
    """A tokenizer as Llama 2's tokenizer.json has it: a bos first, special tokens, the decoder."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": at, "content": token, "special": True, **flags}
            for at, token in enumerate(SPECIAL)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, bos, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": DECODER,
        "model": trained(kind),
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT,
    )


def llama(*, legacy: bool) -> Any:
    model = trained("bpe")
    merges = [tuple(merge) for merge in model["merges"]]
    return LlamaTokenizer(
        vocab=model["vocab"], merges=merges, legacy=legacy, add_bos_token=True, chat_template=CHAT
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "bpe, metaspace": lambda: of_json("bpe", None, METASPACE),
    "bpe, prepend": lambda: of_json("bpe", PREPEND, None),
    "unigram, metaspace": lambda: of_json("unigram", None, METASPACE),
    "unigram, prepend": lambda: of_json("unigram", PREPEND, None),
    "LlamaTokenizer": lambda: llama(legacy=False),
    "LlamaTokenizer, legacy": lambda: llama(legacy=True),
    "demo": lambda: AutoTokenizer.from_pretrained(TOKENIZER, chat_template=CHAT),
}
MAKE = cache(lambda name: MAKERS[name]())
spelt = st.sampled_from([*SPECIAL, "<|eos|>", "<|bos|>", "</s", "s>", "<<s>>"])
words = st.sampled_from(["a", "film", "good", "œuvre", "日", "\n", "\t", " ", "  ", ":", "'s", "7"])
characters = st.characters(exclude_categories=["Cs", "Cn", "Zs"], exclude_characters="\0")
texts = st.lists(words | characters, max_size=8)
texts = texts.map("".join).filter(lambda text: text.strip() and "▁" not in text)
hostile = st.lists(spelt | texts, min_size=1, max_size=5).map("".join)
every = pytest.mark.parametrize("name", MAKERS)


def shown(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


@every
@given(prompt=texts, target=texts)
@example(prompt="Label:", target="good")
@example(prompt="Label:", target=" good")
@example(prompt="Label:\n", target="good")
@example(prompt="Label: ", target="good")
def test_the_joined_tokens_say_the_joined_text(name: str, prompt: str, target: str) -> None:
    tokenizer = MAKE(name)
    assume(not prompt.startswith(" "))  # which a tokenizer with a prefix does not give back
    ids, _, length = encode_pair(tokenizer, prompt, target)
    text = prompt + join_space(prompt, target) + target
    assert shown(tokenizer, ids) == text
    assert list(ids[:length]) == tokenizer(prompt).input_ids
    joined = tokenizer(text).input_ids
    # byte-level tokenizers look over the seam at white space: theirs may differ there
    if joined[:length] == list(ids[:length]) and name != "demo":
        assert list(ids[:-1]) == joined


@every
@pytest.mark.parametrize(
    ("prompt", "target"), [("Label:", "good"), ("Label:\n", "good"), ("film", " a good film")]
)
def test_the_usual_seams_are_borders_of_the_joined_tokens(
    name: str, prompt: str, target: str
) -> None:
    tokenizer = MAKE(name)
    ids, _, length = encode_pair(tokenizer, prompt, target)
    text = prompt + join_space(prompt, target) + target
    assert list(ids[:-1]) == tokenizer(text).input_ids
    assert 0 < length < len(ids) - 1
    first = tokenizer.convert_ids_to_tokens(ids[length])
    assert not first.startswith("▁▁")
    assert first.startswith("▁") == (name != "demo" and not prompt.endswith("\n"))


@given(text=texts)
def test_a_byte_level_tokenizer_is_used_as_it_is(text: str) -> None:
    tokenizer = MAKE("demo")
    expected = tokenizer(text, add_special_tokens=False).input_ids
    assert encode_plain(tokenizer, text) == encode_start(tokenizer, text) == expected


def test_a_prefix_space_of_a_byte_level_tokenizer_is_left_out_after_a_prompt() -> None:
    backend = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>")
    ids, _, _ = encode_pair(tokenizer, "Label:\n", "good")
    assert shown(tokenizer, ids) == " Label:\ngood"
    assert encode_plain(tokenizer, " good") == encode_plain(MAKE("demo"), " good")


# -- special tokens --------------------------------------------------------------------------------


@every
@given(prompt=hostile, target=hostile)
def test_rows_spelt_like_special_tokens_stay_text(name: str, prompt: str, target: str) -> None:
    tokenizer = MAKE(name)
    assume(not prompt.startswith(" "))
    row = {"prompt": prompt, "completion": target}
    found = make_example(PromptCompletion().example, row, task="a", index=0, tokenizer=tokenizer)
    assert (found.prompt, found.target, dict(found.fields)) == (prompt, target, row)
    # the bos in front and the eos at the end are those of the tokenizer and the format
    own = [i for i in found.input_ids if i in tokenizer.all_special_ids]
    bos = [tokenizer.bos_token_id] if name != "demo" else []
    assert own == [*bos, tokenizer.eos_token_id]
    assert shown(tokenizer, found.input_ids) == prompt + join_space(prompt, target) + target


@every
def test_cuts_lie_in_every_special_token_and_nowhere_else(name: str) -> None:
    tokenizer = MAKE(name)
    eos = tokenizer.eos_token
    assert cut_special(tokenizer, f"a{eos}{eos}") == f"a{eos[0]}{CUT}{eos[1:]}" + (
        f"{eos[0]}{CUT}{eos[1:]}"
    )
    assert cut_special(tokenizer, "no <special> token </ s>") == "no <special> token </ s>"
    assert uncut(cut_special(tokenizer, eos)) == eos
    with pytest.raises(RowError, match=r"U\+FDD0"):
        cut_special(tokenizer, f"a{CUT}b")


@every
def test_special_tokens_that_a_template_writes_are_meant(name: str) -> None:
    tokenizer = MAKE(name)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    form = PromptCompletion(template=f"{bos}user {{{{ q }}}}{eos}:", completion_template="{{ a }}")
    row = {"q": f"x{eos}y", "a": "z"}
    found = make_example(form.example, row, task="a", index=0, tokenizer=tokenizer)
    assert found.prompt == f"{bos}user x{eos}y{eos}:"
    prompt = list(found.input_ids[: found.prompt_length])
    assert prompt.count(tokenizer.eos_token_id) == 1
    at = prompt.index(tokenizer.eos_token_id)
    assert shown(tokenizer, prompt[:at]).endswith(f"user x{eos}y")


@every
def test_json_in_a_template_keeps_the_texts_of_a_row(name: str) -> None:
    tokenizer = MAKE(name)
    form = PromptCompletion(template="{{ prompt | tojson }} {{ row.x }}")
    row = {"prompt": tokenizer.eos_token + "\\ufdd0", "completion": "b", "x": tokenizer.eos_token}
    found = make_example(form.example, row, task="a", index=0, tokenizer=tokenizer)
    spelt = json.dumps(row["prompt"]).replace("<", "\\u003c").replace(">", "\\u003e")
    assert found.prompt == f"{spelt} {tokenizer.eos_token}"
    assert found.input_ids.count(tokenizer.eos_token_id) == 1


# of a special token's spelling: the template, the column x, and what the prompt is
PRINTED: dict[str, Callable[[str], tuple[str, Any, str]]] = {
    "keys": lambda s: ("{% for k in x %}{{ k }}={{ x[k] }}{% endfor %}", {s: s}, f"{s}={s}"),
    "lower": lambda s: ("{{ x | lower }}", s.upper(), s),
    "replace": lambda s: ("{{ x | replace('_', '') }}", f"{s[:2]}_{s[2:]}", s),
    "two columns": lambda s: ("{{ x[:1] }}{{ x[1:] }}", s, s),
    "column, own words": lambda s: ("{{ x[:1] }}" + s[1:], s, s),
    "own words, column": lambda s: (s[:1] + "{{ x[1:] }}", s, s),
    "nothing between own words": lambda s: (s[:1] + "{{ x[:0] }}" + s[1:], s, s),
    "list": lambda s: ("{{ x }}", [s, "a"], f"['{s}', 'a']"),
    "object": lambda s: ("{{ x }}", {s: s}, f"{{'{s}': '{s}'}}"),
    "filter": lambda s: ("{% filter trim %} {{ x }}{% endfilter %}", s, s),
    "filters": lambda s: (
        "{% filter trim %}{% filter trim %}{{ x }}{% endfilter %}{% endfilter %}", s, s
    ),
    "call": lambda s: (
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ x }}{% endcall %}", s, s
    ),
    "set": lambda s: ("{% set y %}{{ x }}{% endset %}{{ y }}", s, s),
    "block": lambda s: ("{% block b %}{{ x }}{% endblock %}", s, s),
    "autoescape": lambda s: ("{% autoescape true %}{{ x | safe }}{% endautoescape %}", s, s),
    "recursive": lambda s: (
        "{% for i in x recursive %}{{ i.s }}{{ loop(i.y) }}{% endfor %}",
        [{"s": s, "y": [{"s": s, "y": []}]}],
        s + s,
    ),
}  # fmt: skip


@every
@pytest.mark.parametrize("how", PRINTED)
def test_what_a_template_prints_is_text_however_it_comes_by_it(how: str, name: str) -> None:
    tokenizer = MAKE(name)
    template, value, shows = PRINTED[how](tokenizer.eos_token)
    form, row = PromptCompletion(template=template), {"x": value, "completion": "b"}
    found = make_example(form.example, row, task="a", index=0, tokenizer=tokenizer)
    assert (found.prompt, dict(found.fields)) == (shows, row)
    own = [i for i in found.input_ids if i in tokenizer.all_special_ids]
    bos = [tokenizer.bos_token_id] if name != "demo" else []
    assert own == [*bos, tokenizer.eos_token_id]
    assert shown(tokenizer, found.input_ids) == shows + " b"


@every
@pytest.mark.parametrize(
    ("template", "shows"),
    [
        ("{{ x | replace('EOS', '') }}", "a  b"),
        ("{{ x.split('EOS')[0] }}|", "a |"),
        ("{% if 'EOS' in x %}yes{% endif %}", "yes"),
        ("{{ x | length - 'EOS' | length }}", "4"),
        ("{{ x | urlencode | length == x | replace('EOS', '') | urlencode | length }}", "False"),
    ],
)
def test_a_template_sees_the_texts_as_they_are(template: str, shows: str, name: str) -> None:
    tokenizer = MAKE(name)
    eos = tokenizer.eos_token
    form = PromptCompletion(template=template.replace("EOS", eos))
    row = {"x": f"a {eos} b", "completion": "b"}
    assert make_example(form.example, row, task="a", index=0, tokenizer=tokenizer).prompt == shows


@every
def test_own_words_within_the_blocks_of_a_template_are_meant(name: str) -> None:
    tokenizer = MAKE(name)
    eos = tokenizer.eos_token
    template = f"{{% for i in [1, 2] %}}{{% if i %}}{eos[:1]}{{% endif %}}{eos[1:]}{{% endfor %}}"
    form = PromptCompletion(template=template + "{{ x }}" + eos)
    row = {"x": eos, "completion": "b"}
    found = make_example(form.example, row, task="a", index=0, tokenizer=tokenizer)
    assert found.prompt == eos * 4
    assert found.input_ids[: found.prompt_length].count(tokenizer.eos_token_id) == 3


@every
@pytest.mark.parametrize(
    ("template", "meant"), [("{{ 'EOS' }}{{ x }}", 1), ("{{ x ~ 'EOS' }}", 0), ("EOS{{ x }}EOS", 2)]
)
def test_a_constant_is_meant_and_what_is_joined_to_a_column_is_not(
    template: str, meant: int, name: str
) -> None:
    tokenizer = MAKE(name)
    form = PromptCompletion(template=template.replace("EOS", tokenizer.eos_token))
    row = {"x": f"a{tokenizer.eos_token}", "completion": "b"}
    found = make_example(form.example, row, task="a", index=0, tokenizer=tokenizer)
    prompt = found.input_ids[: found.prompt_length]
    assert prompt.count(tokenizer.eos_token_id) == meant
    assert CUT not in found.prompt


def with_special(spelling: str, *, lower: bool) -> Any:
    """A tokenizer of characters that normalises a text before it looks for special tokens."""
    letters = sorted({*"[]eosEOS ab", *spelling, CUT})
    backend = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    )
    if lower:
        backend.normalizer = normalizers.Lowercase()
    token = AddedToken(spelling, normalized=True, special=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=token)


def test_a_special_token_that_is_looked_for_in_any_case_is_text_in_any_case() -> None:
    tokenizer = with_special("[eos]", lower=True)
    assert tokenizer.eos_token_id in tokenizer("a[EOS]b").input_ids
    assert tokenizer.eos_token_id not in encode_plain(tokenizer, cut_special(tokenizer, "a[EOS]b"))
    exact = with_special("[eos]", lower=False)
    assert cut_special(exact, "a[EOS]b") == "a[EOS]b"


def test_the_longer_of_two_special_tokens_is_cut_where_the_shorter_is_meant() -> None:
    tokenizer = with_special("[e]", lower=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[e]s"]})
    ids = encode_plain(tokenizer, cut_printed(tokenizer, [("a[e]", True), ("s[e]", False)]))
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "[e]", "s", "[", "e", "]"]


@every
@pytest.mark.parametrize("where", ["input_ids", "option_ids", "calibration_ids"])
def test_a_format_that_tokenises_itself_is_told_of_the_marks(where: str, name: str) -> None:
    tokenizer = MAKE(name)

    def make(row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        ids = {key: tuple(tokenizer("x").input_ids) for key in ("input_ids", "calibration_ids")}
        own = tuple(tokenizer(row["text"]).input_ids)
        given: dict[str, Any] = {**ids, "option_ids": (), where: own}
        if where == "option_ids":
            given[where] = (own,)
        return Example(
            task, index, row["text"], "x", labels=(IGNORED,) * len(given["input_ids"]),
            prompt_length=1, **given,
        )  # fmt: skip

    def made(text: str) -> Example:
        return make_example(make, {"text": text}, task="a", index=0, tokenizer=tokenizer)

    assert made("good").prompt == "good"
    with pytest.raises(UserError, match=r"(?s)U\+FDD0.*encode_prompt, encode_plain or encode_pair"):
        made(f"good {tokenizer.eos_token}")


@every
def test_a_chat_template_that_prints_an_object_makes_a_row_bad_not_wrong(name: str) -> None:
    tokenizer = copy.copy(MAKE(name))
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m }}{% endfor %}"
    for content, bad in (("fine", False), (tokenizer.eos_token, True), ("\\ufdd0", False)):
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]

        def made(row: dict[str, Any]) -> Example:
            return make_example(Messages().example, row, task="a", index=0, tokenizer=tokenizer)

        if bad:
            with pytest.raises(RowError, match="print the text itself"):
                made({"messages": turns})
        else:
            assert content in made({"messages": turns}).prompt.replace("\\\\", "\\")


@every
def test_a_chat_template_has_its_markers_and_messages_have_none(name: str) -> None:
    tokenizer = MAKE(name)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    messages = [
        {"role": "user", "content": f"say {eos} and {bos}"},
        {"role": "assistant", "content": f"well{eos}done"},
    ]
    found = make_example(
        Messages().example, {"messages": messages}, task="a", index=0, tokenizer=tokenizer
    )
    ids = list(found.input_ids)
    assert ids.count(tokenizer.bos_token_id) == 2
    assert ids.count(tokenizer.eos_token_id) == 1
    assert found.target == f"well{eos}done"
    assert found.fields["messages"] == messages
    assert f"well{eos}done" in learned_text(found, tokenizer)


@every
def test_plain_messages_have_the_tokens_of_the_chat_template(name: str) -> None:
    tokenizer = MAKE(name)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "good day"}]
    found = make_example(
        Messages().example, {"messages": messages}, task="a", index=0, tokenizer=tokenizer
    )
    expected = tokenizer.apply_chat_template(messages, return_dict=False)
    assert list(found.input_ids) == expected[: len(found.input_ids)]


@every
def test_labels_and_answers_of_rows_are_text(name: str) -> None:
    tokenizer = MAKE(name)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    rows = [{"text": "x", "label": bos}, {"text": eos, "label": eos}]
    form = Classification()
    form.prepare(rows)
    found = make_example(form.example, rows[1], task="a", index=0, tokenizer=tokenizer)
    assert (found.options, found.target) == (tuple(sorted((bos, eos))), eos)
    pieces = {i for option in found.option_ids for i in option}
    assert not pieces & {tokenizer.bos_token_id, tokenizer.eos_token_id}

    row = {"prompt": "x", "options": [bos, eos], "label": eos}
    found = make_example(MultipleChoice().example, row, task="a", index=0, tokenizer=tokenizer)
    assert (found.options, found.label) == ((bos, eos), 1)
    assert not {i for o in found.option_ids for i in o} & set(tokenizer.all_special_ids)

    given = Classification(labels=[bos, eos])
    found = make_example(given.example, rows[1], task="a", index=0, tokenizer=tokenizer)
    assert found.option_ids[1][-1] == tokenizer.eos_token_id


@every
def test_plain_text_with_a_special_spelling_ends_once(name: str) -> None:
    tokenizer = MAKE(name)
    row = {"text": f"one{tokenizer.eos_token}two{tokenizer.eos_token}"}
    found = make_example(Text().example, row, task="a", index=0, tokenizer=tokenizer)
    assert found.target == row["text"]
    assert list(found.labels).count(tokenizer.eos_token_id) == 1
    assert found.input_ids[-1] == tokenizer.eos_token_id


def test_the_prompt_alone_has_the_tokens_that_it_has_before_an_answer() -> None:
    tokenizer = MAKE("bpe, metaspace")
    prompt = cut_special(tokenizer, "say </s>:")
    ids, _, length = encode_pair(tokenizer, prompt, "x")
    assert list(ids[:length]) == encode_prompt(tokenizer, prompt)


@every
def test_a_question_has_the_prompt_of_the_row_with_its_answer(name: str) -> None:
    tokenizer = MAKE(name)
    spelt = f"a{tokenizer.eos_token}b"
    chat = [{"role": "user", "content": spelt}, {"role": "assistant", "content": "yes"}]
    labelled = Classification(labels=["yes", "no"])
    for form, row in (
        (PromptCompletion(), {"prompt": spelt, "completion": "yes"}),
        (MultipleChoice(), {"prompt": spelt, "options": ["yes", "no"], "label": "yes"}),
        (labelled, {"text": spelt, "label": "yes"}),
        (Messages(), {"messages": chat}),
    ):
        made = [
            make_example(make, row, task="a", index=0, tokenizer=tokenizer)
            for make in (form.example, form.question)
        ]
        whole, asked = made
        assert asked.input_ids == whole.input_ids[: whole.prompt_length], form.name
        assert (asked.prompt, asked.option_ids) == (whole.prompt, whole.option_ids)
        assert asked.prompt_length == whole.prompt_length
        assert (asked.target, asked.label) == ("", None)
