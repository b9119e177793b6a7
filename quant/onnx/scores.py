"""A model's answers to images, what they are worth, and how sure the difference of two models is: a paired bootstrap,
items drawn with replacement, the same for both; percentiles of the differences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from .labels import Item, decode
from .sessions import Session
from .tasks import Signature, Task
from .tasks.layout import Layout

DRAWS, LAYOUT_DRAWS, LEVEL = 2000, 50, 0.95


@dataclass(frozen=True)
class Reader:
    """A task with a model's signature: image -> answer, by any session of that model."""

    task: Task
    signature: Signature

    def answers(self, model: ModelProto, name: str, items: Sequence[Item], tick: Callable[[], Any] = int) -> list[Any]:
        """Of one model to all images, one at a time."""
        session, said = Session(model, name), []
        for item in items:
            prepared = self.task.prepare(decode(item.file), self.signature)
            said.append(self.task.answer(session.run(prepared.feeds), prepared, self.signature))
            tick()
        return said

    def feeds(self, item: Item) -> dict[str, np.ndarray]:
        """An image as the model's inputs."""
        return self.task.prepare(decode(item.file), self.signature).feeds

    def tallies(self, answers: Sequence[Any], labels: Sequence[Any]) -> np.ndarray:
        """[items, K]."""
        return np.array([self.task.tally(said, asked) for said, asked in zip(answers, labels, strict=True)])

    def points(self, tallies: np.ndarray) -> dict[str, float]:
        """Metric -> points of 100."""
        if isinstance(self.task, Layout):
            return self.task.score(list(tallies))
        return {name: float(value) for name, value in self.task.points(tallies.sum(0)).items()}

    def interval(self, one: np.ndarray, other: np.ndarray, seed: int = 0) -> tuple[float, float]:
        """The interval of other - one, in points of the first metric; tallies [items, K]."""
        random, metric, count = np.random.default_rng(seed), self.task.metrics[0], len(one)
        if isinstance(self.task, Layout):
            drawn = [random.integers(0, count, count) for _ in range(LAYOUT_DRAWS)]
            gains = np.array([self.points(other[each])[metric] - self.points(one[each])[metric] for each in drawn])
        else:
            times = random.multinomial(count, np.full(count, 1 / count), DRAWS).astype(float)
            gains = self.task.points(times @ other)[metric] - self.task.points(times @ one)[metric]
        low, high = np.percentile(gains, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        return float(low), float(high)


def signature_of(model: ModelProto, words: Sequence[str] = ()) -> Signature:
    """A graph's inputs and outputs. words: in the place of the model's own `character`."""
    shape = lambda entry: tuple(size.dim_value for size in entry.type.tensor_type.shape.dim)
    own = [entry.value.splitlines() for entry in model.metadata_props if entry.key == "character"]
    constants = {tensor.name for tensor in model.graph.initializer}
    return Signature(
        {entry.name: shape(entry) for entry in model.graph.input if entry.name not in constants},
        {entry.name: shape(entry) for entry in model.graph.output},
        tuple(words or (own[0] if own else ())),
    )
