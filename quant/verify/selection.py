"""Which input groups leave static int8 so that the loss stays below a bound: from what each of them costs alone
(sensitivity.py) to names for --disable_names_only and --dynamic_names.

The costs of groups are taken to add up, times one factor, by which all of them together cost more or less than their
sum: KL = factor * sum_g cost_g. The groups with the most cost for each multiply-add leave first.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import Tensor

from ..families.family import Family
from .roundings import Roundings
from .sensitivity import GroupCost, Sensitivity, divergence
from .verify import compared_positions

TRIES = 5
LEAST = 1.1  # by which a factor grows at least, so that every try moves something


@dataclass
class Selection:
    """floats, dynamics: names of linears, hub names; expected: KL, nats, by the formula above; measured: KL on samples
    that nothing was chosen by, NaN before; moved: share of the multiply-adds that left static int8; floating: of them,
    to float; reached: whether the bound is.
    """

    floats: list[str] = field(default_factory=list)
    dynamics: list[str] = field(default_factory=list)
    expected: float = 0.0
    moved: float = 0.0
    floating: float = 0.0
    reached: bool = True
    measured: float = math.nan


@dataclass(frozen=True)
class Item:
    """Groups that move together. static, dynamic: KL, nats, of all of them; share: of the multiply-adds."""

    names: tuple[str, ...]
    static: float
    dynamic: float
    share: float


def nats(drop: float) -> float:
    """A loss as a share -> the KL that stands for it: ln(1 + drop). Perplexity itself may rise by a little more or much
    less (docs/accuracy.md).
    """
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
        expected=expected,
        moved=sum(item.share for item in state),
        floating=sum(item.share for item, to in state.items() if to == "float"),
        reached=expected <= bound,
    )


def settle(
    found: Sensitivity, roundings: Roundings, inputs: list[dict[str, Tensor]], bound: float, dynamic: bool
) -> Selection:
    """select(), and then what it chose, measured on `inputs`, [1, ...] each, samples that it was not chosen by; where
    that is above `bound`, once more with the factor that it showed, TRIES times at most. `reached` is of the measured
    KL.
    """
    positions = [compared_positions(each, roundings.family, roundings.checkpoint.config) for each in inputs]
    every = {name for group in found.groups for name in group.linears}
    wanted = roundings.log_probabilities(inputs, positions, every, set())
    factor = found.kl / (sum(group.static for group in found.groups) or 1.0)
    for _ in range(TRIES):
        chosen = select(found, roundings.family, bound, dynamic, factor)
        got = roundings.log_probabilities(inputs, positions, set(chosen.floats), set(chosen.dynamics))
        apart = sum(divergence(one, other) for one, other in zip(wanted, got))
        chosen.measured = apart / sum(map(len, positions))
        chosen.reached = chosen.measured <= bound
        if chosen.reached or not chosen.expected:
            break
        factor *= max(chosen.measured / chosen.expected, LEAST)
    return chosen


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
