"""What MindIE and vLLM-Ascend demand of a W8A8 directory, as named rules, and the check of a directory against them.

    findings = check(OUT, ["mindie", "vllm-ascend"], hardware="a2", world_size=8)     [] where everything is in order

A rule is a function (Directory, Target) -> Finding..., reported under its own name (`deq_scale_dtype` as
"deq-scale-dtype") and kept in the module of its topic: files, description, linears, model, deployment. Rules state the
servers' demands on their own and import nothing from what writes an export: a mistake there is not repeated here. What
they state was read from, and mostly run against, the servers' loaders of mid-2026 with the NPU kernels emulated;
nothing was run on an NPU.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from . import deployment, description, files, linears, model
from .directory import Directory, Target, open_directory
from .finding import SERVERS, Finding, Rule

__all__ = ["RULES", "SERVERS", "Directory", "Finding", "Target", "check", "check_directory", "open_directory"]

RULES: dict[str, Rule] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        files.weights,
        files.damaged,
        files.duplicate_tensors,
        files.weight_index,
        files.side_files,
        files.tokenizer,
        files.processor,
        files.modes,
        files.path_characters,
        description.description_file,
        description.description_size,
        description.description_keys,
        description.description_entry,
        description.description_type,
        description.description_parts,
        description.description_stale,
        linears.linear_parts,
        linears.linear_shapes,
        linears.deq_scale_dtype,
        linears.packed_types,
        linears.shared_input_scale,
        model.missing_tensors,
        model.kept_float,
        model.vision_whole,
        model.vision_switch,
        model.vision_shape,
        model.vision_dtype,
        model.norm_names,
        model.norm_bias,
        model.tied_head,
        model.quantize_key,
        model.quantization_config,
        model.torch_dtype,
        model.changed_dtype,
        model.vocab_size,
        model.flat_config,
        deployment.activation_type,
        deployment.one_type,
        deployment.hardware,
        deployment.world_size,
        deployment.vision_tensor_parallel,
    )
}


def check(
    directory: str | Path,
    servers: Iterable[str] = tuple(SERVERS),
    hardware: str | None = None,
    world_size: int = 1,
    source: str | Path | None = None,
) -> list[Finding]:
    """Every finding, errors first. hardware: "a2", "a3", "310p" or None for any of the first two; source: the float
    checkpoint.

    Raises UsageError when `directory` is not an export of a supported family.
    """
    return check_directory(
        open_directory(directory), servers, hardware, world_size, None if source is None else Path(source)
    )


def check_directory(
    opened: Directory,
    servers: Iterable[str],
    hardware: str | None = None,
    world_size: int = 1,
    source: Path | None = None,
) -> list[Finding]:
    """As check(), of a directory that is open already. What two servers complain of alike is one finding."""
    found: dict[tuple[str, str, str], Finding] = {}
    for server in servers:
        target = Target(server, hardware, world_size, source)
        for name, rule in RULES.items():
            if not opened.readable and rule.__module__ != files.__name__:
                continue  # half the tensors would be reported as missing
            for finding in rule(opened, target):
                if server not in finding.effects:
                    continue
                key = (name, finding.where, finding.what)
                effects = {**(found[key].effects if key in found else {}), server: finding.effects[server]}
                found[key] = replace(finding, rule=name, effects=effects)
    return sorted(found.values(), key=lambda finding: finding.level != "error")
