"""What a run will do, decided from config.json and the tensors' names and shapes alone: every linear's scheme, or float
and why, and every group that will be smoothed. Refuses what no server would load: a pattern that matches nothing, half
a group, half a vision tower.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..base.config import QuantConfig
from ..base.errors import QuantError, UsageError
from ..families.family import Family, Group, Tower, match
from ..files.checkpoint import Checkpoint


@dataclass(frozen=True)
class Decision:
    """One linear: its hub name without ".weight", weight shape (O, I), what it becomes (a key of choices.SCHEMES, None
    for float), and why.
    """

    name: str
    shape: tuple[int, int]
    scheme: str | None
    why: str

    @property
    def int8(self) -> bool:
        """Whether it becomes int8, of whichever scheme."""
        return self.scheme is not None


@dataclass(frozen=True)
class Plan:
    """Every linear's decision, in the order of the data's way, and the family they were taken for."""

    family: Family
    config: dict
    anti_method: str
    decisions: dict[str, Decision]

    def is_int8(self, name: str) -> bool:
        """Whether `name`, a hub name without ".weight", is a linear that becomes int8."""
        return name in self.decisions and self.decisions[name].int8

    def groups(self, tower: Tower) -> list[Group]:
        """The groups of a tower that have an int8 linear in any block."""
        return [
            group
            for group in tower.all_groups(self.config)
            if any(self.int8_group(tower, index, group) for index in range(tower.used(self.config)))
        ]

    def int8_group(self, tower: Tower, index: int, group: Group) -> bool:
        """Whether block `index` has this group, in int8."""
        return group in tower.groups_of(self.config, index) and self.is_int8(tower.block(index) + group.linears[0])

    @cached_property
    def smoothed(self) -> list[tuple[str, tuple[str, ...]]]:
        """(source, int8 consumers) of every group that the method will smooth; empty without a method."""
        if self.anti_method == "none":
            return []
        return [
            (tower.block(index) + group.source, tuple(tower.block(index) + linear for linear in group.linears))
            for tower in self.family.towers
            for index in range(tower.used(self.config))
            for group in tower.all_groups(self.config)
            if group.source and self.int8_group(tower, index, group)
        ]

    @cached_property
    def words(self) -> dict[str, str]:
        """Name of an int8 linear -> its scheme."""
        return {name: decision.scheme for name, decision in self.decisions.items() if decision.scheme}

    @property
    def int8_names(self) -> set[str]:
        """Names of the int8 linears."""
        return set(self.words)

    @property
    def schemes(self) -> set[str]:
        """Those that int8 linears become."""
        return set(self.words.values())


def make_plan(checkpoint: Checkpoint, family: Family, config: QuantConfig) -> Plan:
    """Raises UsageError for choices that match nothing or that no server loads, QuantError for a checkpoint that lacks
    a linear.
    """
    if config.vision == "int8" and family.vision_int8_refused:
        raise UsageError(f"--vision int8: {family.vision_int8_refused}; use --vision float for {family.name}")
    vision = config.vision or family.vision
    recipe = family.recipe_float if config.disable_names_only is None else {}
    asked = dict.fromkeys(config.disable_names, "asked for with --disable_names")
    asked |= dict.fromkeys(config.disable_names_only or (), "asked for with --disable_names_only")
    linears = list(_linears(checkpoint, family))
    names = [name for name, _, _ in linears]
    _refuse_no_match("--disable_names", config.disable_names, names)
    _refuse_no_match("--disable_names_only", config.disable_names_only or (), names)
    _refuse_no_match("--dynamic_names", config.dynamic_names, names)
    decisions = {}
    for name, tower, index in linears:
        outputs, inputs = checkpoint.tensors[f"{name}.weight"].shape
        dynamic = match(config.dynamic_names, name)
        scheme = None
        if pattern := match(family.must_float, name):
            why = family.must_float[pattern]
        elif (pattern := match(family.mindie_float, name)) and config.profile != "vllm-ascend":
            why = family.mindie_float[pattern]
        elif tower is None or index is None:
            why = _unlisted(name, family, checkpoint.config)
        elif tower.name == "vision" and vision == "float":
            why = "the vision tower is float" + (
                f": {family.vision_int8_refused}" if family.vision_int8_refused else " (--vision float)"
            )
        elif index >= tower.used(checkpoint.config):
            why = "the output does not depend on this block"
        elif pattern := match(asked, name):
            why = asked[pattern]
        elif (pattern := match(recipe, name)) and not dynamic and config.profile != "vllm-ascend":
            why = recipe[pattern]
        else:
            per_token = dynamic or pattern or match(family.mindie_float, name)
            scheme = why = "W8A8_DYNAMIC" if per_token else config.scheme
            if scheme != "W8A8_DYNAMIC" and (pattern := match(family.must_dynamic, name)):
                scheme, why = "W8A8_DYNAMIC", f"W8A8_DYNAMIC: {family.must_dynamic[pattern]}"
        decisions[name] = Decision(name, (outputs, inputs), scheme, why)
    _refuse_float_dynamic(config.dynamic_names, decisions)
    plan = Plan(family, checkpoint.config, config.anti_method, decisions)
    _refuse_half_groups(plan)
    _refuse_half_experts(plan)
    _refuse_half_vision(plan)
    if not plan.int8_names:
        raise UsageError("every linear would stay float: nothing to quantize; relax --disable_names or --vision")
    if config.anti_method != "none" and not plan.smoothed:
        raise UsageError(
            f"--anti_method {config.anti_method} matches no group: every linear that it could smooth stays float"
        )
    return plan


def _refuse_no_match(flag: str, patterns: tuple[str, ...], names: list[str]) -> None:
    for pattern in patterns:
        if not any(match([pattern], name) for name in names):
            raise UsageError(
                f"{flag} {pattern}: matches none of the {len(names)} linears; names look like {names[0]}"
                " (--dry_run lists them)"
            )


def _refuse_float_dynamic(patterns: tuple[str, ...], decisions: dict[str, Decision]) -> None:
    """A pattern that names nothing but linears which stay float asks for what no server loads."""
    for pattern in patterns:
        named = [decision for decision in decisions.values() if match([pattern], decision.name)]
        if not any(decision.scheme for decision in named):
            raise UsageError(f"--dynamic_names {pattern}: {named[0].name} stays float: {named[0].why}; leave it out")


def _linears(checkpoint: Checkpoint, family: Family) -> Iterator[tuple[str, Tower | None, int | None]]:
    """(name, tower, block index) of every linear, blocks first; tower and index None outside the blocks."""
    in_blocks = set()
    for tower in family.towers:
        for index in range(tower.blocks(checkpoint.config)):
            for linear in (name for group in tower.groups_of(checkpoint.config, index) for name in group.linears):
                name = tower.block(index) + linear
                if f"{name}.weight" not in checkpoint.tensors:
                    raise QuantError(f"{checkpoint.dir}: tensor {name}.weight is missing; fetch the model again")
                if len(checkpoint.tensors[f"{name}.weight"].shape) != 2:
                    raise QuantError(
                        f"{checkpoint.dir}: {name}.weight has shape {list(checkpoint.tensors[f'{name}.weight'].shape)},"
                        " a matrix was expected"
                    )
                in_blocks.add(name)
                yield name, tower, index
    for tensor, info in checkpoint.tensors.items():
        name = tensor.removesuffix(".weight")
        listed = "embed" not in name or match(family.must_float, name)
        if name != tensor and len(info.shape) == 2 and name not in in_blocks and listed:
            yield name, None, None


def _unlisted(name: str, family: Family, config: dict) -> str:
    """Why a linear that no group of any block lists stays float."""
    tower, index = family.block_of(name) or (None, 0)
    if f"{name}.weight" in family.may_hold(config):
        return "transformers does not run it: it is copied"
    if tower is None:
        return "outside the blocks"
    if index >= tower.blocks(config):
        return f"in a block beyond the {tower.blocks(config)} that config.json counts"
    return "in a block, but in no group of the family's description"


def _refuse_half_groups(plan: Plan) -> None:
    """Linears that read one tensor are one matrix product to a server: they have one type."""
    for tower in plan.family.towers:
        for index in range(tower.used(plan.config)):
            for group in tower.groups_of(plan.config, index):
                schemes = {
                    tower.block(index) + linear: plan.words.get(tower.block(index) + linear) for linear in group.linears
                }
                if len(set(schemes.values())) == 1:
                    continue
                floats = [name for name, scheme in schemes.items() if scheme is None]
                if floats:
                    rest = " ".join(name for name in schemes if name not in floats)
                    raise UsageError(
                        f"--disable_names keeps {floats[0]} float but not what reads the same tensor; servers demand"
                        f" one type: add {rest}"
                    )
                dynamic = [name for name, scheme in schemes.items() if scheme == "W8A8_DYNAMIC"]
                rest = " ".join(name for name in schemes if name not in dynamic)
                raise UsageError(
                    f"--dynamic_names makes {dynamic[0]} W8A8_DYNAMIC but not what reads the same tensor; servers"
                    f" demand one type: add {rest}"
                )


def _refuse_half_experts(plan: Plan) -> None:
    """All experts of a block are one layer to a server: all int8 or all float."""
    for tower in plan.family.towers:
        for index in range(tower.used(plan.config)):
            prefix, groups = tower.block(index), [group for group in tower.groups if group.experts]
            names = [prefix + name for group in groups for name in group.of(1).linears]
            floats = [name for name in names if f"{name}" in plan.decisions and not plan.is_int8(name)]
            if floats and any(plan.is_int8(name) for name in names):
                pattern = floats[0].removeprefix(prefix).partition(".0.")[0]
                raise UsageError(
                    f"--disable_names keeps {floats[0]} float but not all of that block's experts, which servers build"
                    f" as one layer: add {prefix}{pattern}.*"
                )


def _refuse_half_vision(plan: Plan) -> None:
    vision = plan.family.tower("vision")
    whole = [
        vision.block(index) + linear
        for index in range(vision.used(plan.config))
        for linear in plan.family.vision_int8_whole
    ]
    floats = [name for name in whole if not plan.is_int8(name)]
    if plan.groups(vision) and floats:
        linears = ", ".join(plan.family.vision_int8_whole)
        raise UsageError(
            f"--disable_names keeps {floats[0]} float and leaves other vision linears int8; MindIE takes {linears} in"
            " int8 in every vision block, or the whole tower in float: use --vision float"
        )
