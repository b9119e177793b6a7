"""An export directory as a server would find it, read leniently: what is damaged or missing is kept as a fact, for the
rules to judge.

Read are the names and modes of the files, config.json, the description, the headers of the weight files, and of the
tensors only the input scales (4 bytes each). No torch: opening a 7B export takes a fraction of a second.

Left out: the values of weights. Whether they are right is the runtime's and verify's question.
"""

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...base.errors import UsageError
from ...families.family import Family, Group, Tower, match
from ...files.safetensors_header import HeaderEntry

DESCRIPTION, OLD_DESCRIPTION = "quant_model_description.json", "quant_model_description_w8a8.json"
MAX_JSON = 100 * 2**20  # bytes; MindIE opens no larger one
STATIC = ("weight", "weight_scale", "weight_offset", "input_scale", "input_offset", "quant_bias", "deq_scale")
PARTS = {"W8A8": STATIC, "W8A8_MIX": STATIC, "W8A8_DYNAMIC": STATIC[:3]}
"""Type of an int8 linear in the description -> its tensors."""
TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Target:
    """Where the directory is to run.

    server: "mindie" or "vllm-ascend"; hardware: "a2", "a3", "310p" or None for either of the first two; world_size:
    NPUs that share the model; source: the float checkpoint that the directory was made from, if it is at hand.
    """

    server: str
    hardware: str | None = None
    world_size: int = 1
    source: Path | None = None


@dataclass
class Directory:
    """What is in the directory.

    config: config.json; tensors: hub name -> HeaderEntry; duplicates: (name, the later file, the file that counts);
    damaged: (file, what is wrong with it); description: of the tensors, by their hub names, None where there is none
    that can be read; description_file: where it is, None where there is none; renamed: hub name -> what it is called
    in the weights or in the description, where that is transformers' name for it.
    """

    dir: Path
    config: dict
    family: Family
    tensors: dict[str, HeaderEntry] = field(default_factory=dict)
    duplicates: list[tuple[str, Path, Path]] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    description: dict | None = None
    description_file: Path | None = None
    renamed: dict[str, str] = field(default_factory=dict)

    @cached_property
    def files(self) -> list[Path]:
        """All files but hidden ones, by name."""
        return sorted(path for path in self.dir.iterdir() if path.is_file() and not path.name.startswith("."))

    @property
    def description_name(self) -> str:
        """The name of the description's file, or the one it should have."""
        return self.description_file.name if self.description_file else DESCRIPTION

    @cached_property
    def not_json(self) -> list[Path]:
        """Files called .json that are none; the description and the index of the weights, which have rules of their
        own, aside.
        """
        others = (file for file in self.files if file.suffix == ".json" and not file.name.endswith(".index.json"))
        return [file for file in others if file != self.description_file and read_json_or_none(file) is None]

    @property
    def readable(self) -> bool:
        """Whether every weight file could be read, so that a tensor that is not there is missing."""
        return bool(self.tensors) and not any(file.suffix == ".safetensors" for file, _ in self.damaged)

    def where(self, tensor: str) -> str:
        """The file and the tensor, as it is called there, for a finding."""
        called = self.renamed.get(tensor, tensor)
        return f"{self.tensors[tensor].file.name}: {called}" if tensor in self.tensors else called

    # -- what there should be

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the float model that config.json's numbers make, with its shape, also of one that may
        be missing; {} where the family does not know it. An int8 linear's `weight` has the shape of the float one.
        """
        found = self.family.holds(self.config) | self.family.may_hold(self.config)
        for tower in self.family.towers:
            for index in range(tower.blocks(self.config)):
                inside = tower.holds(self.config, index)
                found |= {tower.block(index) + part: shape for part, shape in inside.items()}
        return found

    @cached_property
    def expected(self) -> set[str]:
        """What must be there: what the family's blocks hold; and what any block of a tower has, each of them. That is
        all that is known of a family that does not say, and else the shift of a norm.
        """
        names = {self.family.embedding_tensor, f"{self.family.final_norm}.weight", *self.shapes}
        names -= self.family.may_hold(self.config).keys()
        for tower in self.family.towers:
            inside = (
                name[len(tower.prefix) :].partition(".")[2] for name in self.tensors if name.startswith(tower.prefix)
            )
            held = tower.holds(self.config, 0)
            norms = {part.replace(".weight", ".bias") for part, shape in held.items() if len(shape) == 1}
            norms = {part for part in norms if part.endswith(".bias")}
            parts = {part for part in inside if (part in norms if held else part.rpartition(".")[2] not in STATIC[1:])}
            names |= {tower.block(index) + part for index in range(tower.blocks(self.config)) for part in parts}
        return names

    @cached_property
    def packable(self) -> set[str]:
        """The linears of all blocks, those that are missing too, that servers pack with others into one: q, k, v; gate,
        up. Both look their types up before they see a tensor.
        """
        packed = {
            tower.block(index) + linear
            for tower in self.family.towers
            for index in range(tower.blocks(self.config))
            for group in tower.groups_of(self.config, index)
            if len(group.linears) > 1
            for linear in group.linears
        }
        return {
            name for name in packed if name not in self.experts or ".experts.0." in name
        }  # the first stands for all

    @cached_property
    def experts(self) -> dict[str, str]:
        """Linear of an expert, those that are missing too -> its block's prefix."""
        return {
            tower.block(index) + linear: tower.block(index)
            for tower in self.family.towers
            for group in tower.groups
            if group.experts
            for index in range(tower.blocks(self.config))
            if group.when is None or group.when(self.config, index)
            for linear in group.of(tower.experts(self.config)).linears
            if ".experts." in linear
        }

    def mindie_asks(self, linear: str) -> bool:
        """Whether MindIE looks the type of this linear up in the description. Of all others it goes by the tensor."""
        language = linear.startswith(self.family.tower("language").prefix)
        return bool(match(self.family.mindie_looks_up, linear)) or language and linear in self.packable

    def needs(self, server: str, tensor: str) -> bool:
        """Whether a server loads this tensor. vLLM leaves out the blocks that the output does not depend on."""
        place = self.family.block_of(tensor)
        if server != "vllm-ascend" or place is None:
            return True
        try:
            return place[1] < place[0].used(self.config)
        except UsageError:  # a vision_feature_layer that there is not: nothing is left out
            return True

    # -- linears

    def blocks(self, tower: Tower) -> list[int]:
        """Indices of the tower's blocks of which there is any tensor."""
        found = {name[len(tower.prefix) :].split(".", 1)[0] for name in self.tensors if name.startswith(tower.prefix)}
        return sorted(int(index) for index in found if index.isdigit())

    @cached_property
    def linears(self) -> list[str]:
        """Every linear, in blocks and outside, and the embeddings: what servers look up in the description."""
        inside = [
            tower.block(index) + linear
            for tower in self.family.towers
            for index in self.blocks(tower)
            for group in tower.groups_of(self.config, index)
            for linear in group.linears
        ]
        present = [name for name in inside if f"{name}.weight" in self.tensors]
        known = set(present)
        outside = [
            name.removesuffix(".weight")
            for name, entry in self.tensors.items()
            if name.endswith(".weight") and len(entry.shape) == 2 and name.removesuffix(".weight") not in known
        ]
        return present + outside

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Name that vLLM-Ascend looks up, though no tensor has it -> the linear whose entry it repeats."""
        return self.family.aliases(self.linears)

    @cached_property
    def int8(self) -> list[str]:
        """The linears whose weight is int8."""
        weights = ((name, self.tensors[f"{name}.weight"]) for name in self.linears)
        return [name for name, weight in weights if weight.dtype == "I8" and len(weight.shape) == 2]

    def kind(self, name: str) -> str:
        """The type of an int8 linear: as described, or else as its tensors tell."""
        described = (self.description or {}).get(f"{name}.weight")
        if described in PARTS:
            return described
        return "W8A8" if any(f"{name}.{part}" in self.tensors for part in STATIC[3:]) else "W8A8_DYNAMIC"

    def packed(self) -> list[list[str]]:
        """Linears that read one tensor, as servers pack them: q, k, v and gate, up; block by block, those that are
        there.
        """
        groups: list[list[str]] = []
        for tower in self.family.towers:
            for index in self.blocks(tower):
                groups += [
                    self._present(tower, index, group)
                    for group in tower.groups_of(self.config, index)
                    if len(group.linears) > 1
                ]
        groups = [[name for name in group if name not in self.experts] for group in groups]
        return [group for group in groups if len(group) > 1]

    def _present(self, tower: Tower, index: int, group: Group) -> list[str]:
        names = [tower.block(index) + linear for linear in group.linears]
        return [name for name in names if f"{name}.weight" in self.tensors]

    @property
    def vision_int8(self) -> list[str]:
        """Those of them in the vision tower."""
        return [name for name in self.int8 if name.startswith(self.family.tower("vision").prefix)]

    @property
    def head(self) -> str:
        """The hub name of the language model's head."""
        return self.family.head

    # -- dtype and values

    @property
    def configured_dtype(self) -> str | None:
        """The dtype that config.json says, under either of its names."""
        return self.config.get("torch_dtype") or self.config.get("dtype")

    @cached_property
    def float_dtype(self) -> str | None:
        """The dtype that holds most of the float values, parts of int8 linears aside; None without any."""
        parts = {f"{name}.{part}" for name in self.int8 for part in STATIC}
        sizes: Counter[str] = Counter()
        for name, entry in self.tensors.items():
            if entry.dtype in TORCH_NAMES and name not in parts:
                sizes[TORCH_NAMES[entry.dtype]] += math.prod(entry.shape)
        return sizes.most_common(1)[0][0] if sizes else None

    @property
    def tied(self) -> bool:
        """Whether servers take the embedding for the head: by the keys of the language model, wherever those are."""
        said = self.config if self.family.flat_config else self.config.get("text_config", {})
        nested = self.config.get("text_config", {}).get("tie_word_embeddings", False)
        return bool(said.get("tie_word_embeddings", nested))

    def bytes_at(self, name: str, offset: int, count: int) -> bytes:
        """Some of a tensor's bytes. Raises OSError."""
        entry = self.tensors[name]
        with open(entry.file, "rb") as stream:
            stream.seek(entry.offset + offset)
            return stream.read(min(count, entry.nbytes - offset))

    def scalar(self, name: str) -> float | None:
        """The value of a float tensor with one element; None where there is no such tensor."""
        entry = self.tensors.get(name)
        if entry is None or entry.dtype not in TORCH_NAMES or math.prod(entry.shape) != 1:
            return None
        data = entry.read()
        if entry.dtype == "BF16":  # the upper half of a float32
            return struct.unpack("<f", b"\0\0" + data)[0]
        return struct.unpack("<e" if entry.dtype == "F16" else "<f", data)[0]


def read_json_or_none(file: Path) -> dict | list | None:
    """The file's JSON; None where it is missing or none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
