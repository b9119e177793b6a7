"""How an Ascend export says what its tensors are: quant_model_description.json, and what config.json says of it.

The description has one entry per tensor: the type of an int8 linear (schemes.SCHEMES) for each of its tensors, FLOAT
for its bias and all others. vLLM-Ascend reads it linear by linear, so static and dynamic ones may stand in one model;
MindIE builds the whole model for one type, which model_quant_type and config.json's `quantize` name.
"""

from collections.abc import Collection

from ..arithmetic.schemes import SCHEMES
from ..families.family import Family, match

DESCRIPTION = {"ascendV1": "quant_model_description.json", "mindie": "quant_model_description_w8a8.json"}
VERSION = "1.0.0"
MINDIE_NAMES = {"W8A8": "w8a8", "W8A8_DYNAMIC": "w8a8_dynamic", "W8A8_MIX": "w8a8_pdmix"}  # config.json's `quantize`


def model_type(words: Collection[str], family: Family | None = None) -> str:
    """The one type of a model whose linears have these: the static one where there are two, unless MindIE knows the
    family's by its dynamic experts.
    """
    return max(words) if family and family.mindie_experts and "W8A8_DYNAMIC" in words else min(words)


def describe(names: Collection[str], words: dict[str, str], family: Family) -> dict[str, str]:
    """The description. names: of all tensors; words: int8 linear -> its type. A tied head has no tensor of its own, but
    vLLM-Ascend looks its entry up.
    """
    entries = {}
    for name in names:
        linear, _, part = name.rpartition(".")
        word = words.get(linear)
        entries[name] = word if word and part in SCHEMES[word].parts else "FLOAT"
    if head := head_of(family):
        entries.setdefault(f"{head}.weight", "FLOAT")
    return {"version": VERSION, "model_quant_type": model_type(set(words.values()), family), **entries}


def head_of(family: Family) -> str | None:
    """Hub name of the language model's head, if servers want it float; else None."""
    return family.head if match(family.must_float, family.head) else None


def vision_static(family: Family, words: dict[str, str]) -> bool:
    """Whether the vision tower is int8 and static throughout, as MindIE's switch for it says, where it has one."""
    if family.mindie_vision_follows:
        return False
    vision = {word for name, word in words.items() if name.startswith(family.tower("vision").prefix)}
    return bool(vision) and "W8A8_DYNAMIC" not in vision
