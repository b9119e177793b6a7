"""Which input groups leave static int8 so that the loss stays below a bound: from what each of them costs alone
(sensitivity.py) to names for --disable_names_only and --dynamic_names.

The costs of groups are taken to add up, times one factor, by which all of them together cost more or less than their
sum: KL = factor * sum_g cost_g. The groups with the most cost for each multiply-add leave first.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from ..families.family import Family
from .sensitivity import GroupCost, Sensitivity


@dataclass
class Selection:
    """float, dynamic: names of linears, hub names; expected: KL, nats, by the formula above; moved: share of the
    multiply-adds that left static int8; reached: whether the bound is.
    """

    float: list[str] = field(default_factory=list)
    dynamic: list[str] = field(default_factory=list)
    expected: float = 0.0
    moved: float = 0.0
    reached: bool = True


@dataclass(frozen=True)
class Item:
    """Groups that move together. static, dynamic: KL, nats, of all of them; share: of the multiply-adds."""

    names: tuple[str, ...]
    static: float
    dynamic: float
    share: float


def nats(drop: float) -> float:
    """A share by which perplexity may rise -> the KL that is taken to do that: ln(1 + drop)."""
    return math.log1p(drop)


def select(found: Sensitivity, family: Family, bound: float, dynamic: bool, factor: float | None = None) -> Selection:
    """What to move so that the KL, nats, is at most `bound`. dynamic: whether W8A8_DYNAMIC may stand in for static
    (vLLM-Ascend), before anything becomes float; factor: that of the formula, None for what was measured with
    everything in static int8.
    """
    if factor is None:
        factor = found.kl / (sum(group.static for group in found.groups) or 1.0)
    together = items(found.groups, family)
    costs = {item: item.static for item in together}
    moves = [
        (item, "dynamic", item.static - item.dynamic) for item in together if dynamic and item.dynamic < item.static
    ]
    moves.sort(key=lambda move: move[2] / max(move[0].share, 1e-9), reverse=True)
    floats = sorted(together, key=lambda item: _least(item, dynamic) / max(item.share, 1e-9), reverse=True)
    state: dict[Item, str] = {}
    for item, to, _ in moves + [(item, "float", 0.0) for item in floats]:
        if factor * sum(costs.values()) <= bound:
            break
        state[item], costs[item] = to, item.dynamic if to == "dynamic" else 0.0
    expected = factor * sum(costs.values())
    return Selection(
        [name for item in together if state.get(item) == "float" for name in item.names],
        [name for item in together if state.get(item) == "dynamic" for name in item.names],
        expected,
        sum(item.share for item in state),
        expected <= bound,
    )


def items(groups: Collection[GroupCost], family: Family) -> list[Item]:
    """The groups as servers take them: a vision tower that MindIE takes in int8 whole or not at all moves whole."""
    whole = [group for group in groups if group.tower == "vision" and family.vision_int8_whole]
    single = [(group,) for group in groups if group not in whole]
    return [
        Item(
            tuple(name for group in members for name in group.linears),
            sum(group.static for group in members),
            sum(group.dynamic for group in members),
            sum(group.share for group in members),
        )
        for members in [*([tuple(whole)] if whole else []), *single]
    ]


def _least(item: Item, dynamic: bool) -> float:
    return min(item.static, item.dynamic) if dynamic else item.static


def rank_correlation(some: list[float], others: list[float]) -> float:
    """Spearman's, -1 to 1, of two lists of one length; ties count by their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]

    first, second = ranks(some), ranks(others)
    middle = (len(some) - 1) / 2
    shared = sum((a - middle) * (b - middle) for a, b in zip(first, second))
    spread = (sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second)) ** 0.5
    return shared / spread if spread else 0.0
