"""One or two models on the same questions: every answer kept, the scores side by side, the difference with its
confidence interval.

A model here is anything with describe() -> dict and answer(Question) -> str: LocalModel below (the float checkpoint, or
an export through runtime.py) or endpoint.Endpoint. They are asked one after the other, so that only one is in memory.

The results file is a log of JSON lines, one appended per answer the moment it is there:
    {"model": F, "is": describe()}                                F = sha256 of describe(), for the reader of the file
    {"model": F, "question": key, "prediction": text, "seconds": s}
    {"model": F, "question": key, "error": reason}                asked again by the next run
A run first takes from it what is known under the same F and key. So an interrupted run goes on where it ended, another scoring rule or more
questions ask nothing twice, and another model, setting or image cannot be mistaken for this one. A last line that a crash cut off is
ignored. Left out: sampling at a temperature (greedy always), several answers per question.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..base.console import Reporter, duration
from ..base.errors import QuantError, UsageError
from ..export.recipe import RECIPE, RUN_LOG
from ..inputs.images import one_line
from .endpoint import Unanswered
from .questions import Question, QuestionSet
from .scoring import LEVEL, Difference, compare, is_right, published, table

BULKY = {".safetensors", ".bin", ".pt", ".pth"}
GIVE_UP = 5  # questions in a row without an answer: the server is gone, not the question hard


class LocalModel:
    """directory: a float checkpoint, or with int8=True an export, which computes as the server would. Loaded with the
    first question.

    Raises UsageError or QuantError as Checkpoint and reader.read do.
    """

    def __init__(
        self,
        directory: str | Path,
        int8: bool,
        *,
        max_new_tokens: int,
        max_pixels: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ):
        from ..export import reader
        from ..files.checkpoint import Checkpoint
        from ..model.device import pick_device

        source = reader.read(directory) if int8 else Checkpoint(directory)
        self.directory, self.int8, self.max_new_tokens = source.dir, int8, max_new_tokens
        self.max_pixels, self.device, self.trust_remote_code = max_pixels, pick_device(device), trust_remote_code
        self.loaded = None

    def describe(self) -> dict:
        """What answers depend on."""
        import torch
        import transformers

        return {
            "arithmetic": "int8" if self.int8 else "float",
            "files": files_digest(self.directory),
            "max_new_tokens": self.max_new_tokens,
            "max_pixels": self.max_pixels,
            "device": self.device,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def answer(self, question: Question) -> str:
        """Greedy. Raises Unanswered where the processor refuses the image or the prompt."""
        import torch

        from ..verify import runtime

        if self.loaded is None:
            load = runtime.load if self.int8 else runtime.load_float
            self.loaded = load(
                self.directory, self.device, max_pixels=self.max_pixels, trust_remote_code=self.trust_remote_code
            )
        model, encoder = self.loaded
        try:
            inputs = encoder(question.open(), question.prompt)
        except QuantError as error:
            raise Unanswered(f"{question.where}: {error}") from None
        with torch.inference_mode():
            inputs = {name: value.to(self.device) for name, value in inputs.items()}
            tokens = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, **NEUTRAL)
        return encoder.decode(tokens[0, inputs["input_ids"].shape[1] :])


def files_digest(directory: Path) -> str:
    """sha256 over a model's files: weights by name, size and time, all others by their content, but for the records
    that no model reads.
    """
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.name not in (RECIPE, RUN_LOG):
            state = file.stat()
            known = f"{state.st_size} {state.st_mtime_ns}".encode() if file.suffix in BULKY else file.read_bytes()
            digest.update(f"{file.name}\0".encode() + hashlib.sha256(known).digest())
    return digest.hexdigest()


# generation_config.json may set what only sampling uses, which generate() warns of on every call.
NEUTRAL = {"temperature": None, "top_p": None, "top_k": None}


@dataclass
class Answers:
    """What a model said. name: how it is called in tables; predictions: a text per question, None without an answer,
    errors by index.
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
        self.file, self.known, self.models = Path(file), {}, set()
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
        """The fingerprint of a model's description."""
        fingerprint = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
        if fingerprint not in self.models:
            self._append({"model": fingerprint, "is": model})
        return fingerprint

    def add(self, fingerprint: str, key: str, prediction: str, seconds: float) -> None:
        self.known[fingerprint, key] = prediction, seconds
        self._append({"model": fingerprint, "question": key, "prediction": prediction, "seconds": round(seconds, 3)})

    def add_error(self, fingerprint: str, key: str, reason: str) -> None:
        self._append({"model": fingerprint, "question": key, "error": reason})

    def _append(self, entry: dict) -> None:
        try:
            self.log.write(json.dumps(entry).encode() + b"\n")  # one write: a line is whole or cut off, never mixed
        except OSError as error:
            raise QuantError(f"{self.file}: {error.strerror}; what is in it stays, run again to go on") from None


def ask(name: str, model, data: QuestionSet, results: Results, reporter: Reporter) -> Answers:
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
            prediction, seconds = results.known.get((fingerprint, question.key), (None, 0.0))
            answers.predictions.append(prediction)
            answers.seconds += seconds
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
    summary = {
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
        difference = compare(*right, seed=seed)
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
        summary["passed"] &= not difference.exceeds(max_drop)
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
