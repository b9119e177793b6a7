"""The families there are. A new one is a file in this folder, and its name below and in FAMILIES; docs/add_a_family.md
walks through one.
"""

from ..base.errors import UsageError
from .family import Family
from .glm_ocr import GLM_OCR
from .internvl import INTERNVL
from .llava import LLAVA
from .llava_next import LLAVA_NEXT
from .llava_next_video import LLAVA_NEXT_VIDEO
from .llava_onevision import LLAVA_ONEVISION
from .llava_video import LLAVA_VIDEO
from .molmo import MOLMO
from .paddleocr_vl import PADDLEOCR_VL
from .qwen2_5vl import QWEN2_5_VL
from .qwen2vl import QWEN2_VL
from .qwen3_5 import QWEN3_5
from .qwen3_5_moe import QWEN3_5_MOE
from .qwen3vl import QWEN3_VL
from .qwen3vl_moe import QWEN3_VL_MOE

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        *(QWEN2_VL, QWEN2_5_VL, LLAVA, QWEN3_VL, INTERNVL, QWEN3_VL_MOE, QWEN3_5, QWEN3_5_MOE),
        *(LLAVA_ONEVISION, LLAVA_NEXT, LLAVA_NEXT_VIDEO, LLAVA_VIDEO, GLM_OCR, PADDLEOCR_VL, MOLMO),
    )
}
"""config.json's "architectures" -> Family."""


def family_of(config: dict, where) -> Family:
    """The family of a checkpoint's config.json; where: the file or directory that an error names.

    Where it has no "architectures", its "model_type" says it, as to the servers. Raises UsageError, listing what is
    supported, for another architecture.
    """
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else "none"
    if not architectures:
        types = {family.model_type: family.architecture for family in FAMILIES.values()}
        architecture = types.get(str(config.get("model_type")), architecture)
    if architecture not in FAMILIES:
        supported = ", ".join(family.name for family in FAMILIES.values())
        raise UsageError(f"{where}: architecture {architecture} is not supported; supported are {supported}")
    return FAMILIES[architecture]


def script_of(family: Family) -> str:
    """The path, from the top of this repository, of the script that users run for a family."""
    return f"quant/{family.script}/quant_{family.script}.py"
