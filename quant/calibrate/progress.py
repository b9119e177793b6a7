"""How far a job is: what its blocks cost, in proportion, so that the time left is that of the whole job."""

from typing import TYPE_CHECKING

from ..families.family import Tower

if TYPE_CHECKING:
    from .calibrator import Calibrator
    from .work import State

BESIDE = 4096  # what a block costs beside its samples, in tokens: reading, the search, rounding, writing


def cost(calibrator: "Calibrator", tower: Tower) -> float:
    """Of one block of a tower: its bytes, times the tokens that enter it and what it costs without any."""
    checkpoint, prefix = calibrator.checkpoint, tower.block(0)
    weights = sum(info.nbytes for name, info in checkpoint.tensors.items() if name.startswith(prefix))
    return weights * (BESIDE + sum(tower.tokens(checkpoint.config, inputs) for inputs in calibrator.samples.inputs))


def amount(calibrator: "Calibrator", state: "State") -> float:
    """Of all blocks that are still to be done."""
    config, towers = calibrator.checkpoint.config, () if state.outside else calibrator.family.towers
    return sum(cost(calibrator, tower) * (tower.used(config) - state.done.get(tower.name, 0)) for tower in towers)


def name_length(calibrator: "Calibrator") -> int:
    """Of the longest block's name."""
    config = calibrator.checkpoint.config
    return max(len(tower.block(tower.used(config) - 1)) for tower in calibrator.family.towers) - 1
