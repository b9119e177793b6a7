"""A second model on the same parameters, for a forward whose blocks are something else (paused.py)."""

import copy
from collections.abc import Callable

from torch import nn

from ..families.family import Tower
from .streamed import StreamedModel


def twin(model: StreamedModel, block_forward: Callable[[Tower, int], Callable]) -> nn.Module:
    """The model with module objects of its own and the same parameters; block_forward(tower, index) is the `forward` of
    its blocks.
    """
    blocks = {
        id(model.block(tower, index)): (tower, index)
        for tower in model.family.towers
        for index in range(tower.blocks(model.checkpoint.config))
    }
    made: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            other = made[id(module)] = copy.copy(module)
            for name, value in vars(module).items():
                if isinstance(value, dict) and name.startswith("_") and name not in ("_parameters", "_modules"):
                    vars(other)[name] = value.copy()  # hooks and buffers; parameters are the model's own
            if id(module) in blocks:
                vars(other)["forward"] = block_forward(*blocks[id(module)])
            else:
                vars(other)["_modules"] = {name: child and copied(child) for name, child in module._modules.items()}
        return made[id(module)]

    return copied(model.model)
