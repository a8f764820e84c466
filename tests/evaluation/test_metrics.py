"""Metrics against the libraries they stand for, perfect and empty answers."""

import random
from types import SimpleNamespace

import pytest

from mtlcore.errors import UserError
from mtlcore.testing import plugin_manager
from mtlcore_plugins.evaluation.accuracy import Accuracy
from mtlcore_plugins.evaluation.chrf import ChrF
from mtlcore_plugins.evaluation.exact_match import ExactMatch
from mtlcore_plugins.evaluation.macro_f1 import MacroF1
from mtlcore_plugins.evaluation.rouge_l import RougeL

ALL = [Accuracy, MacroF1, ExactMatch, ChrF, RougeL]
TEXT = [ExactMatch, ChrF, RougeL]
TARGETS = ["the cat sat on the mat", "a dog", "Paris", "it rains in the north today"]
OUTPUTS = ["the cat is on a mat", "a dog", "paris", "rain falls today in the north"]


def rows(outputs, targets, labels=None, choices=None):
    """Predictions: texts, with labels and choices when given."""
    count = len(targets)
    return [
        SimpleNamespace(task="t", row=i, output=o, target=t, label=a, choice=c, options=("x", "y"))
        for i, (o, t, a, c) in enumerate(
            zip(outputs, targets, labels or [0] * count, choices or [0] * count, strict=True)
        )
    ]


@pytest.mark.parametrize("metric", ALL)
def test_perfect_answers_score_the_best(metric):
    predictions = rows(TARGETS, TARGETS, [0, 1, 1, 2], [0, 1, 1, 2])
    assert metric().score(predictions) == pytest.approx(metric.best, abs=1e-9)
    assert metric().normalized(metric.best) == 1.0


@pytest.mark.parametrize("metric", ALL)
def test_no_predictions_are_an_error(metric):
    with pytest.raises(UserError, match=f"{metric.name} has no predictions"):
        metric().score([])


@pytest.mark.parametrize("metric", ALL)
def test_the_order_of_the_rows_does_not_matter(metric):
    predictions = rows(OUTPUTS, TARGETS, [0, 1, 1, 2], [0, 1, 2, 0])
    score = metric().score(predictions)
    assert 0 < score < metric.best
    random.Random(0).shuffle(predictions)
    assert metric().score(predictions) == pytest.approx(score, rel=1e-12)


@pytest.mark.parametrize("metric", TEXT)
def test_empty_outputs_score_zero_and_do_not_hurt_the_others(metric):
    assert metric().score(rows([""] * 4, TARGETS)) == 0.0
    assert metric().score(rows(["", *TARGETS[1:]], TARGETS)) > 0.5 * metric.best


@pytest.mark.parametrize("metric", TEXT)
def test_white_space_at_the_ends_does_not_matter(metric):
    padded = rows([f" {text}\n" for text in OUTPUTS], [f"\t{text} " for text in TARGETS])
    assert metric().score(padded) == metric().score(rows(OUTPUTS, TARGETS))


@pytest.mark.parametrize("metric", [Accuracy, MacroF1])
def test_rows_without_a_label_are_refused(metric):
    predictions = rows(TARGETS, TARGETS)
    predictions[2].label = None
    with pytest.raises(UserError, match=r"tasks\.t\.metrics.*row 2"):
        metric().score(predictions)


@pytest.mark.parametrize("metric", [Accuracy, MacroF1])
def test_a_row_without_a_choice_is_wrong(metric):
    with_gap = metric().score(rows(TARGETS, TARGETS, [0, 1, 0, 1], [0, 1, 0, None]))
    assert with_gap == pytest.approx({Accuracy: 0.75, MacroF1: (1 + 2 / 3) / 2}[metric])


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_class_metrics_equal_scikit_learn(classes):
    from sklearn.metrics import accuracy_score, f1_score

    draw = random.Random(classes)
    labels = [draw.randrange(classes) for _ in range(101)]
    choices = [draw.choice([label, draw.randrange(classes)]) for label in labels]
    predictions = rows([""] * 101, [""] * 101, labels, choices)
    assert Accuracy().score(predictions) == pytest.approx(accuracy_score(labels, choices))
    assert MacroF1().score(predictions) == pytest.approx(f1_score(labels, choices, average="macro"))


def test_macro_f1_by_hand():
    # Class 0: TP 1, FP 1, FN 0 -> 2/3. Class 1: TP 1, FP 0, FN 1 -> 2/3. Class 2: never right.
    predictions = rows([""] * 4, [""] * 4, [0, 1, 1, 2], [0, 1, 0, 3])
    assert MacroF1().score(predictions) == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)


def test_exact_match_counts_rows():
    assert ExactMatch().score(rows(OUTPUTS, TARGETS)) == 0.25
    assert ExactMatch(ignore_case=True).score(rows(OUTPUTS, TARGETS)) == 0.5


@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"char_order": 4, "beta": 3}])
def test_chrf_equals_sacrebleu_and_keeps_its_signature(options):
    sacrebleu = pytest.importorskip("sacrebleu")
    metric = ChrF(**options)
    expected = sacrebleu.CHRF(**options).corpus_score(OUTPUTS, [TARGETS]).score
    assert metric.score(rows(OUTPUTS, TARGETS)) == pytest.approx(expected, rel=1e-12)
    signature = metric.details()["signature"]
    assert f"nw:{options.get('word_order', 0)}" in signature
    assert "version:" in signature


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_rouge_l_equals_rouge_score(use_stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=use_stemmer)
    each = [scorer.score(t, o)["rougeL"].fmeasure for o, t in zip(OUTPUTS, TARGETS, strict=True)]
    metric = RougeL(use_stemmer=use_stemmer)
    assert metric.score(rows(OUTPUTS, TARGETS)) == pytest.approx(sum(each) / 4, rel=1e-12)
    assert metric.details()["use_stemmer"] is use_stemmer


def test_rouge_l_of_other_scripts_needs_the_unicode_tokenizer():
    predictions = rows(["мама мыла раму"] * 2, ["мама мыла раму", "мама мыла"])
    with pytest.raises(UserError, match="tokenizer: unicode"):
        RougeL().score(predictions)
    assert RougeL(tokenizer="unicode").score(predictions) == pytest.approx((1 + 0.8) / 2)


def test_contradicting_options_of_rouge_l_are_refused():
    spec = SimpleNamespace(name="rouge_l", options={"use_stemmer": True, "tokenizer": "unicode"})
    with pytest.raises(UserError, match="needs tokenizer 'ascii'"):
        plugin_manager(RougeL).create("evaluation", spec, "tasks.t.metrics[0]")


def test_scores_come_through_the_hook_by_name():
    metrics = [ExactMatch(), ChrF()]
    for metric in metrics:
        metric.tasks = ("t",)
    found = plugin_manager(*metrics).hook.mtlcore_evaluate(
        run=None, task=SimpleNamespace(name="t"), predictions=rows(OUTPUTS, TARGETS)
    )
    assert {name for scores in found for name in scores} == {"exact_match", "chrf"}
