"""The nouns that describe a model family: Group, Tower, Processing, Family. A description is data; what is done with it
is elsewhere, and asks the description instead of comparing names of models.

Names of tensors are those of the hub's checkpoints ("visual.blocks.0.norm1.weight"), never the module names of the
installed transformers, which change from version to version; `Family.renames` leads from the one to the other.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

from ..base.errors import QuantError
from .processing import Processing
from .shapes import Shapes


@dataclass(frozen=True)
class Group:
    """Linears of a block that read one tensor, and the module which produces that tensor and can absorb a scale.

    kind says how the scale is folded into `source` (fold.py): "norm" divides a norm's weight; "value" divides the value
    rows of an attention projection (its last rows, where q, k and v are fused), heads that share a value sharing the
    scale; "up" divides the rows of a gated MLP's linear half (its last rows, where gate and up are fused; `first`: its
    first ones). A group without a source is rounded, never smoothed.
    """

    linears: tuple[str, ...]
    source: str | None = None
    kind: Literal["norm", "value", "up"] | None = None
    when: Callable[[dict, int], bool] | None = None
    """config.json and a block's index -> whether that block has this group; None: every block has it."""
    adds: float = 0.0
    """What the norm adds to its stored weight before it multiplies by it: 1 where w - 1 is stored."""
    readers: tuple[str, ...] = ()
    """Modules with a weight [..., channels] that read the same tensor and always stay float, such as a router: scales
    are powers of two then, which these weights take up without losing a bit (but for a norm that stores w - 1).
    """

    observed: bool = True
    """False: linears of which each reads a tensor of its own, which is not looked at; they are rounded by their weights
    alone, to W8A8_DYNAMIC, and never smoothed.
    """
    experts: bool = False
    """Whether a * in the linears' names stands for the number of every expert."""
    first: bool = False
    """Whether a scale divides the source's first rows, where it has more than those: up and gate in one linear."""
    with_experts: tuple[str, ...] = ()
    """Linears that read the tensor beside the experts, such as an expert that all tokens share."""

    @property
    def watched(self) -> str:
        """The module whose input is the tensor that all of them read; experts see what a router gave to them."""
        return (*self.readers, *self.linears)[0]

    def of(self, experts: int) -> "Group":
        """The group with the names of this many experts."""
        return _expanded(self, experts) if self.experts else self

    def divided(self, outputs: int, count: int) -> slice:
        """Which of the source's `outputs` rows a scale of `count` numbers divides."""
        return slice(0, count) if self.first else slice(outputs - count, outputs)

    def source_in(self, prefix: str) -> str:
        """Hub name of the source in the block with this prefix. Raises ValueError for a group without one."""
        if self.source is None:
            raise ValueError(f"{self.linears}: the group has no source")
        return prefix + self.source


@lru_cache(maxsize=64)
def _expanded(group: Group, experts: int) -> Group:
    linears = (name.replace("*", str(number)) for number in range(experts) for name in group.linears)
    return replace(group, linears=(*linears, *group.with_experts), experts=False, with_experts=())


@dataclass(frozen=True)
class Tower:
    """A stack of blocks. Block j's tensors are named prefix + str(j) + "." + ..."""

    name: Literal["vision", "language"]
    prefix: str
    groups: tuple[Group, ...]
    """Of all blocks, as described; groups_of() has those of one, with the experts' names."""
    blocks: Callable[[dict], int]
    """config.json -> how many blocks the checkpoint holds."""
    used: Callable[[dict], int]
    """config.json -> how many of them the model's output depends on."""
    heads: Callable[[dict], tuple[int, int]]
    """config.json -> (query heads, key/value heads)."""
    width: Callable[[dict], int]
    """config.json -> channels of the hidden state between the blocks."""
    mlp: Callable[[dict], int]
    """config.json -> channels inside a block's MLP."""
    tokens: Callable[[dict, dict], int]
    """config.json and a sample's inputs -> how many tokens its blocks see; 0 where the sample does not enter the
    tower.
    """
    inputs: tuple[str, ...] = ("input_ids",)
    """A sample's inputs that enter the tower: each of them that it has does so in a pass of its own."""
    taps: Callable[[dict], tuple[int, ...]] = lambda config: ()
    """config.json -> blocks, besides the last, whose output is read outside the tower's own blocks."""
    holds: Callable[[dict, int], Shapes] = lambda config, index: {}
    """config.json and a block's index -> the tensors of that block of a float checkpoint, by their names in the block,
    with shapes. None of them: not known.
    """

    experts: Callable[[dict], int] = lambda config: 0
    """config.json -> experts of a block that has any."""
    share: Callable[[dict, str], float] = lambda config, linear: 1.0
    """config.json and a linear's name in the block -> what share of the tokens it sees: less than all for an expert."""

    def block(self, index: int) -> str:
        """The prefix of block `index`'s tensors."""
        return f"{self.prefix}{index}."

    def all_groups(self, config: dict) -> tuple[Group, ...]:
        """The groups of all blocks, with the experts' names."""
        return tuple(group.of(self.experts(config)) for group in self.groups)

    def groups_of(self, config: dict, index: int) -> tuple[Group, ...]:
        """The groups of block `index`."""
        return tuple(group for group in self.all_groups(config) if group.when is None or group.when(config, index))

    def passes(self, inputs: Mapping) -> int:
        """How many times a sample with these inputs enters the tower in one forward."""
        return sum(name in inputs for name in self.inputs)


@dataclass(frozen=True)
class Family:
    """All that is known of a model family."""

    name: str
    architecture: str
    """config.json's "architectures", and the class of that name in transformers."""
    model_type: str
    """config.json's "model_type"; where there are no "architectures", the family is known by it."""
    script: str
    """The script for this family is quant/{script}/quant_{script}.py."""
    processing: Processing
    towers: tuple[Tower, ...]
    """In the order in which data flows."""
    embedding: str
    """Hub name of the token embedding's module."""
    final_norm: str
    """Hub name of the norm between the last language block and the head."""
    head: str
    """Hub name of the language model's head; checkpoints with a tied head have no tensor of it."""
    holds: Callable[[dict], Shapes]
    """config.json -> the tensors of a float checkpoint that are outside the blocks, with shapes; the head too."""
    renames: tuple[tuple[str, str], ...]
    """(hub prefix, module prefix); the first pair whose result names something in the installed transformers' model is
    taken.
    """
    must_float: dict[str, str]
    """Pattern of linears -> why every server wants them float. Not for the user to overrule."""
    recipe_float: dict[str, str]
    """Pattern of linears -> why the published recipes keep them float. --disable_names_only replaces these."""
    vision: Literal["int8", "float"]
    """The vision tower, unless the user says otherwise."""
    vision_int8_refused: str | None
    """Why the vision tower cannot be int8; None where it can."""
    vision_int8_whole: tuple[str, ...]
    """Linears of a vision block that MindIE takes in int8 in every block, or else the whole tower in float."""
    dtype: str | None
    """What MindIE hands the vision tower its pixels in, whatever the checkpoint holds, and so the only dtype to export;
    None: the checkpoint's own.
    """
    flat_config: bool
    """Whether servers read the language model's keys at the top of config.json; the older of the hub's two layouts."""
    vocab_size: Callable[[dict], int]
    """config.json -> rows of the embedding, which MindIE reads at the top of config.json."""
    mindie_config_alone: bool
    """Whether MindIE makes its configuration of config.json alone. Else it adds generation_config.json's keys, and
    takes a missing `quantize` from the description.
    """
    mindie_looks_up: tuple[str, ...]
    """Patterns of linears whose type MindIE looks up by name among those that it has; it has no W8A8_MIX. Of others it
    asks at most whether they are W8A8.
    """
    mindie_310p: bool
    """Whether MindIE runs the model on the Atlas 300I Duo (310P)."""
    mindie_vision_head: int | None
    """Channels of a vision head, where MindIE's kernel is written for one number of them; None: any."""
    mindie_transposed: str | None
    """Linear of a vision block that MindIE, on several NPUs, uses transposed where it is int8; None: none."""
    prompt: str
    """Asked of a calibration image that brings no prompt of its own."""
    mindie_float: dict[str, str] = field(default_factory=dict)
    """Pattern of linears -> why MindIE wants them float, where vLLM-Ascend does not. Only a profile without MindIE has
    them in int8.
    """
    must_dynamic: dict[str, str] = field(default_factory=dict)
    """Pattern of linears -> why they are W8A8_DYNAMIC wherever they are int8. Not for the user to overrule."""
    old_rope: bool = True
    """Whether servers read rope_theta and rope_scaling, as before transformers 5; else rope_parameters stay as they
    are.
    """
    transformers_class: str | None = None
    """Its class in transformers, where that is not called as in "architectures"."""
    transformers_config: Callable[[dict], dict] | None = None
    """config.json -> what transformers' configuration is made of, where config.json is of another form."""
    vllm_refuses: str | None = None
    """What vLLM says of the model instead of loading it; None where it loads it."""
    mindie_refuses: str | None = None
    """What MindIE says of the model instead of loading it; None where it loads it."""
    mindie_unlisted: Callable[[dict], str | None] = lambda config: None
    """config.json -> why this size is not among those that MindIE documents in W8A8; None where it is."""
    mindie_vision_follows: bool = False
    """Whether MindIE builds the vision tower by the language model's `quantize`: of a W8A8 model it must be int8."""
    embedding_leaf: str = "weight"
    """What the embedding's table is called in that module, where words beside the vocabulary have one of their own."""
    own_code: bool = False
    """Whether the model's class is code that the checkpoint brings, which transformers has no class for."""
    mindie_experts: bool = False
    """Whether MindIE calls the model W8A8_DYNAMIC, for its experts, and builds attention and vision for W8A8."""
    may_hold: Callable[[dict], Shapes] = lambda config: {}
    """config.json -> the tensors that a float checkpoint may hold besides, with shapes: transformers does not run them,
    and does not write them where it saves the model. They are copied; one in a block behind the towers' own is a
    drafter's.
    """
    also_called: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Pattern of linears -> last parts of further names under which vLLM-Ascend looks their types up: of one that it
    packs of several, or takes for several. The description has an entry under each. Read in sources, not run.
    """

    @property
    def embedding_tensor(self) -> str:
        """Hub name of the embedding's table [vocabulary, hidden]."""
        return f"{self.embedding}.{self.embedding_leaf}"

    def tower(self, name: str) -> Tower:
        """The tower of that name."""
        return next(tower for tower in self.towers if tower.name == name)

    def block_of(self, name: str) -> tuple[Tower, int] | None:
        """The tower and the block index that a hub tensor name belongs to; None outside the blocks."""
        for tower in self.towers:
            if name.startswith(tower.prefix):
                index = name[len(tower.prefix) :].split(".", 1)[0]
                return (tower, int(index)) if index.isdecimal() else None
        return None

    @property
    def built_as(self) -> str:
        """The name of its class in transformers."""
        return self.transformers_class or self.architecture

    def refuses(self, server: str) -> str | None:
        """What a server says of the model instead of loading it; None where it loads it."""
        return {"mindie": self.mindie_refuses, "vllm-ascend": self.vllm_refuses}[server]

    def aliases(self, linears: Iterable[str]) -> dict[str, str]:
        """Name that only the description has -> the linear among `linears`, hub names, whose type it has there."""
        found, names = {}, dict.fromkeys(linears)
        for linear in names if self.also_called else ():
            pattern = match(self.also_called, linear)
            for last in self.also_called[pattern] if pattern else ():
                found[f"{linear.rpartition('.')[0]}.{last}"] = linear
        return {alias: linear for alias, linear in found.items() if alias not in names}

    def check_depths(self, config: dict, tensors: Iterable[str], where) -> None:
        """Raises QuantError where config.json gives a tower another number of blocks than the hub tensor names
        `tensors` do; where: their directory.
        """
        held, spare = dict.fromkeys((tower.name for tower in self.towers), 0), self.may_hold(config)
        for tower, index in filter(None, (self.block_of(name) for name in tensors if name not in spare)):
            held[tower.name] = max(held[tower.name], index + 1)
        for tower in self.towers:
            if (stated := tower.blocks(config)) != held[tower.name]:
                raise QuantError(
                    f"{where}: blocks of the {tower.name} tower: {stated} by config.json, {held[tower.name]} in the"
                    " weights; one of the two is of another model, fetch both again"
                )


def match(patterns, name: str) -> str | None:
    """The first of `patterns` (names or globs) that matches the linear `name`, or None."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
