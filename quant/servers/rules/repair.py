"""Repair of an export without the float weights, into a new directory: everything but the tensors.

    weights      copied as they are (shared, where their mode is right and the file system can)
    description  written anew from the tensors, under the name that both servers read, with its metadata
    config.json  quantize, vision_config.quantize, torch_dtype and vocab_size as the tensors have them; the layout that
                 servers read; no quantization_config
    side files   copied, those that are missing from the source; every mode set; an index that is wrong left out

What is wrong with a tensor stays wrong: the check that follows says so.
"""

import json
import shutil
from pathlib import Path

from ...base.errors import QuantError
from ...base.output import FILE_MODE, appearing, check_output, link_or_copy
from ...files import config_json
from .config import QUANTIZE
from .directory import DESCRIPTION, OLD_DESCRIPTION, PARTS, Directory, Target
from .files import source_side_files, weight_index
from .opening import open_directory


def repair(directory: Path, target: Path, source: Path | None = None) -> list[str]:
    """Write the repaired copy to `target`, which must be absent or empty; returns what was changed, a line each.

    source: the float checkpoint, for side files. Raises UsageError for a target that cannot be used, QuantError when a
    file cannot be copied or the weights cannot be read; then nothing is left behind.
    """
    opened = open_directory(directory)
    if not opened.readable:
        what = f"{opened.damaged[0][0].name} {opened.damaged[0][1]}" if opened.damaged else "there are no weights"
        raise QuantError(f"{directory}: {what}; without the weights nothing can be repaired")
    target = check_output(target, directory)
    done: list[str] = []
    try:
        with appearing(target) as partial:
            _copy_files(opened, partial, source, done)
            _write(partial / DESCRIPTION, describe(opened), opened.description, done)
            _write(partial / "config.json", configure(opened), opened.config, done)
            for file in partial.iterdir():
                file.chmod(FILE_MODE)
    except OSError as err:
        raise QuantError(f"{err.filename}: {err.strerror}") from None
    return done


def _copy_files(opened: Directory, target: Path, source: Path | None, done: list[str]) -> None:
    wrong_indices = {finding.where.split(":")[0] for finding in weight_index(opened, Target("vllm-ascend"))}
    for file in opened.files:
        if file.name in wrong_indices:
            done.append(f"left out {file.name}: it does not fit the weights")
        elif file.name not in (DESCRIPTION, OLD_DESCRIPTION, "config.json"):
            link_or_copy(file, target / file.name)
    for file in source_side_files(source) if source else []:
        if not (target / file.name).exists() and file.name != "config.json":
            shutil.copyfile(file, target / file.name)
            done.append(f"copied {file.name} from {source}")


def _write(file: Path, value: dict, before: dict | None, done: list[str]) -> None:
    file.write_text(config_json.dumps(value), encoding="utf-8")
    before = before or {}
    changed = [key for key in {**before, **value} if before.get(key, ...) != value.get(key, ...)]
    if changed:
        shown = ", ".join(f"{key} {_short(before, key)} -> {_short(value, key)}" for key in changed[:4])
        done.append(f"{file.name}: {shown}" + (f" and {len(changed) - 4} more" if len(changed) > 4 else ""))


def _short(values: dict, key: str) -> str:
    text = json.dumps(values[key]) if key in values else "absent"
    return text if len(text) <= 40 else text[:37] + "..."


def describe(opened: Directory) -> dict:
    """The description that the tensors call for. Metadata that is there and not null is kept."""
    parts = {f"{name}.{part}": opened.kind(name) for name in opened.int8 for part in PARTS[opened.kind(name)]}
    kinds = set(parts.values())
    kept = {key: value for key, value in (opened.description or {}).items() if value is not None and "." not in key}
    entries = {name: parts.get(name, "FLOAT") for name in opened.tensors}
    entries.setdefault(f"{opened.head}.weight", "FLOAT")
    entries |= {f"{alias}.weight": entries[f"{linear}.weight"] for alias, linear in opened.aliases.items()}
    return {**kept, "version": "1.0.0", "model_quant_type": _main(opened, kinds), **entries}


def configure(opened: Directory) -> dict:
    """config.json as the tensors call for it."""
    dtype = opened.float_dtype if opened.float_dtype in ("float16", "bfloat16") else opened.configured_dtype
    static = any(opened.kind(name) != "W8A8_DYNAMIC" for name in opened.vision_int8)
    static = static and not opened.family.mindie_vision_follows
    config = config_json.edit(
        opened.config,
        flat=opened.family.flat_config,
        dtype=dtype or "bfloat16",
        vision_int8=static,
        vocab_size=opened.family.vocab_size(opened.config),
        old_rope=opened.family.old_rope,
    )
    kinds = {opened.kind(name) for name in opened.int8}
    config.pop("quantize")
    config["model_type"] = opened.family.model_type
    return {**config, "quantize": QUANTIZE[_main(opened, kinds)]} if kinds else config


def _main(opened: Directory, kinds: set[str]) -> str:
    """The type that stands for all: the static one, unless MindIE knows the model by its dynamic experts."""
    if not kinds:
        return "FLOAT"
    return max(kinds) if opened.family.mindie_experts and "W8A8_DYNAMIC" in kinds else min(kinds)
