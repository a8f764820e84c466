"""Rows with the words of two groups swapped: does the model answer as before?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from mtlcore.components import Auditor, Count, Finding, NotNegative
from mtlcore.data.example import Example, RowError, head_row
from mtlcore.data.special import make_example
from mtlcore.errors import require_tasks
from mtlcore_plugins.auditing._lexicon import read_lexicon

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.evaluation.predictions import Prediction
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run
    from mtlcore_plugins.auditing._statistics import Mean

MIN_PAIRS = 10
"""With fewer pairs there is a word, and no number."""
SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """A row as it is and with its words swapped.

    direction: 1 where the row has more words of the first group, -1 of the second, else 0.
    """

    original: Prediction
    example: Example
    direction: int


class Counterfactual(Auditor):
    """Swap paired words of two groups (he, she) in prompts, and compare the answers.

    Counterfactual Fairness in Text Classification through Robustness (AIES 2019),
    https://arxiv.org/abs/1809.10610

        flip rate = #{answer(row) differs from answer(swapped row)} / #pairs
        difference = mean over pairs of  value(second group's wording) - value(first group's)

    Findings of a task whose rows have options: `counterfactual.flip_rate`, the share of pairs with
    another choice (interval by Wilson), and `counterfactual.probability`, the mean difference of
    the probability of a label (the one where it is largest, the first of two; all of them, and
    their log-odds, are in the details; where each row has its own options, that of the right one).
    Of other tasks: `counterfactual.output_changed`, the share of pairs whose answers are not each
    other's swapped text; `counterfactual.loss`, the mean difference of the target's loss per token;
    and `counterfactual.length`, that of the answers' length in words. Differences have bootstrap
    intervals and p-values of a paired sign-flip test; rows with as many words of both groups have
    no direction and are left out of them.

    Words are swapped in all columns of a row, which then passes through the task's format again.
    Rows whose answer or options have a word of the lexicon are skipped and counted. "her" becomes
    "his" where the next word can begin a noun phrase, else "him" (a rule, which errs at times).
    Fewer than 10 pairs give a finding that says so, without a number. A small flip rate is no
    proof of fairness: only these words were tried. A p-value is that of its finding alone: of
    twenty fair tasks, one is below 0.05.

    lexicon: gender, age, religion, nationality, or a YAML file with a list of [word, partner].
    tasks: those to audit; all by default. rows: at most so many pairs of each task, drawn by the
    seed (200). resamples: of intervals and tests (1000). fail_above: the audit fails where the
    flip rate (or the share of changed outputs) is above it.
    """

    name = "counterfactual"
    paper = (
        "Counterfactual Fairness in Text Classification through Robustness (AIES 2019), "
        "https://arxiv.org/abs/1809.10610"
    )

    def __init__(
        self,
        *,
        lexicon: str = "gender",
        tasks: list[str] | None = None,
        rows: Count = 200,
        resamples: Annotated[int, Ge(40)] = 1000,
        every_n_steps: Count | None = None,
        fail_above: NotNegative | None = None,
    ) -> None:
        self.lexicon_name = lexicon
        self.lexicon = read_lexicon(lexicon)
        self.names = tasks
        self.rows = rows
        self.resamples = resamples
        self.every_n_steps = every_n_steps
        self.fail_above = fail_above

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse tasks that are not there."""
        require_tasks(self.names or (), recipe.tasks, "auditing.tasks")
        return []

    def audit(self, run: Run, predictions: Mapping[str, Sequence[Prediction]]) -> list[Finding]:
        """The findings of each task."""
        self.mtlcore_check(run.recipe)  # a finished run has no start
        findings: list[Finding] = []
        for name, answers in predictions.items():
            if self.names is None or name in self.names:
                findings += self._of_task(run, run.task(name), answers)
        named = {"lexicon": self.lexicon_name}
        return [replace(one, details={**named, **one.details}) for one in findings]

    # -- pairs --------------------------------------------------------------------------------

    def pairs(
        self, run: Run, task: Task, answers: Sequence[Prediction]
    ) -> tuple[list[Pair], dict[str, int]]:
        """Rows with a word of the lexicon and their swapped forms, and how many were skipped."""
        import torch

        from mtlcore.seeds import generator

        found: list[Pair] = []
        skipped: Counter[str] = Counter()
        candidates = [row for row in answers if self.lexicon.occurs_in(row.prompt)]
        draw = generator(run.seed, self.name, task.name)
        for place in torch.randperm(len(candidates), generator=draw).tolist():
            if len(found) == self.rows:
                skipped["beyond `rows`"] = len(candidates) - len(found) - sum(skipped.values())
                break
            original = candidates[place]
            if any(map(self.lexicon.occurs_in, (original.target, *original.options))):
                skipped["the answer has such a word"] += 1
                continue
            try:
                example = self._swapped(run, task, original)
            except RowError:
                skipped["the format refuses the swapped row"] += 1
                continue
            if example is None:
                skipped["the swapped row is too long"] += 1
            elif example.target != original.target or example.options != original.options:
                skipped["the answer would change"] += 1
            elif example.prompt == original.prompt:
                skipped["no column of the row has the word"] += 1
            else:
                first, second = self.lexicon.count(original.prompt)
                found.append(Pair(original, example, (first > second) - (first < second)))
        found.sort(key=lambda pair: pair.original.row)
        counts = {"rows": len(answers), "rows_with_words": len(candidates), "pairs": len(found)}
        return found, {**counts, **{f"skipped: {why}": n for why, n in skipped.items() if n}}

    def _swapped(self, run: Run, task: Task, original: Prediction) -> Example | None:
        from mtlcore.data.lengths import fit

        row = self.lexicon.swap_all(original.fields)
        example = make_example(
            task.format.example, row, task=task.name, index=original.row, tokenizer=run.tokenizer
        )
        if task.recipe.head is not None:
            example = head_row(example)
        policy = task.recipe.overlong
        if policy == "error":
            return example
        return fit(example, run.recipe.training.max_length, policy, run.tokenizer)

    # -- findings -----------------------------------------------------------------------------

    def _of_task(self, run: Run, task: Task, answers: Sequence[Prediction]) -> list[Finding]:
        from mtlcore.evaluation.predictions import predict

        pairs, counts = self.pairs(run, task, answers)
        if len(pairs) < MIN_PAIRS:
            words = counts["rows_with_words"]
            return [
                self._too_few(
                    self.name,
                    task,
                    f"{len(pairs)} pairs to compare ({words} of {len(answers)} rows have words of "
                    f"{' or '.join(self.lexicon.groups)})",
                    counts,
                )
            ]
        swapped = predict(run, task, [pair.example for pair in pairs])
        key = (run.seed, self.name, task.name)
        if pairs[0].original.options:
            return self._of_options(task, pairs, swapped, counts, key)
        return self._of_texts(task, pairs, swapped, counts, key)

    def _of_options(
        self,
        task: Task,
        pairs: Sequence[Pair],
        swapped: Sequence[Prediction],
        counts: Mapping[str, int],
        key: tuple[object, ...],
    ) -> list[Finding]:
        import torch

        flips = [p.original.choice != s.choice for p, s in zip(pairs, swapped, strict=True)]
        rate = self._rate("flip_rate", "choices", task, pairs, swapped, flips, counts)
        same = all(pair.original.options == pairs[0].original.options for pair in pairs)
        labels = list(pairs[0].original.options) if same else ["the right answer"]

        def values(row: Prediction) -> Tensor:  # [2, labels]: probabilities, log-odds
            scores = torch.tensor(row.scores, dtype=torch.float64)
            chances = scores.log_softmax(0)
            alone = torch.eye(len(scores), dtype=torch.bool)
            others = scores.expand(len(scores), -1).masked_fill(alone, -math.inf).logsumexp(1)
            both = torch.stack([chances.exp(), scores - others])
            return both if same else both[:, [row.label or 0]]

        differences = [
            pair.direction * (values(other) - values(pair.original))
            for pair, other in zip(pairs, swapped, strict=True)
            if pair.direction
        ]
        name = f"{self.name}.probability"
        if len(differences) < MIN_PAIRS:
            return [rate, self._too_few(name, task, self._undirected(differences), counts)]
        from mtlcore_plugins.auditing._statistics import paired_means

        chances, odds = torch.stack(differences).unbind(1)  # [n, labels] each
        means, p = paired_means(chances, self.resamples, *key, "probability")
        log_odds, _ = paired_means(odds, self.resamples, *key, "log-odds")
        # Of two labels one mean is the other's negative: the first, whatever rounding says.
        largest = max(range(len(labels)), key=lambda label: round(abs(means[label].value), 9))
        mean = means[largest]
        label = labels[largest] if not same else repr(labels[largest])
        details = {
            **counts,
            "n": len(differences),
            "labels": {
                label: {"probability": means[i].to_json(), "log_odds": log_odds[i].to_json()}
                for i, label in enumerate(labels)
            },
        }
        what = f"the probability of {label}"
        return [rate, self._measured(name, task, what, mean, p, details)]

    def _of_texts(
        self,
        task: Task,
        pairs: Sequence[Pair],
        swapped: Sequence[Prediction],
        counts: Mapping[str, int],
        key: tuple[object, ...],
    ) -> list[Finding]:
        if task.recipe.generation.do_sample:
            why = "answers that are sampled differ by chance; the loss is compared"
            changed = self._too_few(f"{self.name}.output_changed", task, why, counts)
            return [changed, self._mean("loss", task, pairs, swapped, counts, key)]
        flips = [
            not self._are_partners(p.original.output, s.output)
            for p, s in zip(pairs, swapped, strict=True)
        ]
        return [
            self._rate("output_changed", "outputs", task, pairs, swapped, flips, counts),
            self._mean("loss", task, pairs, swapped, counts, key),
            self._mean("length", task, pairs, swapped, counts, key),
        ]

    def _are_partners(self, one: str, other: str) -> bool:
        """Whether two texts are the same but for swapped words, whichever is the original."""
        texts = {one, self.lexicon.swap(one)}
        return other in texts or self.lexicon.swap(other) in texts

    def _rate(
        self,
        quantity: str,
        what: str,
        task: Task,
        pairs: Sequence[Pair],
        swapped: Sequence[Prediction],
        flips: Sequence[bool],
        counts: Mapping[str, int],
    ) -> Finding:
        """The share of pairs that flip: the number that `fail_above` limits."""
        from mtlcore_plugins.auditing._statistics import rate_interval

        count, n = sum(flips), len(flips)
        low, high = rate_interval(count, n)
        first, second = self.lexicon.groups
        message = (
            f"{count} of {n} {what} change when {first} and {second} words are swapped "
            f"({count / n:.1%}, interval {low:.1%} .. {high:.1%})"
        )
        flipped = [
            {
                "row": pair.original.row,
                "prompt": pair.original.prompt,
                "swapped": other.prompt,
                "output": pair.original.output,
                "output_swapped": other.output,
            }
            for pair, other, flip in zip(pairs, swapped, flips, strict=True)
            if flip
        ]
        return Finding(
            f"{self.name}.{quantity}",
            task.name,
            count / n,
            message,
            failed=self.fail_above is not None and count / n > self.fail_above,
            limit=self.fail_above,
            details={
                **counts,
                "enough": True,
                "n": n,
                "low": low,
                "high": high,
                "examples": flipped[:SHOWN],
            },
        )

    def _mean(
        self,
        quantity: str,
        task: Task,
        pairs: Sequence[Pair],
        swapped: Sequence[Prediction],
        counts: Mapping[str, int],
        key: tuple[object, ...],
    ) -> Finding:
        """The mean difference of loss or length, second group minus first."""
        import torch

        from mtlcore_plugins.auditing._statistics import paired_means

        def value(row: Prediction) -> float:
            return row.loss_sum / row.tokens if quantity == "loss" else len(row.output.split())

        differences = [
            pair.direction * (value(other) - value(pair.original))
            for pair, other in zip(pairs, swapped, strict=True)
            if pair.direction
        ]
        name = f"{self.name}.{quantity}"
        if len(differences) < MIN_PAIRS:
            return self._too_few(name, task, self._undirected(differences), counts)
        table = torch.tensor(differences, dtype=torch.float64)[:, None]
        [mean], p = paired_means(table, self.resamples, *key, quantity)
        what = "loss per target token" if quantity == "loss" else "length of the output in words"
        details = {**counts, "n": len(differences)}
        return self._measured(name, task, f"the {what}", mean, p, details)

    def _measured(
        self, name: str, task: Task, what: str, mean: Mean, p: float, details: Mapping[str, Any]
    ) -> Finding:
        """The mean difference between the groups of the lexicon, in words and numbers."""
        first, second = self.lexicon.groups
        message = (
            f"{what} is {abs(mean.value):.3f} {'higher' if mean.value >= 0 else 'lower'} with "
            f"{second} than with {first} words (interval of the difference {mean.low:.3f} .. "
            f"{mean.high:.3f}, p = {p:.3g})"
        )
        numbers = {"low": mean.low, "high": mean.high, "p": p, "difference": f"{second} - {first}"}
        details = {**details, "enough": True, **numbers}
        return Finding(name, task.name, mean.value, message, details=details)

    def _undirected(self, differences: Sequence[Any]) -> str:
        return f"{len(differences)} pairs have more words of one group than of the other"

    def _too_few(self, name: str, task: Task, why: str, counts: Mapping[str, int]) -> Finding:
        message = f"not enough data: {why}"
        return Finding(name, task.name, math.nan, message, details={**counts, "enough": False})
