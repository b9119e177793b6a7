"""What MindIE and vLLM-Ascend demand of a W8A8 directory, as named rules, and the check of a directory against them.

    findings = check(OUT, ["mindie", "vllm-ascend"], hardware="a2", world_size=8)     [] where everything is in order

A rule is a function (Directory, Target) -> Finding..., reported under its own name (`deq_scale_dtype` as
"deq-scale-dtype") and kept in the module of its topic: files, description, linears, model, vision, config, source,
deployment. The table below says whose it is, and how much breaking it matters. Rules state the servers' demands on
their own and import nothing from what writes an export: a mistake there is not repeated here. What they state was read
from, and mostly run against, the loaders of finding.VERSIONS with the NPU kernels emulated; nothing was run on an NPU.
tests/contracts has it edit by edit.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from . import config, deployment, description, files, linears, model, source, vision
from .directory import Directory, Target
from .finding import LEVELS, SERVERS, VERSIONS, Finding, Rule
from .opening import open_directory

__all__ = ["RULES", "SERVERS", "VERSIONS", "Directory", "Finding", "Target", "check", "check_directory"]
__all__ += ["open_directory", "serving"]

_RULES = (
    Rule(files.weights),
    Rule(files.damaged),
    Rule(files.duplicate_tensors),
    Rule(files.weight_index),
    Rule(files.side_files, "warning", "warning"),
    Rule(files.tokenizer),
    Rule(files.processor),
    Rule(files.symbolic_links, vllm_ascend=None),
    Rule(files.modes, vllm_ascend=None),
    Rule(files.path_characters, vllm_ascend=None),
    Rule(description.description_file),
    Rule(description.description_size, vllm_ascend=None),
    Rule(description.description_keys, "taste", "error"),
    Rule(description.description_entry),
    Rule(description.description_alias),
    Rule(description.description_type),
    Rule(description.description_parts, "warning", "warning"),
    Rule(description.description_stale, "error", "warning"),
    Rule(linears.linear_parts),
    Rule(linears.linear_shapes),
    Rule(linears.deq_scale_dtype),
    Rule(linears.packed_types),
    Rule(linears.expert_types),
    Rule(linears.shared_input_scale),
    Rule(model.missing_tensors),
    Rule(model.unknown_tensors, mindie=None),
    Rule(model.block_count),
    Rule(model.config_numbers, "warning", "error"),
    Rule(model.tensor_names, vllm_ascend=None),
    Rule(model.kept_float),
    Rule(model.norm_names),
    Rule(model.norm_bias, vllm_ascend=None),
    Rule(vision.vision_whole, vllm_ascend=None),
    Rule(vision.vision_switch, vllm_ascend=None),
    Rule(vision.vision_shape, vllm_ascend=None),
    Rule(vision.vision_dtype, vllm_ascend=None),
    Rule(config.model_type),
    Rule(config.tied_head),
    Rule(config.quantize_key, vllm_ascend=None),
    Rule(config.quantization_config, mindie=None),
    Rule(config.torch_dtype),
    Rule(config.text_dtype, vllm_ascend=None),
    Rule(config.changed_dtype),
    Rule(config.vocab_size, "warning", None),
    Rule(config.flat_config, vllm_ascend=None),
    Rule(config.nested_config, vllm_ascend=None),
    Rule(source.same_model),
    Rule(source.sampling, vllm_ascend=None),
    Rule(deployment.served, vllm_ascend=None),
    Rule(deployment.activation_type, "warning", None),
    Rule(deployment.one_type, vllm_ascend=None),
    Rule(deployment.hardware, vllm_ascend=None),
    Rule(deployment.world_size),
    Rule(deployment.vision_tensor_parallel, vllm_ascend=None),
)
RULES: dict[str, Rule] = {rule.name: rule for rule in _RULES}


def check(
    directory: str | Path,
    servers: Iterable[str] = tuple(SERVERS),
    hardware: str | None = None,
    world_size: int = 1,
    source: str | Path | None = None,
) -> list[Finding]:
    """Every finding, errors first, tastes last. hardware: "a2", "a3", "310p" or None for any of the first two; source:
    the float checkpoint.

    Raises UsageError when `directory` is not an export of a supported family.
    """
    return check_directory(
        open_directory(directory), servers, hardware, world_size, None if source is None else Path(source)
    )


def serving(opened: Directory) -> list[str]:
    """The servers that have a loader for the model."""
    return [server for server in SERVERS if server != "mindie" or not opened.family.mindie_refuses]


def check_directory(
    opened: Directory,
    servers: Iterable[str],
    hardware: str | None = None,
    world_size: int = 1,
    source: Path | None = None,
) -> list[Finding]:
    """As check(), of a directory that is open already. What two servers complain of alike is one finding."""
    found: dict[tuple[str, ...], Finding] = {}
    for server in servers:
        target = Target(server, hardware, world_size, source)
        for name, rule in RULES.items():
            if not opened.readable and rule.judge.__module__ != files.__name__:
                continue  # half the tensors would be reported as missing
            if server == "mindie" and opened.family.mindie_refuses and rule.judge is not deployment.served:
                continue  # it does not come to the rest
            for finding in rule.judge(opened, target) if rule.level(server) else ():
                if server not in finding.effects:
                    continue
                key = (name, finding.level, finding.where, finding.what)
                effects = {**(found[key].effects if key in found else {}), server: finding.effects[server]}
                found[key] = replace(finding, rule=name, effects=effects)
    return sorted(found.values(), key=lambda finding: LEVELS.index(finding.level))
