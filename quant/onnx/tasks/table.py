"""Structure of a table, as SLANet answers it: the image's longer side becomes SIDE, padded with black; of the outputs
the most likely token of every step, up to the end. Scored on the structure alone, without the cells' text: TEDS (Zhong
et al., arXiv 1911.10683), 1 - (edits from tree to tree) / (nodes of the larger tree), and exact structures.

The edits are counted by APTED, a change of a tag or of a cell's spans being one edit.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from apted import APTED, Config

from .task import MEAN, STD, Prepared, Signature, chw, shares, words_of

SIDE = 488
BEGIN, END = "sos", "eos"
SPAN = re.compile(r'(colspan|rowspan)="(\d+)"')


class Table:
    """answer: list of tokens; label: {"structure": {"tokens"}} as PubTabNet has it."""

    name = "table"
    metrics = ("TEDS", "exact structures")

    def fits(self, signature: Signature) -> str | None:
        """None where two outputs [N, steps, classes] and [N, steps, 4 or 8] are there."""
        shapes = list(signature.outputs.values())
        if len(shapes) == 2 and all(len(shape) == 3 for shape in shapes) and {4, 8} & {shape[2] for shape in shapes}:
            return None
        return f"tokens [N, steps, classes] and boxes [N, steps, 4 or 8] are expected, the outputs are {shapes}"

    def prepare(self, image: np.ndarray, signature: Signature) -> Prepared:
        """uint8 [H, W, 3] -> [1, 3, 488, 488], 0 where it is padded."""
        height, width = image.shape[:2]
        side = signature.size[0] or SIDE
        ratio = side / max(height, width)
        rows, columns = max(1, int(height * ratio)), max(1, int(width * ratio))
        padded = np.zeros((1, 3, side, side), np.float32)
        padded[..., :rows, :columns] = chw(cv2.resize(image, (columns, rows)), MEAN, STD)
        return Prepared({signature.image: padded}, height, width)

    def answer(self, outputs: list[np.ndarray], prepared: Prepared, signature: Signature) -> list[str]:
        """[1, steps, classes] -> tokens. Raises UsageError where the model brings no tokens."""
        names = vocabulary(words_of(signature, "tokens"))
        chances = next(value for value in outputs if value.shape[2] not in (4, 8))[0]
        tokens = []
        for step, best in enumerate(chances.argmax(1)):
            name = names[best] if best < len(names) else END
            if name == END and step:
                break
            if name not in (BEGIN, END):
                tokens.append(name)
        return tokens

    def as_label(self, answer: list[str]) -> dict:
        """The answer in a label's form."""
        return {"structure": {"tokens": answer}}

    def tally(self, answer: list[str], label: Any) -> np.ndarray:
        """[TEDS, exact, 1]."""
        similar = teds(plain(answer), plain(label["structure"]["tokens"]))
        return np.array([similar, similar == 1.0, 1], np.float64)

    def points(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """[..., 3] -> the scores."""
        return shares(sums, self.metrics)


def vocabulary(words: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of the output: PaddleOCR takes an empty cell without spans as one token."""
    words = tuple(word for word in words if word != "<td>")
    return (BEGIN, *words, *(() if "<td></td>" in words else ("<td></td>",)), END)


@dataclass(frozen=True)
class Node:
    """An element of a table. name: its tag, with the spans of a cell."""

    name: str
    children: tuple["Node", ...] = ()


class _Edits(Config):
    """Every edit costs one."""

    def rename(self, node1: Node, node2: Node) -> int:
        return int(node1.name != node2.name)

    def children(self, node: Node) -> tuple[Node, ...]:
        return node.children


def plain(tokens: list[str]) -> tuple[str, ...]:
    """Tokens -> rows: "<thead>", "<tr>", and a cell as "td 2 1", its spans across and down; ends are left out."""
    found, spans = [], {"colspan": 1, "rowspan": 1}
    for token in tokens:
        for name, number in SPAN.findall(token):
            spans[name] = int(number)
        if token in ("<td>", ">", "<td></td>"):
            found.append(f"td {spans['colspan']} {spans['rowspan']}")
            spans = {"colspan": 1, "rowspan": 1}
        elif token in ("<thead>", "<tbody>", "<tr>"):
            found.append(token)
    return tuple(found)


def tree(rows: tuple[str, ...]) -> Node:
    """What `plain` made -> the table's tree."""
    parts: list[tuple[str, list[tuple[str, list[Node]]]]] = []
    for name in rows:
        if name in ("<thead>", "<tbody>"):
            parts.append((name, []))
            continue
        if not parts:
            parts.append(("<tbody>", []))
        if name == "<tr>" or not parts[-1][1]:
            parts[-1][1].append(("<tr>", []))
        if name != "<tr>":
            parts[-1][1][-1][1].append(Node(name))
    return Node(
        "table",
        tuple(Node(part, tuple(Node(row, tuple(cells)) for row, cells in lines)) for part, lines in parts),
    )


@lru_cache(maxsize=4096)
def teds(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    """The similarity of two tables as `plain` made them, 0 to 1."""
    if one == other:
        return 1.0
    trees = tree(one), tree(other)
    return max(0.0, 1 - APTED(*trees, _Edits()).compute_edit_distance() / max(map(_nodes, trees)))


def _nodes(node: Node) -> int:
    return 1 + sum(map(_nodes, node.children))
