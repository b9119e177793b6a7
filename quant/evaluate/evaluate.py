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

A model with a batch_size above 1 is asked so many questions at a time, and each answer is noted when all are there.
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
from .examples import examples
from .questions import Question, QuestionSet
from .scoring import LEVEL, Difference, compare, points, published, table

GIVE_UP = 5  # questions in a row without an answer: the server is gone, not the question hard


class Model(Protocol):
    """What can be asked. batch_size: how many questions at a time, 1 where it has none."""

    def describe(self) -> dict:
        """What answers depend on."""
        ...

    def answer(self, question: Question) -> str:
        """Raises Unanswered where this question gets no answer, and others may. One with a batch_size has
        answers(questions) beside it: a text or an Unanswered for each.
        """
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
    unknown = {q.key: q for q in data.questions if (fingerprint, q.key) not in results.known}
    silent, start, done, size = 0, time.perf_counter(), old, getattr(model, "batch_size", 1)
    errors: dict[str, str] = {}  # question -> why it has no answer
    with reporter.progress(name, len(asked)) as advance:
        for _ in range(old):
            advance()
        for first in range(0, len(unknown), size):
            batch = list(unknown.values())[first : first + size]
            began = time.perf_counter()
            for question, said in zip(batch, _said(model, batch)):
                if isinstance(said, str):
                    results.add(fingerprint, question.key, said, (time.perf_counter() - began) / len(batch))
                    silent = 0
                    continue
                silent += 1
                errors[question.key] = one_line(said)
                results.add_error(fingerprint, question.key, one_line(said))
                if silent == max(GIVE_UP, size):
                    kept = f"what was answered is kept in {results.file}, run again to go on"
                    raise QuantError(
                        f"{name}: {silent} questions in a row without an answer; {kept}. The last: {one_line(said)}"
                    )
            before, done = done, done + len(batch)
            for _ in batch:
                advance()
            if done * 10 // len(asked) > before * 10 // len(asked):
                reporter.line(f"{name:<10} {done:>5} of {len(asked)}   {duration(time.perf_counter() - start)}")
    for number, key in enumerate(asked):
        known = results.known.get((fingerprint, key))
        answers.predictions.append(known[0] if known else None)
        answers.seconds += known[1] if known else 0.0
        if known is None:
            answers.errors[number] = errors[key]
    answers.troubles = dict(getattr(model, "troubles", {}))
    return answers


def _said(model: Model, batch: list[Question]) -> list[str | Unanswered]:
    if len(batch) > 1:
        return model.answers(batch)  # type: ignore[attr-defined]
    try:
        return [model.answer(batch[0])]
    except Unanswered as error:
        return [error]


def summarize(data: QuestionSet, sides: list[Answers], *, rule: str, max_drop: float, seed: int) -> dict:
    """What --json writes and the report reads: scores of one or two sides; of two, flips and difference, and whether
    the drop is allowed. rule: of scoring.RULES.

    A question without an answer counts as wrong, and no verdict that rests on missing answers is "passed".
    """
    right = [
        [points(question, said, rule) for question, said in zip(data.questions, side.predictions)] for side in sides
    ]
    summary: dict = {
        "data": {
            "file": data.file.name,
            "questions": len(data.questions),
            "sha256": data.digest,
            "ocrbench": data.ocrbench,
            "left_out": dict(data.left_out),
        },
        "identity": {
            "export" if side.model["arithmetic"] == "int8" else "float": side.model["files"]
            for side in sides
            if "files" in side.model
        },
        "match": "choice" if all(question.choices for question in data.questions) else rule,
        "sides": [_side(data, side, scored) for side, scored in zip(sides, right)],
        "passed": not any(side.errors for side in sides),
    }
    if len(sides) == 2:
        difference = compare(right[0], right[1], seed)
        summary["difference"] = {
            "points": difference.points,
            "interval": [difference.low, difference.high],
            "level": LEVEL,
            "by": difference.by,
            "lost": len(difference.lost),
            "gained": len(difference.gained),
            "max_drop": max_drop,
            "exceeded": difference.exceeds(max_drop),
        }
        summary["flips"] = _flips(data, sides, difference)
        summary["passed"] = summary["passed"] and not difference.exceeds(max_drop)
    summary["examples"] = examples(data, [side.predictions for side in sides], right)
    return summary


def _side(data: QuestionSet, side: Answers, scored: list[float]) -> dict:
    rows = table(data, scored)
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
    """The questions that one side answers better than the other, in the file's order."""
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
