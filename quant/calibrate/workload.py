"""How much there is to do: multiply-adds, tokens, bytes. From shapes and samples alone."""

from math import prod

from ..export.layout import export_layout
from ..families.family import Tower
from .calibrator import Calibrator


def tokens(calibrator: Calibrator, tower: Tower) -> int:
    """Tokens of all calibration samples in the tower's blocks."""
    return sum(tower.tokens(calibrator.checkpoint.config, inputs) for inputs in calibrator.samples.inputs)


def multiply_adds(calibrator: Calibrator) -> tuple[int, int]:
    """(in int8, in all linears) for the calibration samples. Linears outside the blocks count once per language token;
    attention's own products, which no server computes in int8, are left out.
    """
    seen = {tower.name: tokens(calibrator, tower) for tower in calibrator.family.towers}
    int8 = total = 0
    for decision in calibrator.plan.decisions.values():
        block = calibrator.family.block_of(decision.name)
        work = prod(decision.shape) * seen[block[0].name if block else "language"]
        total += work
        int8 += work if decision.int8 else 0
    return int8, total


def export_bytes(calibrator: Calibrator) -> int:
    """Size of the weight files that will be written."""
    layout = export_layout(calibrator.checkpoint, calibrator.plan, calibrator.export_dtype)
    return sum(prod(shape) * dtype.itemsize for dtype, shape in layout.values())
