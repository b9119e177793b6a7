"""Right or wrong, the published table, and how sure a difference is.

OCRBench's rule (Liu et al., arXiv 2305.07895): a prediction is right if it contains any of the answers, both made alike
before:
    text                lower case, white space at the ends cut off, newlines to spaces
    handwritten math    white space at the ends and every space and newline removed; case counts
"exact" asks for equality in the place of containment: for models that answer with nothing else, and answers so short
that much text contains them.

Two models on the same n questions: d_i = right_second - right_first in {-1, 0, 1}, difference = 100 mean(d) points. Its
confidence interval is a paired bootstrap's: questions drawn n times with replacement, DRAWS times, percentiles of the
means. Of a draw only counts how often it hits a -1, a 0 and a 1, which is multinomial: so these counts are drawn, not
the questions. Where not one answer flips, the interval is [0, 0]; by the rule of three up to 3/n of all questions may
flip nevertheless (95 %).
"""

from dataclasses import dataclass

import numpy as np

from .questions import TYPES, Question, QuestionSet

DRAWS, LEVEL = 10_000, 0.95
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


def table(data: QuestionSet, right: list[bool]) -> dict[str, dict]:
    """Key -> {"right", "of"}, in the published order, "Final Score" (OCRBench) or "Right" (others) last: that one
    counts all questions.

    OCRBench's keys are all there, even where the file has no question of a type.
    """
    total = "Final Score" if data.ocrbench else "Right"
    rows = {
        key: {"right": 0, "of": 0}
        for key in [*(PUBLISHED.values() if data.ocrbench else ()), *_categories(data), total]
    }
    for question, point in zip(data.questions, right, strict=True):
        keys = [total]
        if question.category is not None:
            keys.append(PUBLISHED[question.category] if data.ocrbench else question.category)
        for key in keys:
            rows[key]["right"] += int(point)
            rows[key]["of"] += 1
    return rows


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
    questions that flipped.
    """

    points: float
    low: float
    high: float
    lost: list[int]
    gained: list[int]
    count: int

    def exceeds(self, max_drop: float) -> bool:
        """Whether second is more than max_drop points below first. In whole answers, so that 1 of 100 does not exceed
        1.
        """
        return 100 * (len(self.lost) - len(self.gained)) > max_drop * self.count + 1e-9  # the product may be a hair off


def compare(first: list[bool], second: list[bool], seed: int = 0) -> Difference:
    """Two models' right and wrong on the same questions, in the same order. Raises ValueError when their numbers differ
    or are 0.
    """
    lost = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a and not b]
    gained = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if b and not a]
    n = len(first)
    if n == 0:
        raise ValueError("no questions to compare on")
    shares = [len(lost) / n, 1 - (len(lost) + len(gained)) / n, len(gained) / n]
    counts = np.random.default_rng(seed).multinomial(n, shares, size=DRAWS)  # [DRAWS, 3]
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(100 * (counts[:, 2] - counts[:, 0]) / n, [tail, 100 - tail])
    return Difference(100 * (len(gained) - len(lost)) / n, float(low), float(high), lost, gained, n)
