"""What answers are worth, the published table, and how sure a difference is.

OCRBench's rule (Liu et al., arXiv 2305.07895): a prediction is right if it contains any of the answers, both made alike
before:
    text                lower case, white space at the ends cut off, newlines to spaces
    handwritten math    white space at the ends and every space and newline removed; case counts
"exact" asks for equality in the place of containment: for models that answer with nothing else, and answers so short
that much text contains them. "vqa", "anls" and "choice" are in metrics.py; the first two give parts of a point.

Two models on the same n questions: d_i = points_second - points_first in [-1, 1], difference = 100 mean(d) points. Its
confidence interval is a paired bootstrap's: questions drawn n times with replacement, DRAWS times, percentiles of the
means. Of a draw only counts how often it hits each of the values that d takes, which is multinomial: so these counts
are drawn, not the questions. Where not one answer flips, the interval is [0, 0]; by the rule of three up to 3/n of all
questions may flip nevertheless (95 %).
"""

from dataclasses import dataclass

import numpy as np

from . import metrics
from .questions import TYPES, Question, QuestionSet

DRAWS, LEVEL = 10_000, 0.95
RULES = {
    "contains": "right if it contains a known answer (OCRBench's rule)",
    "exact": "right if it is a known answer",
    "vqa": "VQA accuracy, by how many people gave the answer (TextVQA)",
    "anls": "ANLS, by how few characters are wrong (DocVQA)",
    "choice": "right if it names the letter of the right choice (MMMU)",
}
PUBLISHED = {type_: "Text Recognition" if position < 6 else type_ for position, type_ in enumerate(TYPES)}
"""OCRBench's type -> the key of its published table."""


def alike(text: str, math: bool) -> str:
    """The form in which answers and predictions are compared."""
    if math:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.lower().strip().replace("\n", " ")


def is_right(question: Question, prediction: str | None, exact: bool = False) -> bool:
    """Whether the prediction answers the question, by OCRBench's rule or, if `exact`, by equality (see above). None,
    for no answer at all, is wrong.
    """
    if prediction is None:
        return False
    said = alike(prediction, question.math)
    answers = [alike(answer, question.math) for answer in question.answers]
    return said in answers if exact else any(answer in said for answer in answers)


def points(question: Question, prediction: str | None, rule: str) -> float:
    """What a prediction is worth by one of RULES, 0 to 1; a question with choices is scored as one. None, for no answer
    at all, is worth 0.
    """
    if prediction is None:
        return 0.0
    if question.choices:
        return float(metrics.choice(prediction, question.choices) in question.answers)
    if rule in ("vqa", "anls"):
        return (metrics.vqa if rule == "vqa" else metrics.anls)(prediction, question.answers)
    return float(is_right(question, prediction, rule == "exact"))


def table(data: QuestionSet, scored: list[float]) -> dict[str, dict]:
    """Key -> {"right", "of"}, in the published order, "Final Score" (OCRBench) or "Right" (others) last: that one
    counts all questions. scored: points of each question; "right" is their sum, a whole number where all are.

    OCRBench's keys are all there, even where the file has no question of a type.
    """
    total = "Final Score" if data.ocrbench else "Right"
    sums = dict.fromkeys([*(PUBLISHED.values() if data.ocrbench else ()), *_categories(data), total], 0.0)
    counts = dict.fromkeys(sums, 0)
    for question, worth in zip(data.questions, scored, strict=True):
        keys = [total]
        if question.category is not None:
            keys.append(PUBLISHED[question.category] if data.ocrbench else question.category)
        for key in keys:
            sums[key] += worth
            counts[key] += 1
    return {key: {"right": whole(worth), "of": counts[key]} for key, worth in sums.items()}


def whole(worth: float) -> int | float:
    """A sum of points as it is written: an int where it is one, else to four digits."""
    return int(worth) if worth == int(worth) else round(worth, 4)


def _categories(data: QuestionSet) -> list[str]:
    """A JSONL's categories in order of appearance."""
    return (
        []
        if data.ocrbench
        else list(dict.fromkeys(question.category for question in data.questions if question.category is not None))
    )


def published(rows: dict[str, dict]) -> dict[str, float]:
    """OCRBench's own summary: points per key, "Final Score" and "Final Score Norm", which is defined for the full 1000
    items as points / 10.
    """
    points = {key: row["right"] for key, row in rows.items()}
    return {**points, "Final Score Norm": points["Final Score"] / 10}


@dataclass(frozen=True)
class Difference:
    """second - first in points of 100, with the bounds of its LEVEL confidence interval; lost, gained: indices of
    questions worth less or more than before.
    """

    points: float
    low: float
    high: float
    lost: list[int]
    gained: list[int]
    count: int

    @property
    def by(self) -> str:
        """How the interval was found."""
        return "paired bootstrap" if self.lost or self.gained else "exact: no answer differs"

    def exceeds(self, max_drop: float) -> bool:
        """Whether second is more than max_drop points below first: 1 of 100 answers does not exceed 1."""
        return -self.points * self.count > max_drop * self.count + 1e-6  # sums and products may be a hair off


def compare(first: list[float], second: list[float], seed: int = 0) -> Difference:
    """Two models' points on the same questions, in the same order. Raises ValueError when their numbers differ or are
    0.
    """
    change = np.array([b - a for a, b in zip(first, second, strict=True)], dtype=np.float64)
    n = len(change)
    if n == 0:
        raise ValueError("no questions to compare on")
    values, counts = np.unique([*change, -1, 0, 1], return_counts=True)
    counts[np.searchsorted(values, [-1, 0, 1])] -= 1  # these three are always drawn, so that a seed keeps its meaning
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=DRAWS)  # [DRAWS, V]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(100 * (draws @ values) / n, [tail, 100 - tail])
    lost, gained = (np.flatnonzero(side).tolist() for side in (change < 0, change > 0))
    if not lost and not gained:  # nothing to resample: how often can answers differ, and n show none? (1 - p)^n
        low, high = (sign * 100 * (1 - (0.5 - LEVEL / 2) ** (1 / n)) for sign in (-1, 1))
    return Difference(100 * float(change.sum()) / n, float(low), float(high), lost, gained, n)
