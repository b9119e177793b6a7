"""Which layers stay float. In falling order of damage per multiply-add, layers become float until what is left, the sum
of the damages, is below ENOUGH, or the multiply-adds that are float reach BUDGET; passed over are a layer that does not
fit into it, and one that does less than its share of ENOUGH. Then the bound decides: while int8 loses more than it may
on the images that are held out, further layers follow in the same order, more at every turn. Where an image is right or
wrong, one of those may always change: of fewer than a hundred, one alone is more than a point, and says nothing.
"""

from collections.abc import Callable, Mapping, Sequence

from ..base.errors import QuantError
from .graph import Layer

BUDGET = 0.045  # of all multiply-adds
ENOUGH = 10**-4.0  # 40 dB at the model's end: more changed no score of the models tried


def ranking(layers: Sequence[Layer], damage: Mapping[str, float], costs: Mapping[str, int]) -> list[Layer]:
    """The layers by falling damage per multiply-add."""
    return sorted(layers, key=lambda layer: -damage[layer.name] / max(1, costs[layer.name]))


def matters(layer: Layer, damage: Mapping[str, float], count: int) -> bool:
    """Whether one of `count` layers does more than its share of ENOUGH."""
    return damage[layer.name] * count > ENOUGH


def first_choice(order: Sequence[Layer], damage: Mapping[str, float], costs: Mapping[str, int]) -> list[Layer]:
    """The layers that become float before anything is scored. costs: of every node, those without a weight too, which
    are float in any case.
    """
    weighted = {layer.name for layer in order}
    used = sum(cost for name, cost in costs.items() if name not in weighted)
    total, left = sum(costs.values()), sum(damage[layer.name] for layer in order)
    chosen = []
    for layer in order:
        if left <= ENOUGH:
            break
        if matters(layer, damage, len(order)) and used + costs[layer.name] <= BUDGET * total:
            chosen.append(layer)
            used += costs[layer.name]
            left -= damage[layer.name]
    return chosen


def until_it_holds(
    order: Sequence[Layer], chosen: list[Layer], drop: Callable[[list[Layer]], float], max_drop: float
) -> tuple[list[Layer], list[dict]]:
    """(the layers that stay float, every turn's count and drop). drop: float layers -> points that int8 loses on
    the held-out images. Raises QuantError where nothing but the float model holds the bound.
    """
    turns, step = [], 1
    while True:
        lost = drop(chosen)
        turns.append({"float": len(chosen), "drop": lost})
        if lost <= max_drop:
            return chosen, turns
        rest = [layer for layer in order if layer not in chosen]
        if not rest:
            raise QuantError(
                f"int8 loses {lost:.2f} points with every layer float, --max_drop is {max_drop:g}: the scores differ"
                " by something else"
            )
        chosen, step = chosen + rest[:step], step * 2
        if len(rest) <= step // 2:
            raise QuantError(
                f"int8 loses {lost:.2f} points on the held-out images, {max_drop:g} is allowed, whichever layers stay"
                " float; more calibration images, or a higher --max_drop"
            )
