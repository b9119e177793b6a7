"""The model card of an export, README.md: how it was made, what was measured, how to serve it, what not to change.

OUT in it stands for the directory, so that its bytes do not depend on the place. It is made from what the directory
itself holds, so that every format has one that is right for it.
"""

from collections.abc import Iterable
from math import isfinite
from pathlib import Path

from ..base.version import VERSION
from ..families import family_of
from ..files.config_json import dtype_name, read_json
from .description import DESCRIPTION
from .recipe import RECIPE, RUN_LOG

CARD = "README.md"
METHODS = {"m2": "Outlier Suppression+ (m2)", "m4": "iterative smooth (m4)", "none": "no outlier suppression"}
UNKNOWN = "Not recorded: this export came from a tool that keeps no record of how."


def card(directory: Path) -> str:
    """The text of README.md, by the config.json, description and records in `directory`. Raises QuantError for one that
    cannot be read.
    """
    config = read_json(directory / "config.json")
    family = family_of(config, directory)
    recipe, run = (read_json(directory / name) if (directory / name).is_file() else {} for name in (RECIPE, RUN_LOG))
    file = next((directory / name for name in DESCRIPTION.values() if (directory / name).is_file()), None)
    described = read_json(file) if file else {}
    kinds = {
        linear.removesuffix(".weight"): kind
        for linear, kind in described.items()
        if linear.endswith(".weight") and str(kind).startswith("W8A8")
    }
    vision = [linear for linear in kinds if linear.startswith(family.tower("vision").prefix)]
    parts = [
        FRONT,
        f"# {family.name}, {described.get('model_quant_type', 'compressed-tensors')}",
        f"Weights and activations of {len(kinds)} linears in 8 bits, for Ascend NPUs; the rest is {dtype_name(config)}."
        if kinds
        else f"8-bit weights and activations in the compressed-tensors format; the rest is {dtype_name(config)}.",
        "## How it was made\n\n" + (_made(recipe, run) if recipe else UNKNOWN),
        "## What was measured\n\n" + _measured(run, family) + MEASURE,
        "## How to serve it\n\nOUT is this directory.\n\n"
        + _serve(bool(described), file is not None and file.name == DESCRIPTION["mindie"], kinds.values()),
    ]
    if described and vision and family.mindie_transposed:
        parts.append(ONE_NPU.format(linear=family.mindie_transposed))
    parts.append(KEEP + (KEEP_ASCEND if described else ""))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _made(recipe: dict, run: dict) -> str:
    config, tokens = recipe["config"], recipe.get("tokens") or {}
    method = METHODS.get(config["anti_method"], config["anti_method"])
    if recipe.get("msmodelslim"):
        method += f", by msmodelslim {recipe['msmodelslim']}"
    rows = {
        "made from": f"sha256 {recipe['source_sha256'][:16]} (`python -m quant verify` checks it)"
        if recipe.get("source_sha256")
        else None,
        "outlier suppression": method,
        "activations": {1: "min-max", 2: "histogram", 3: "the better of min-max and histogram"}[config["act_method"]],
        "rounding of weights": config.get("w_method", "nearest")
        + (", its mean error taken up in quant_bias" if config.get("bias_correction") else ""),
        "kept float": f"{len(recipe['float'])} linears",
        "calibrated with": f"{len(recipe['samples'])} samples"
        + "".join(f", {count} tokens of {kind}s" for kind, count in tokens.items()),
        "calibration": f"sha256 {recipe['calibration_sha256'][:16]}, seed {config['seed']}",
        "computed": f"in {recipe['compute_dtype']} on {run.get('device', 'a device that is not recorded')}",
        "versions": f"quant {recipe['version']}, torch {recipe['torch']}, transformers {recipe['transformers']}",
        "choices": f"fingerprint {recipe['fingerprint'][:16]}; all of them are in {RECIPE}",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {what} | {said} |" for what, said in rows.items() if said)


def _measured(run: dict, family) -> str:
    rows = []
    for tower in family.towers:
        unseen = {entry["block"]: entry.get("snr_held_out_db") for entry in run.get("blocks", [])}
        found = sorted(
            (snr, block)
            for block, snr in unseen.items()
            if block.startswith(tower.prefix) and snr is not None and isfinite(snr)
        )
        if found:
            median, (least, block) = found[len(found) // 2][0], found[0]
            rows.append(f"| {tower.name} | {len(found)} | {median:.1f} | {least:.1f} | {block} |")
    if not rows:
        return "Nothing, while it was made.\n"
    return (
        "Signal-to-noise of each int8 block against the float one, dB, on samples that calibration did not see:\n\n"
        "| tower | blocks | median | least | at |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _serve(ascend: bool, old: bool, kinds: Iterable[str]) -> str:
    if not ascend:
        return "```bash\nvllm serve OUT   # the format is in config.json\n```"
    lines = [] if old else ["vllm serve OUT --quantization ascend"]
    if old or set(kinds) == {"W8A8"}:
        lines.append("python -m quant handoff OUT --server mindie --out HANDOFF   # MindIE's configuration and start")
    lines.append("python -m quant serve OUT   # here, without a card: the same arithmetic, slowly")
    lines.append("python -m quant check OUT   # the servers' rules, and the numbers of NPUs it is right on")
    return "```bash\n" + "\n".join(lines) + "\n```"


FRONT = f"""\
---
tags: [w8a8, int8, ascend, quantized]
---

<!-- written by quant {VERSION}; an export to another format writes it anew -->"""
MEASURE = """
Accuracy was not measured then. Against the float model:

```bash
python -m quant verify OUT --model_path FLOAT --json verify.json
python -m quant evaluate --model_path FLOAT --quantized OUT --data OCRBench.tsv --json evaluation.json
python -m quant report OUT --verify verify.json --evaluation evaluation.json
```"""
ONE_NPU = """\
**MindIE on one NPU only**: on several it computes the int8 vision tower wrongly, without an error ({linear} is used
transposed). For more, quantize with `--world_size N`, or `--vision float`. vLLM-Ascend is not concerned."""
KEEP = """\
## What not to change

- dtype: config.json's `torch_dtype`, or the server's `--dtype`. Scales were stored for it.
- The weight files and their names, the tokenizer, the chat template, preprocessor_config.json: it was calibrated with
  them.
"""
KEEP_ASCEND = """\
- The description, and `quantize` in config.json: they name each tensor's type. MindIE knows the vision tower's from
  `vision_config.quantize` alone.
- The modes of the files, 640, and of the directory, 750: MindIE refuses wider ones.
"""
