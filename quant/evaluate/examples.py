"""Questions to look at: small pictures with what each model said, for the report."""

import hashlib
from collections.abc import Sequence

from PIL import Image

from ..inputs import video
from ..inputs.images import thumbnail
from .questions import Question, QuestionSet
from .scoring import whole

MOST, MOST_FLIPS = 60, 40  # of the questions, and of those whose points differ


def examples(data: QuestionSet, predictions: list[list[str | None]], scored: list[list[float]]) -> list[dict]:
    """Up to MOST questions, those first whose points differ, then those that no model has whole, then others; within
    each by their keys, so that it is the same choice every time.

    predictions, scored: of one or two models, a list each with a text or None and points for every question. Each
    example has where, prompt, answers, predictions and points of each model, and image: a data URL.
    """
    order = sorted(range(len(data.questions)), key=lambda number: _rank(data.questions[number], _at(scored, number)))
    flips = [number for number in order if len(set(_at(scored, number))) > 1]
    chosen = flips[:MOST_FLIPS] + [number for number in order if number not in set(flips)]
    return [_example(data.questions[number], _at(predictions, number), _at(scored, number)) for number in chosen[:MOST]]


def _at(sides: list[list], number: int) -> list:
    return [side[number] for side in sides]


def _rank(question: Question, scored: Sequence[float]) -> tuple:
    return min(scored) == 1, hashlib.sha256(question.key.encode()).digest()


def _shown(question: Question) -> Image.Image:
    """The first image, else the first frame."""
    if question.images:
        return question.open()[0]
    _, frames = video.frames(question.videos[0], lambda total, rate: [0])
    return Image.fromarray(next(frames))


def _example(question: Question, predictions: list[str | None], scored: list[float]) -> dict:
    return {
        "where": question.where,
        "prompt": question.prompt,
        "answers": list(question.answers),
        "predictions": predictions,
        "points": [whole(worth) for worth in scored],
        "image": thumbnail(_shown(question)),
    }
