"""What rounding each input group costs the logits: measured, not estimated, in one walk through the float model.

Linears that read one tensor are rounded together, as servers demand. For every such group the divergence
    KL = sum_v p_v (log p_v - log p'_v)        p of the float model, mean over the compared positions, nats
is taken three times:

    static    that group alone in static W8A8, everything else float
    dynamic   that group alone in W8A8_DYNAMIC
    company   everything in static W8A8, less the same with that group float: what keeping it float gives back

A model that differs from another in one block is equal to it before that block. So each of these models begins as a
copy of the float model's hidden state (or the all-int8 model's) at its block, and only what comes after is computed:
half a forward each. Behind a vision tower each is a sample of its own.

    for each tower, for each block:   run the float and the all-int8 model
                                      branch: this block once with each group rounded, or left float
                                      carry every earlier branch through this block
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..export.reader import Export
from ..families.family import Family, Group, Tower
from ..files.checkpoint import Checkpoint
from ..model.paused import Call, Key, Passed, Walk, first
from .roundings import Roundings
from .verify import compared_positions

FLOAT, INT8 = -1, -2  # the models that the others branch off
KINDS = ("static", "dynamic", "company")
TOKENS = 1024  # of branches that a block takes at once
AT_ONCE = 256  # positions whose logits are in memory together


@dataclass
class GroupCost:
    """One input group of one block. linears: hub names; share: of the multiply-adds of all linears in blocks, for the
    tokens that were measured, 0 to 1; static, dynamic, company: KL as above, nats.
    """

    linears: tuple[str, ...]
    tower: str
    block: int
    share: float
    static: float = 0.0
    dynamic: float = 0.0
    company: float = 0.0


@dataclass
class Sensitivity:
    """groups: in the order of the data's way; kl: of the model with all of them in static W8A8; positions: compared."""

    groups: list[GroupCost] = field(default_factory=list)
    kl: float = 0.0
    positions: int = 0


Member = tuple[int, str]  # a group's place in Sensitivity.groups, and one of KINDS


class Branches:
    """Everything that walks: the samples as the float model (FLOAT) and the all-int8 model (INT8) see them, and the
    branches. `numbers` gives each of them the number by which Walk and Forward know it.
    """

    def __init__(self, inputs: list[dict[str, Tensor]]):
        self.inputs = inputs
        self.numbers: dict[tuple[int, str, int], int] = {}  # (group or FLOAT or INT8, kind, sample) -> number
        for model in (FLOAT, INT8):
            for sample in range(len(inputs)):
                self.number(model, "", sample)

    def number(self, group: int, kind: str, sample: int) -> int:
        """That of a sample in one of the models."""
        return self.numbers.setdefault((group, kind, sample), len(self.numbers))

    def samples(self) -> dict[int, dict[str, Tensor]]:
        """Number -> the model's inputs, batch [1, ...], of all that there is so far."""
        return {number: self.inputs[sample] for (_, _, sample), number in self.numbers.items()}


class Analysis:
    """inputs: the model's keyword arguments per sample; export: has every linear of `groups` in static W8A8, folded as
    it may be; kinds: which of KINDS to take, each as long as the others. Raises QuantError as StreamedModel, Walk and
    check_block's damage do.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        export: Export,
        family: Family,
        device: str,
        inputs: list[dict[str, Tensor]],
        trust_remote_code: bool = False,
        kinds: Collection[str] = KINDS,
    ):
        self.checkpoint, self.family, self.inputs, self.kinds = checkpoint, family, inputs, kinds
        self.roundings = Roundings(checkpoint, export, family, device, trust_remote_code)
        self.model = self.roundings.model
        self.found, self.branches = Sensitivity(), Branches(inputs)
        self.passed: dict[str, dict[Key, Passed]] = {}
        self.products: list[float] = []  # multiply-adds of each group

    @torch.inference_mode()
    def run(self, on_block: Callable[[], None] = lambda: None) -> Sensitivity:
        """Walk through all towers, and compare. on_block: called after every block."""
        for tower in self.family.towers:
            self._tower(tower, on_block)
        self._compare()
        whole = sum(self.products) or 1.0
        for group, products in zip(self.found.groups, self.products):
            group.share = products / whole
        return self.found

    # -- one tower

    def _tower(self, tower: Tower, on_block: Callable[[], None]) -> None:
        config, born = self.checkpoint.config, dict[Key, Tensor]()  # branches of this tower: what the block before gave
        parents: dict[Key, Key] = {}
        taps: dict[Key, dict[int, Tensor]] = defaultdict(dict)
        tapped, before = set(tower.taps(config)), dict[Key, Tensor]()
        numbers = {number: name for name, number in self.branches.numbers.items()}
        with Walk(self.model, tower, self.branches.samples(), self.passed) as walk:
            for index in range(tower.used(config)):
                tensors, rounded, dynamic = self.roundings.load(tower, index)
                if index == 0:
                    walk.enter()
                block, outputs = self.model.block(tower, index), {}
                for key, call in walk.calls.items():
                    members = list(rounded.values()) if self._int8_after(numbers[key[0]]) else []
                    with self.model.replaced(members):
                        outputs[key] = call.on(call.hidden.clone())(block)
                fresh = {
                    key: (parent, first(output))
                    for key, parent, output in self._branch(tower, index, block, walk.calls, rounded, dynamic)
                }
                for key, hidden in born.items():
                    now, then = walk.calls[parents[key]].hidden, before[parents[key]]
                    if not torch.equal(then, now):  # the model adds something between blocks
                        born[key] = hidden + (now - then)
                self._carry(block, tower, born, parents, walk.calls, rounded)
                for key, (parent, hidden) in fresh.items():
                    parents[key], born[key] = parent, hidden
                    taps[key] |= {tap: value.clone() for tap, value in walk.taps(parent).items()}
                before = {key: first(output).clone() for key, output in outputs.items()}
                if index in tapped:
                    for key, hidden in born.items():
                        taps[key][index] = hidden.clone()
                self.model.clear(tensors)
                walk.advance(outputs)
                on_block()
        self.passed[tower.name] = walk.passed | {key: Passed(hidden, taps[key]) for key, hidden in born.items()}
        self._inherit(tower, parents)

    def _carry(
        self, block, tower: Tower, born: dict[Key, Tensor], parents: dict[Key, Key], calls: dict[Key, Call], int8: dict
    ) -> None:
        """Every branch through a block in which it is as its parent is. Those of one parent go together, where what
        blocks take has a batch.
        """
        of_parent: dict[Key, list[Key]] = defaultdict(list)
        for key in born:
            of_parent[parents[key]].append(key)
        for parent, keys in of_parent.items():
            call = calls[parent]
            batched = tower.name == "language" and call.hidden.ndim == 3
            at_once = max(1, TOKENS // call.hidden.shape[1]) if batched else 1
            with self.model.replaced(list(int8.values()) if parent[0] >= len(self.inputs) else []):
                for start in range(0, len(keys), at_once):
                    part = keys[start : start + at_once]
                    output = first(call.on(torch.cat([born[key] for key in part]))(block))
                    born.update(zip(part, output.split(len(output) // len(part))))

    def _int8_after(self, name: tuple[int, str, int]) -> bool:
        """Whether what entered the tower so is all int8 from there on."""
        return name[0] == INT8 or name[1] == "company"

    def _inherit(self, tower: Tower, parents: dict[Key, Key]) -> None:
        """A branch of a later tower has what its parent has of the earlier ones."""
        for earlier in (passes for name, passes in self.passed.items() if name != tower.name):
            for key, parent in parents.items():
                for number, turn in list(earlier):
                    if number == parent[0]:
                        earlier[key[0], turn] = earlier[number, turn]

    def _branch(
        self, tower: Tower, index: int, block, calls: dict[Key, Call], rounded: dict, dynamic: dict
    ) -> Iterator[tuple[Key, Key, Tensor | tuple]]:
        """(key, parent, output) of every model that differs from its parent in a group of this block."""
        for group in tower.groups_of(self.checkpoint.config, index):
            names = [name for name in (tower.block(index) + linear for linear in group.linears) if name in rounded]
            if not names:
                continue
            number = self._group(tower, index, group, tuple(names))
            rest = [linear for name, linear in rounded.items() if name not in names]
            ways = {"static": [rounded[name] for name in names], "dynamic": [dynamic[name] for name in names]}
            for kind, members in {**ways, "company": rest}.items():
                if kind not in self.kinds:
                    continue
                first_of = len(self.inputs) if kind == "company" else 0  # the numbers of INT8 or FLOAT
                with self.model.replaced(members):
                    for parent in [key for key in calls if first_of <= key[0] < first_of + len(self.inputs)]:
                        sample, call = parent[0] - first_of, calls[parent]
                        key = self.branches.number(number, kind, sample), parent[1]
                        yield key, parent, call.on(call.hidden.clone())(block)

    def _group(self, tower: Tower, index: int, group: Group, names: tuple[str, ...]) -> int:
        """Note a group; its number."""
        config = self.checkpoint.config
        tokens = sum(tower.tokens(config, inputs) for inputs in self.inputs)
        weights = [(self.checkpoint.tensors[f"{name}.weight"].shape, name) for name in names]
        self.products.append(
            sum(
                tokens * tower.share(config, name.removeprefix(tower.block(index))) * shape[0] * shape[1]
                for shape, name in weights
            )
        )
        self.found.groups.append(GroupCost(names, tower.name, index, 0.0))
        return len(self.found.groups) - 1

    # -- the end of the model

    def _compare(self) -> None:
        """KL of every model against the float one."""
        config = self.checkpoint.config
        positions = [compared_positions(inputs, self.family, config) for inputs in self.inputs]
        self.found.positions = sum(len(keep) for keep in positions)
        sums: dict[Member, float] = defaultdict(float)
        of_sample: dict[int, list[tuple[Member, int]]] = defaultdict(list)
        for (group, kind, sample), number in self.branches.numbers.items():
            of_sample[sample].append(((group, kind), number))
        with self.model.outside():
            for sample, keep in enumerate(positions):
                said = self._said(sample, keep, [number for _, number in of_sample[sample]])
                wanted = next(said)  # FLOAT has the first number
                for (member, _), got in zip(of_sample[sample][1:], said):
                    sums[member] += divergence(wanted, got)
        means = {member: total / max(self.found.positions, 1) for member, total in sums.items()}
        self.found.kl = means[INT8, ""]
        for number, cost in enumerate(self.found.groups):
            cost.static, cost.dynamic = (means.get((number, kind), math.nan) for kind in ("static", "dynamic"))
            cost.company = self.found.kl - means.get((number, "company"), math.nan)

    def _said(self, sample: int, keep: Tensor, numbers: list[int]) -> Iterator[Tensor]:
        """float32 [P, vocabulary] of each number: log-probabilities at the positions `keep`, int64 [P].

        Those of many numbers go through the head together.
        """
        *_, last = self.family.towers
        at_once = max(1, AT_ONCE // len(keep))
        for start in range(0, len(numbers), at_once):
            hidden = [self.passed[last.name][number, 0].output[0, keep] for number in numbers[start : start + at_once]]
            yield from self.model.logits(torch.cat(hidden)).float().log_softmax(-1).split(len(keep))


def divergence(wanted: Tensor, got: Tensor) -> float:
    """sum_t sum_v p_tv (log p_tv - log p'_tv), nats, of log-probabilities [positions, vocabulary]."""
    return (wanted.exp() * (wanted - got)).sum(-1).clamp(min=0).double().sum().item()
