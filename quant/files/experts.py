"""Experts that a checkpoint keeps in two tensors, as the linears that they are and that servers name:

    P.gate_up_proj [E, 2I, H]    P.0.gate_proj.weight [I, H], P.0.up_proj.weight [I, H], P.1.gate_proj.weight ...
    P.down_proj    [E, H, I]     P.0.down_proj.weight [H, I], ...

Some checkpoints hold both the other way round, [E, H, 2I] and [E, I, H]. Which it is the width H tells, of the first
tensor, or where 2I = H of the second. Each linear is read by itself: no more than one of them is in memory twice.
"""

from collections.abc import Mapping
from typing import NamedTuple

GATE_UP, DOWN = "gate_up_proj", "down_proj"


class Piece(NamedTuple):
    """Where an expert's linear [O, I] lies in a tensor of all experts: rows first ... first + O of its matrix, or,
    where it is turned, these columns, transposed. stored: the matrix's shape in the file.
    """

    tensor: str
    expert: int
    first: int
    shape: tuple[int, int]
    turned: bool
    stored: tuple[int, int]


def width(config: dict) -> int | None:
    """The width H of the language model, as config.json says it."""
    text = config.get("text_config", config)
    found = text.get("hidden_size", config.get("hidden_size")) if isinstance(text, dict) else None
    return found if type(found) is int else None


def pieces(shapes: Mapping[str, tuple[int, ...]], hidden: int | None) -> dict[str, list[tuple[str, Piece]]]:
    """Fused tensor -> (name, Piece) of the linears in it. shapes: of all tensors by name; hidden: the width H."""
    found: dict[str, list[tuple[str, Piece]]] = {}
    for name, first in shapes.items():
        prefix, _, last = name.rpartition(".")
        second = shapes.get(f"{prefix}.{DOWN}", ())
        if last != GATE_UP or len(first) != 3 or len(second) != 3 or hidden is None:
            continue
        turned = first[2] != hidden if first[1] != first[2] else second[1] != hidden
        inner = (first[2] if turned else first[1]) // 2
        for expert in range(first[0]):
            for place, part in enumerate(("gate_proj", "up_proj")):
                piece = Piece(name, expert, place * inner, (inner, hidden), turned, first[1:])
                found.setdefault(name, []).append((f"{prefix}.{expert}.{part}.weight", piece))
            piece = Piece(f"{prefix}.{DOWN}", expert, 0, (hidden, inner), turned, second[1:])
            found.setdefault(piece.tensor, []).append((f"{prefix}.{expert}.{DOWN}.weight", piece))
    return found
