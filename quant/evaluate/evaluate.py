"""One or two models on the same questions: every answer kept, the scores side by side, the difference with its
confidence interval.

A model is a local_model.LocalModel or an endpoint.Endpoint. They are asked one after the other, so that only one is in
memory.

The results file is a log of JSON lines, one appended per answer the moment it is there:
    {"model": F, "is": describe()}                                F = sha256 of describe(), for the reader of the file
    {"model": F, "question": key, "prediction": text, "seconds": s}
    {"model": F, "question": key, "error": reason}                asked again by the next run
A run first takes from it what is known under the same F and key. So an interrupted run goes on where it ended, another
scoring rule or more questions ask nothing twice, and another model, setting or image cannot be mistaken for this one. A
last line that a crash cut off is ignored. Left out: sampling at a temperature (greedy always), several answers per
question.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..base.console import Reporter, duration
from ..base.errors import QuantError, UsageError
from ..inputs.images import one_line
from .endpoint import Unanswered
from .questions import Question, QuestionSet
from .scoring import LEVEL, Difference, compare, is_right, published, table

GIVE_UP = 5  # questions in a row without an answer: the server is gone, not the question hard


class Model(Protocol):
    """What can be asked."""

    def describe(self) -> dict:
        """What answers depend on."""
        ...

    def answer(self, question: Question) -> str:
        """Raises Unanswered where this question gets no answer, and others may."""
        ...


@dataclass
class Answers:
    """What a model said.

    name: how it is called in tables; model: its describe(); predictions: a text per question, None without an answer;
    errors: question's index -> why it has none; seconds: that all answers took; troubles: kind -> how often a request
    failed and was sent again.
    """

    name: str
    model: dict
    predictions: list[str | None]
    errors: dict[int, str]
    seconds: float
    troubles: dict[str, int]


class Results:
    """The log of answers, at `file`. Raises UsageError when it cannot be written, QuantError for a line that is none of
    ours.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        self.known: dict[tuple[str, str], tuple[str, float]] = {}  # (fingerprint, question) -> (prediction, seconds)
        self.models: set[str] = set()  # fingerprints
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.log = open(self.file, "a+b", buffering=0)
            self.log.seek(0)
            data = self.log.read()
        except OSError as error:
            raise UsageError(f"--results {self.file}: {error.strerror}") from None
        lines = data.split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            self._remember(number, line)
        if lines[-1]:  # a crash cut it off
            os.ftruncate(self.log.fileno(), len(data) - len(lines[-1]))

    def _remember(self, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self.models.add(entry["model"])
            if "prediction" in entry:
                self.known[entry["model"], entry["question"]] = entry["prediction"], entry["seconds"]
        except (ValueError, KeyError, TypeError):
            raise QuantError(
                f"{self.file}:{number}: is no line of an evaluation's results; choose another --results"
            ) from None

    def begin(self, model: dict) -> str:
        """The fingerprint (sha256, in hex) of a model's description, which is noted if it is new."""
        fingerprint = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
        if fingerprint not in self.models:
            self._append({"model": fingerprint, "is": model})
        return fingerprint

    def add(self, fingerprint: str, key: str, prediction: str, seconds: float) -> None:
        """Note an answer. Raises QuantError when the log cannot be written."""
        self.known[fingerprint, key] = prediction, seconds
        self._append({"model": fingerprint, "question": key, "prediction": prediction, "seconds": round(seconds, 3)})

    def add_error(self, fingerprint: str, key: str, reason: str) -> None:
        """Note that a question got no answer, and why."""
        self._append({"model": fingerprint, "question": key, "error": reason})

    def _append(self, entry: dict) -> None:
        try:
            self.log.write(json.dumps(entry).encode() + b"\n")  # one write: a line is whole or cut off, never mixed
        except OSError as error:
            raise QuantError(f"{self.file}: {error.strerror}; what is in it stays, run again to go on") from None


def ask(name: str, model: Model, data: QuestionSet, results: Results, reporter: Reporter) -> Answers:
    """Every question of `data` that has no answer in `results` yet. Raises QuantError when GIVE_UP questions in a row
    got none.
    """
    described = model.describe()
    fingerprint = results.begin(described)
    answers = Answers(name, described, [], {}, 0.0, {})
    asked = [question.key for question in data.questions]
    old = sum((fingerprint, key) in results.known for key in asked)
    reporter.line(
        f"{name:<10} {len(asked)} questions" + (f", {old} of them answered before ({results.file})" if old else "")
    )
    silent = 0
    start = time.perf_counter()
    with reporter.progress(name, len(asked)) as advance:
        for number, question in enumerate(data.questions):
            if (fingerprint, question.key) not in results.known:
                began = time.perf_counter()
                try:
                    results.add(fingerprint, question.key, model.answer(question), time.perf_counter() - began)
                    silent = 0
                except Unanswered as error:
                    silent += 1
                    answers.errors[number] = one_line(error)
                    results.add_error(fingerprint, question.key, one_line(error))
                    if silent == GIVE_UP:
                        kept = f"what was answered is kept in {results.file}, run again to go on"
                        raise QuantError(
                            f"{name}: {GIVE_UP} questions in a row without an answer; {kept}. The last:"
                            f" {answers.errors[number]}"
                        ) from None
            known = results.known.get((fingerprint, question.key))
            answers.predictions.append(known[0] if known else None)
            answers.seconds += known[1] if known else 0.0
            advance()
            if old < len(asked) and (number + 1) * 10 // len(asked) > number * 10 // len(asked):
                reporter.line(f"{name:<10} {number + 1:>5} of {len(asked)}   {duration(time.perf_counter() - start)}")
    answers.troubles = dict(getattr(model, "troubles", {}))
    return answers


def summarize(data: QuestionSet, sides: list[Answers], *, exact: bool, max_drop: float, seed: int) -> dict:
    """What --json writes and the report reads: scores of one or two sides; of two, flips and difference, and whether
    the drop is allowed.

    A question without an answer counts as wrong, and no verdict that rests on missing answers is "passed".
    """
    right = [
        [is_right(question, said, exact) for question, said in zip(data.questions, side.predictions)] for side in sides
    ]
    summary: dict = {
        "data": {
            "file": data.file.name,
            "questions": len(data.questions),
            "sha256": data.digest,
            "ocrbench": data.ocrbench,
        },
        "match": "exact" if exact else "contains",
        "sides": [_side(data, side, points) for side, points in zip(sides, right)],
        "passed": not any(side.errors for side in sides),
    }
    if len(sides) == 2:
        difference = compare(right[0], right[1], seed)
        summary["difference"] = {
            "points": difference.points,
            "interval": [difference.low, difference.high],
            "level": LEVEL,
            "lost": len(difference.lost),
            "gained": len(difference.gained),
            "max_drop": max_drop,
            "exceeded": difference.exceeds(max_drop),
        }
        summary["flips"] = _flips(data, sides, difference)
        summary["passed"] = summary["passed"] and not difference.exceeds(max_drop)
    return summary


def _side(data: QuestionSet, side: Answers, right: list[bool]) -> dict:
    rows = table(data, right)
    return {
        "name": side.name,
        "model": side.model,
        "table": rows,
        **({"published": published(rows)} if data.ocrbench else {}),
        "unanswered": [{"where": data.questions[number].where, "why": why} for number, why in side.errors.items()],
        "troubles": side.troubles,
        "seconds": round(side.seconds, 1),
    }


def _flips(data: QuestionSet, sides: list[Answers], difference: Difference) -> list[dict]:
    """The questions that one side answers and the other does not, in the file's order."""
    lost = set(difference.lost)
    return [
        {
            "where": data.questions[number].where,
            "prompt": data.questions[number].prompt,
            "answers": list(data.questions[number].answers),
            "lost": number in lost,
            "predictions": [side.predictions[number] for side in sides],
        }
        for number in sorted(difference.lost + difference.gained)
    ]
