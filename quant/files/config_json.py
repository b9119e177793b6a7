"""config.json of the export: the source's own, with the keys edited that servers read. Never transformers'
save_pretrained: its newer layout (rope_parameters, dtype, nested text_config) is misread by older transformers and by
the servers.
"""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QuantError
from ..base.output import replace_file

if TYPE_CHECKING:
    import torch

MAX_JSON = 64 << 20  # bytes: parsed, it takes up to 30 times that; the largest honest ones, a tokenizer's, have 35 MB
DTYPE_KEYS = ("torch_dtype", "dtype")  # transformers 5 writes the second


def read_json(file: Path) -> dict:
    """Raises QuantError, naming the file, when it is missing, not JSON, not an object, or larger than MAX_JSON."""
    try:
        if (size := file.stat().st_size) > MAX_JSON:
            raise QuantError(f"{file}: has {size} bytes, at most {MAX_JSON} are read; fetch it again")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}") from None
    except (ValueError, RecursionError) as err:
        raise QuantError(f"{file}: not valid JSON ({err})") from None
    if not isinstance(value, dict):
        raise QuantError(f"{file}: holds a JSON {type(value).__name__}, an object was expected")
    return value


def dumps(value: dict) -> str:
    """A JSON object as the hub's files have it: indented by two, with a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(file: Path, value: dict) -> None:
    """Put a JSON object in the place of `file`, whole or not at all. Raises QuantError when the disk refuses."""
    replace_file(file, dumps(value).encode())


def dtype_name(config: dict) -> str:
    """ "bfloat16" and the like, from whichever key holds it."""
    return next((config[key] for key in DTYPE_KEYS if config.get(key)), "float32")


def edit(
    config: dict,
    *,
    flat: bool,
    dtype: "torch.dtype | str",
    vision_int8: bool,
    vocab_size: int,
    old_rope: bool = True,
) -> dict:
    """A new dict. flat: lift the language model's keys to the top; vision_int8: MindIE's switch for its int8 vision
    tower; vocab_size: for a config.json that does not say it at the top, where MindIE looks; old_rope: rope_theta and
    rope_scaling in the place of rope_parameters.
    """
    edited = copy.deepcopy(config)
    text = edited.get("text_config", {})
    edited.pop("quantization_config", None)  # it would hide the description from vLLM-Ascend
    if flat and text:
        for key, value in edited.pop("text_config").items():
            edited.setdefault(key, value)
        edited["model_type"] = config["model_type"]
    if old_rope:
        _old_rope(edited if flat else text, flat)
    edited.setdefault("vocab_size", vocab_size)
    for key in DTYPE_KEYS:
        if key in edited or key == "torch_dtype":
            edited[key] = str(dtype).removeprefix("torch.")
        if not flat and key in text:  # where MindIE looks for Qwen3-VL's
            text[key] = str(dtype).removeprefix("torch.")
    edited["quantize"] = "w8a8"
    edited.get("vision_config", {}).pop("quantize", None)
    if vision_int8 and "vision_config" in edited:
        edited["vision_config"]["quantize"] = "w8a8"
    return edited


def _old_rope(language: dict, flat: bool) -> None:
    """rope_parameters, as transformers 5 has it -> rope_theta and rope_scaling, as servers read them: every key of it,
    for a model with plain positions in the place of YaRN's is another model. What is in the older layout already stays.

    Plain positions have one form there, {"type": "mrope", "mrope_section": ...}, in newer, nested files {"rope_type":
    "default", ...}, of which MindIE reads no other; all others are named in `type` and in `rope_type`, since some
    servers read the one and some the other.
    """
    rope = language.pop("rope_parameters", None)
    if not isinstance(rope, dict):
        return
    if "rope_theta" in rope:
        language.setdefault("rope_theta", rope["rope_theta"])
    kind = rope.get("rope_type", rope.get("type", "default"))
    settings = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type", "type")}
    if kind not in ("default", "mrope"):
        settings = {"type": kind, "rope_type": kind, **settings}
    elif "mrope_section" in rope and not flat:
        settings = {"rope_type": "default", **settings}
    elif "mrope_section" in rope:
        settings = {"type": "mrope", **settings}
    elif settings:
        settings = {"type": "default", "rope_type": "default", **settings}
    if settings:
        language.setdefault("rope_scaling", settings)
