"""The check of an export against the servers' rules: silent on good exports, and exactly one rule named for each thing
broken.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch
import vllm_names
from contracts.cases import CASES
from exports import DESCRIPTION, WEIGHTS, Exports, copy, drop, edit_json, edit_tensors
from safetensors.torch import save_file

from quant.base.config import QuantConfig
from quant.base.errors import QuantError
from quant.export.formats import export
from quant.export.plan import make_plan
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.servers.rules import RULES, check

FAMILIES = ("qwen2_vl", "llava", "qwen2_5_vl", "qwen3_vl")
BOTH = ("mindie", "vllm-ascend")
SCALES = ("weight_scale", "weight_offset")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def found(*arguments, **choices) -> list:
    """What check finds, but that tiny LLaVA's vocabulary of 512 is below MindIE's default top_k: tests/contracts."""
    return [finding for finding in check(*arguments, **choices) if finding.rule != "sampling"]


# -- no false alarm


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_good_export_has_no_findings(exports, family, dtype):
    # MindIE feeds LLaVA's vision tower float16 pixels: a bfloat16 LLaVA is a true finding there, see below.
    mindie = () if (family, dtype) == ("llava", "bfloat16") else ("mindie",)
    source = exports.source(family, dtype)
    assert found(exports(family, dtype), (*mindie, "vllm-ascend"), source=source) == []
    assert found(exports(family, dtype, "mindie"), mindie, source=source) == []


def test_good_shards_tied_heads_and_float_vision_have_no_findings(exports, tmp_path):
    import tiny

    from quant.base.config import QuantConfig
    from quant.calibrate.calibrator import Calibrator

    source = tiny.make(tmp_path / "src", "qwen2_vl", tied=True)
    for vision in ("int8", "float"):
        config = QuantConfig(anti_method="m4", vision=vision, dev_type="cpu", disable_names=("model.layers.0.*",))
        calibrator = Calibrator(source, config, str(exports.images)).run(tmp_path)
        calibrator.save(tmp_path / f"out-{vision}")
        assert (
            check(tmp_path / f"out-{vision}", world_size=2 if vision == "float" else 1, hardware="a2", source=source)
            == []
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_finds_every_key(exports, tmp_path, family):
    """By vLLM-Ascend's own renaming and look-up, of every kind of linear and every profile that it has."""
    static = exports(family)
    for act, word in (("static", "W8A8"), ("dynamic", "W8A8_DYNAMIC"), ("mix", "W8A8_MIX")):
        out = static if act == "static" else export(static, tmp_path / act, "ascendV1", act)
        assert set(vllm_names.assert_found(out).values()) == {"FLOAT", word}
    vllm = exports(family, profile="vllm-ascend")
    assert set(vllm_names.assert_found(vllm).values()) == {"FLOAT", "W8A8", "W8A8_DYNAMIC"}


@pytest.mark.parametrize("family", tiny.known())
def test_the_profile_of_mindie_decides_as_both_do(exports, family):
    """So that what is shown of the one's keys holds for the other's."""
    checkpoint = Checkpoint(exports.source(family))
    both, mindie = (
        make_plan(checkpoint, family_of(checkpoint.config, checkpoint.dir), QuantConfig(profile=profile))
        for profile in ("both", "mindie")
    )
    assert both.decisions == mindie.decisions


# -- one thing broken, one rule named

Q = "model.layers.0.self_attn.q_proj"  # of Qwen
FC1 = "visual.blocks.1.mlp.fc1"


def config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "config.json", change)


def described(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / DESCRIPTION, change)


def tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda directory: edit_tensors(directory, change)


def replace_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return tensors(lambda all_: all_.update({name: change(all_[name])}))


def int8_codes(*linears: str) -> Callable[[Path], None]:
    """Turn float linears into W8A8 ones, tensors and entries alike."""

    def change(directory: Path) -> None:
        described_too = json.loads((directory / DESCRIPTION).read_text())

        def quantize(all_: dict) -> None:
            for name in linears:
                outputs, dtype = len(all_[f"{name}.weight"]), all_[f"{name}.weight"].dtype
                all_[f"{name}.weight"] = torch.zeros(all_[f"{name}.weight"].shape, dtype=torch.int8)
                parts = {
                    "weight_scale": torch.ones(outputs, 1),
                    "weight_offset": torch.zeros(outputs, 1),
                    "input_scale": torch.ones(1),
                }
                parts |= {"input_offset": torch.zeros(1), "quant_bias": torch.zeros(outputs, dtype=torch.int32)}
                parts["deq_scale"] = (
                    torch.ones(outputs) if dtype == torch.bfloat16 else torch.ones(outputs, dtype=torch.int64)
                )
                all_.update({f"{name}.{part}": tensor for part, tensor in parts.items()})
                described_too.update({f"{name}.{part}": "W8A8" for part in ("weight", *parts)})

        edit_tensors(directory, quantize)
        (directory / DESCRIPTION).write_text(json.dumps(described_too))

    return change


def back_to_float(*linears: str) -> Callable[[Path], None]:
    """Turn int8 linears into float ones, tensors and entries alike."""

    def change(directory: Path) -> None:
        parts = [
            f"{name}.{part}"
            for name in linears
            for part in ("weight_scale", "weight_offset", "input_scale", "input_offset", "quant_bias", "deq_scale")
        ]
        drop(directory, *parts)
        edit_tensors(
            directory,
            lambda all_: all_.update({f"{name}.weight": all_[f"{name}.weight"].bfloat16() for name in linears}),
        )
        edit_json(
            directory / DESCRIPTION, lambda entries: entries.update({f"{name}.weight": "FLOAT" for name in linears})
        )

    return change


def float_experts(prefix: str) -> Callable[[Path], None]:
    """Turn a dynamic expert's linears into float ones."""

    def change(directory: Path) -> None:
        scales = [f"{prefix}{part}_proj.{scale}" for part in ("gate", "up", "down") for scale in SCALES]
        edit_tensors(directory, lambda all_: [all_.pop(name) for name in scales])
        edit_json(directory / DESCRIPTION, lambda entries: [entries.pop(name) for name in scales])
        names = [f"{prefix}{part}_proj.weight" for part in ("gate", "up", "down")]
        edit_tensors(directory, lambda all_: all_.update({name: all_[name].bfloat16() for name in names}))
        edit_json(directory / DESCRIPTION, lambda entries: entries.update(dict.fromkeys(names, "FLOAT")))

    return change


def second_file(directory: Path) -> None:
    save_file({f"{Q}.bias": torch.zeros(256, dtype=torch.bfloat16)}, directory / "quant_model_weight_extra.safetensors")
    (directory / "quant_model_weight_extra.safetensors").chmod(0o640)


def truncate(directory: Path) -> None:
    with open(directory / WEIGHTS, "r+b") as stream:
        stream.truncate((directory / WEIGHTS).stat().st_size - 10)


def put(name: str, text: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).write_text(text)
        (directory / name).chmod(0o640)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def no_chat_template(directory: Path) -> None:
    (directory / "chat_template.json").unlink()
    edit_json(directory / "tokenizer_config.json", lambda settings: settings.pop("chat_template", None))


def huge_description(directory: Path) -> None:
    with open(directory / DESCRIPTION, "r+b") as stream:
        stream.truncate(100 * 2**20 + 1)  # a sparse file


def nested_config(settings: dict) -> None:
    settings["text_config"] = {key: settings[key] for key in ("hidden_size", "num_hidden_layers")}


def tie_both(settings: dict) -> None:
    settings["tie_word_embeddings"] = settings["text_config"]["tie_word_embeddings"] = True


@dataclass
class Broken:
    """rule: the one that must be named, and no other. servers: those that are asked; other_minds: whether the other one
    does too.
    """

    rule: str
    change: Callable[[Path], object]
    servers: tuple[str, ...] = BOTH
    family: str = "qwen2_vl"
    dtype: str = "bfloat16"
    hardware: str | None = None
    world_size: int = 1
    level: str = "error"
    with_source: bool = False
    choices: dict | None = None
    other_minds: bool = False


def named(said: str) -> list[str]:
    """The rule in what a row of tests/contracts says."""
    return said.partition(": ")[0].split()[1:]


LLAMA = "language_model.model.layers.1"
BROKEN = {
    # files
    "no weights": Broken("weights", remove(WEIGHTS)),
    "truncated weights": Broken("damaged", truncate),
    "description is no JSON": Broken("damaged", put(DESCRIPTION, "{")),
    "tensor in two files": Broken("duplicate-tensors", second_file),
    "index of another run": Broken(
        "weight-index", put("model.safetensors.index.json", '{"weight_map": {"a": "b"}}'), ("vllm-ascend",)
    ),
    "index without a map": Broken(
        "weight-index", put("quant_model_weight_w8a8.safetensors.index.json", "{}"), ("vllm-ascend",)
    ),
    "side file not copied": Broken("side-files", remove("generation_config.json"), with_source=True, level="warning"),
    "merges.txt not copied": Broken("side-files", remove("merges.txt"), with_source=True, level="taste"),
    "half a tokenizer": Broken(
        "tokenizer", lambda d: [(d / name).unlink() for name in ("merges.txt", "tokenizer.json")]
    ),
    "no tokenizer": Broken("tokenizer", remove("tokenizer.json"), family="llava", dtype="float16"),
    "no image processor": Broken("processor", remove("preprocessor_config.json")),
    "no chat template": Broken("processor", no_chat_template, level="warning"),
    "side file is no JSON": Broken("processor", put("generation_config.json", "nonsense")),
    "weights for the owner alone": Broken("modes", lambda d: (d / WEIGHTS).chmod(0o400), ("mindie",)),
    "weights for everyone": Broken("modes", lambda d: (d / WEIGHTS).chmod(0o666), ("mindie",)),
    "directory for everyone": Broken("modes", lambda d: d.chmod(0o755), ("mindie",)),
    "blank in a file name": Broken("path-characters", put("my tokenizer.json", "{}"), ("mindie",)),
    # description
    "description under its old name": Broken(
        "description-file",
        lambda d: (d / DESCRIPTION).rename(d / "quant_model_description_w8a8.json"),
        ("vllm-ascend",),
    ),
    "no description": Broken("description-file", remove(DESCRIPTION)),
    "description of 100 MB": Broken("description-size", huge_description, ("mindie",)),
    "null in the description": Broken(
        "description-keys", described(lambda x: x.update(fa_quant_type=None)), ("vllm-ascend",)
    ),
    "no version": Broken("description-keys", described(lambda x: x.pop("version")), ("mindie",), level="taste"),
    "no model type": Broken(
        "description-keys", described(lambda x: x.pop("model_quant_type")), ("mindie",), level="taste"
    ),
    "no entry for a linear": Broken(
        "description-entry", described(lambda x: x.pop("visual.merger.mlp.0.weight")), ("vllm-ascend",)
    ),
    "no entry for the embedding": Broken(
        "description-entry", described(lambda x: x.pop("model.embed_tokens.weight")), ("vllm-ascend",)
    ),
    "no entry for a packed linear": Broken("description-entry", described(lambda x: x.pop(f"{Q}.weight"))),
    "unknown type": Broken(
        "description-type", described(lambda x: x.update({"visual.merger.mlp.0.weight": "W4A4"})), ("vllm-ascend",)
    ),
    "float described as int8": Broken(
        "description-type",
        described(lambda x: x.update({"model.layers.1.mlp.down_proj.weight": "W8A8"})),
        ("vllm-ascend",),
    ),
    "a part of another type": Broken(
        "description-parts", described(lambda x: x.update({f"{Q}.deq_scale": "FLOAT"})), level="warning"
    ),
    "bias described as int8": Broken(
        "description-parts", described(lambda x: x.update({f"{Q}.bias": "W8A8"})), level="warning"
    ),
    "entry without a tensor": Broken(
        "description-stale",
        described(lambda x: x.update({"model.layers.7.mlp.x.weight": "W8A8"})),
        level="warning",
    ),
    "entry of a wrapped norm": Broken(
        "description-stale", described(lambda x: x.update({"model.norm.module.weight": "FLOAT"})), ("mindie",)
    ),
    # linears
    "no deq_scale": Broken("linear-parts", lambda d: drop(d, f"{FC1}.deq_scale")),
    "no input_offset": Broken(
        "linear-parts",
        tensors(lambda x: x.pop(f"{LLAMA}.self_attn.o_proj.input_offset")),
        family="llava",
        dtype="float16",
    ),
    "input_scale is a scalar": Broken("linear-shapes", replace_tensor(f"{FC1}.input_scale", lambda t: t[0])),
    "weight_scale is flat": Broken(
        "linear-shapes", replace_tensor(f"{FC1}.weight_scale", lambda t: t[:, 0]), ("vllm-ascend",)
    ),
    "weight is transposed": Broken("linear-shapes", replace_tensor(f"{FC1}.weight", lambda t: t.t())),
    "quant_bias is int64": Broken(
        "linear-shapes", replace_tensor(f"{FC1}.quant_bias", lambda t: t.long()), ("mindie",)
    ),
    "quant_bias is float32": Broken("linear-shapes", replace_tensor(f"{FC1}.quant_bias", lambda t: t.float())),
    "deq_scale as a float16 model has it": Broken(
        "deq-scale-dtype", replace_tensor(f"{Q}.deq_scale", lambda t: t.view(torch.int32).long())
    ),
    "deq_scale as a bfloat16 model has it": Broken(
        "deq-scale-dtype",
        replace_tensor(f"{LLAMA}.mlp.up_proj.deq_scale", lambda t: t.int().view(torch.float32)),
        family="llava",
        dtype="float16",
    ),
    "bfloat16 on the 310P": Broken(
        "deq-scale-dtype", lambda d: None, ("vllm-ascend",), hardware="310p", other_minds=True
    ),
    "q float, k and v int8": Broken("packed-types", back_to_float(Q), ("vllm-ascend",), other_minds=True),
    "gate dynamic, up static": Broken(
        "packed-types",
        described(
            lambda x: x.update(
                {
                    f"model.layers.1.mlp.gate_proj.{part}": "W8A8_MIX"
                    for part in (
                        "weight",
                        "weight_scale",
                        "weight_offset",
                        "input_scale",
                        "input_offset",
                        "quant_bias",
                        "deq_scale",
                    )
                }
            )
        ),
        ("vllm-ascend",),
        other_minds=True,
    ),
    "q has a scale of its own": Broken("shared-input-scale", replace_tensor(f"{Q}.input_scale", lambda t: t * 2)),
    "up has an offset of its own": Broken(
        "shared-input-scale",
        replace_tensor(f"{LLAMA}.mlp.up_proj.input_offset", lambda t: t + 1),
        family="llava",
        dtype="float16",
    ),
    # model
    "a norm is missing": Broken("missing-tensors", lambda d: drop(d, "visual.blocks.1.norm2.bias")),
    "a bias is missing": Broken("missing-tensors", lambda d: drop(d, "model.layers.1.self_attn.k_proj.bias")),
    "the projector is missing": Broken(
        "missing-tensors",
        lambda d: drop(d, "multi_modal_projector.linear_1.bias"),
        family="llava",
        dtype="float16",
        with_source=True,
    ),
    "int8 head": Broken("kept-float", int8_codes("lm_head")),
    "int8 merger": Broken("kept-float", int8_codes("visual.merger.mlp.2"), ("mindie",)),
    "int8 fc2": Broken("kept-float", int8_codes("visual.blocks.0.mlp.fc2"), ("mindie",)),
    "half a vision tower": Broken("vision-whole", back_to_float(FC1), ("mindie",)),
    "int8 vision in LLaVA": Broken(
        "vision-whole",
        int8_codes("vision_tower.vision_model.encoder.layers.0.mlp.fc2"),
        ("mindie",),
        family="llava",
        dtype="float16",
    ),
    "vision switched off": Broken("vision-switch", config(lambda x: x["vision_config"].pop("quantize")), ("mindie",)),
    "vision switched on": Broken(
        "vision-switch",
        config(lambda x: x["vision_config"].update(quantize="w8a8")),
        ("mindie",),
        choices={"vision": "float"},
    ),
    "heads of 40 channels": Broken(
        "vision-shape", config(lambda x: x["vision_config"].update(num_heads=4)), ("mindie",)
    ),
    "LLaVA in bfloat16": Broken("vision-dtype", lambda d: None, ("mindie",), family="llava"),
    "norm of a wrapped module": Broken(
        "norm-names", tensors(lambda x: x.update({"model.norm.module.weight": x["model.norm.weight"].clone()}))
    ),
    "shifted norm before float linears": Broken(
        "norm-bias",
        tensors(
            lambda x: x.update(
                {
                    f"model.layers.{i}.post_attention_layernorm.bias": torch.zeros(256, dtype=torch.bfloat16)
                    for i in (0, 1)
                }
            )
        ),
        ("mindie",),
        choices={"disable_names": ("model.layers.*.mlp.*",)},
    ),
    "no head": Broken("tied-head", lambda d: edit_tensors(d, lambda x: x.pop("lm_head.weight"))),
    "no quantize": Broken(
        "quantize-key", config(lambda x: x.pop("quantize")), ("mindie",), family="llava", dtype="float16"
    ),
    "no quantize at all": Broken(
        "quantize-key",
        lambda d: (
            config(lambda x: x.pop("quantize"))(d),
            described(lambda x: x.update(model_quant_type="W4A16"))(d),
        ),
        ("mindie",),
    ),
    "quantize of another type": Broken(
        "quantize-key", config(lambda x: x.update(quantize="w8a8_dynamic")), ("mindie",), level="warning"
    ),
    "quantization_config": Broken(
        "quantization-config", config(lambda x: x.update(quantization_config={"w_bit": 8})), ("vllm-ascend",)
    ),
    "no torch_dtype": Broken("torch-dtype", config(lambda x: x.pop("torch_dtype"))),
    "torch_dtype changed": Broken("changed-dtype", config(lambda x: x.update(torch_dtype="float16"))),
    "one expert of eight is float": Broken(
        "expert-types",
        float_experts("model.language_model.layers.0.mlp.experts.3."),
        ("vllm-ascend",),
        family="qwen3_vl_moe",
        other_minds=True,
    ),
    "float16 in text_config": Broken(
        "text-dtype", config(lambda x: x["text_config"].update(dtype="float16")), ("mindie",), family="qwen3_vl"
    ),
    "a float vision tower that follows": Broken(
        "vision-whole", lambda d: None, ("mindie",), family="qwen3_vl", choices={"vision": "float"}
    ),
    "a size that is not documented": Broken(
        "served",
        lambda d: (drop(d, "lm_head.weight"), config(tie_both)(d)),
        ("mindie",),
        family="qwen3_vl",
        level="warning",
    ),
    "no vocab_size": Broken(
        "vocab-size",
        config(lambda x: x.pop("vocab_size")),
        ("mindie",),
        family="llava",
        dtype="float16",
        level="warning",
    ),
    "config.json of transformers 5": Broken("flat-config", config(nested_config), ("mindie",)),
    # deployment
    "Qwen2-VL on the 300I Duo": Broken("hardware", lambda d: None, ("mindie",), dtype="float16", hardware="310p"),
    "two chips of the 300I Duo": Broken(
        "world-size", lambda d: None, ("mindie",), family="llava", dtype="float16", hardware="310p", world_size=2
    ),
    "eight NPUs for two heads": Broken("world-size", lambda d: None, ("vllm-ascend",), world_size=8),
    "three NPUs": Broken(
        "world-size", lambda d: None, ("mindie",), world_size=3, choices={"vision": "float"}, other_minds=True
    ),
    "int8 vision on two NPUs": Broken("vision-tensor-parallel", lambda d: None, ("mindie",), world_size=2),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_thing_broken_is_the_one_rule_named(exports, tmp_path, name):
    case = BROKEN[name]
    export = copy(exports(case.family, case.dtype, **(case.choices or {})), tmp_path / "out")
    case.change(export)
    source = exports.source(case.family, case.dtype) if case.with_source else None
    servers = BOTH if len(case.servers) == 2 else case.servers
    findings = found(export, servers, case.hardware, case.world_size, source)
    assert {finding.rule for finding in findings} == {case.rule}
    assert all(finding.level == case.level for finding in findings)
    assert all(finding.where and finding.what and finding.fix for finding in findings)
    assert {server for finding in findings for server in finding.effects} == set(servers)


@pytest.mark.parametrize(
    "name", [name for name, case in BROKEN.items() if len(case.servers) == 1 and not case.other_minds]
)
def test_the_server_that_does_not_mind_says_nothing(exports, tmp_path, name):
    case = BROKEN[name]
    other = next(server for server in BOTH if server not in case.servers)
    export = copy(exports(case.family, case.dtype, **(case.choices or {})), tmp_path / "out")
    case.change(export)
    named = {finding.rule for finding in check(export, [other], case.hardware, case.world_size)}
    assert case.rule not in named


def test_every_rule_has_its_mutation():
    tested_elsewhere = {
        "description-alias",
        "activation-type",
        "one-type",
    }  # test_documents.py, test_formats.py, test_schemes.py
    tested_elsewhere |= {rule for case in CASES for said in (*case.mindie[1:], *case.vllm[1:]) for rule in named(said)}
    assert set(RULES) == {case.rule for case in BROKEN.values()} | tested_elsewhere
    assert len(BROKEN) >= 30


# -- the command


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "quant", "check", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


def test_exit_codes_and_what_is_printed(exports, tmp_path):
    export = copy(exports("qwen2_vl"), tmp_path / "out")
    clean = command(export)
    assert (clean.returncode, clean.stdout) == (
        0,
        f"{export}: nothing wrong for MindIE and vLLM-Ascend\n"
        "NPUs     MindIE: right on 1 alone; on more silently wrong (--vision float)\n"
        "NPUs     vLLM-Ascend: right on 1 or 2\n",
    )
    wrong = command(export, "--target", "mindie", "--world_size", 2)
    assert (
        wrong.returncode == 1
        and "error: vision-tensor-parallel" in wrong.stdout
        and "1 errors, 0 warnings" in wrong.stdout
    )
    drop(export, *(f"model.layers.{i}.self_attn.{x}_proj.deq_scale" for i in (0, 1) for x in "qkv"))
    broken = command(export, "--target", "mindie")
    assert broken.returncode == 1
    lines = broken.stdout.splitlines()
    assert (
        lines[0] == "error: linear-parts" and "q_proj.deq_scale is missing" in lines[1] and lines[4] == "  and 3 more"
    )
    assert "MindIE: AssertionError: weight model.layers.0.self_attn.q_proj.deq_scale does not exist" in broken.stdout
    assert lines[-1].endswith("6 errors, 0 warnings for MindIE")


@pytest.mark.parametrize(
    "break_, message",
    [
        (lambda d: (d / "config.json").unlink(), "holds no config.json"),
        (lambda d: (d / "config.json").write_text("[]"), "an object was expected"),
        (
            lambda d: edit_json(d / "config.json", lambda x: x.update(architectures=["Other"])),
            "architecture Other is not supported",
        ),
        (lambda d: edit_json(d / "config.json", lambda x: x.update(vision_config=3)), "vision_config is no object"),
        (lambda d: edit_json(d / "config.json", lambda x: x.update(num_hidden_layers=10**5)), "100000 blocks or heads"),
        (
            lambda d: edit_json(
                d / "config.json", lambda x: x.update(quantization_config={"quant_method": "compressed-tensors"})
            ),
            "compressed-tensors format",
        ),
    ],
)
def test_what_cannot_be_judged_is_one_line(exports, tmp_path, break_, message):
    export = copy(exports("qwen2_vl"), tmp_path / "out")
    break_(export)
    with pytest.raises(QuantError, match=message):
        check(export)


def test_entries_of_any_json_type_are_findings(exports, tmp_path):
    export = copy(exports("qwen2_vl"), tmp_path / "out")
    edit_json(
        export / DESCRIPTION,
        lambda x: x.update({"lm_head.weight": ["FLOAT"], f"{Q}.weight": {"a": 1}, "visual.merger.mlp.0.weight": 8}),
    )
    assert {finding.rule for finding in check(export)} == {"description-type"}


def test_processor_is_loaded_when_asked_for(exports, tmp_path):
    export = copy(exports("qwen2_vl"), tmp_path / "out")
    assert command(export, "--processor").returncode == 0
    edit_json(export / "preprocessor_config.json", lambda x: x.update(patch_size="x"))
    assert command(export).returncode == 0
    broken = command(export, "--processor")
    assert broken.returncode == 1 and broken.stderr.startswith("error: ") and "Traceback" not in broken.stderr


def test_7b_directory_takes_less_than_two_seconds_and_no_torch(tmp_path):
    export = hollow_export(tmp_path, "qwen2vl-7b")
    before, start = os.times(), time.perf_counter()
    done = command(export)
    after, wall = os.times(), time.perf_counter() - start
    assert done.returncode == 0 and done.stdout.startswith(f"{export}: nothing wrong for MindIE and vLLM-Ascend\n")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    assert cpu < 2, f"{cpu:.2f} s of processor time, {wall:.2f} s in all"
    script = (
        f"import sys; from quant.servers.rules import check; check({str(export)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def hollow_export(directory: Path, size: str) -> Path:
    """An export of a published size whose weight files are all header: the data is a hole that takes no disk."""
    from bench import hub_files
    from bench.hub_config import SIZES
    from bench.hub_tensors import tensors as hub_tensors
    from quant.base.config import QuantConfig
    from quant.export.layout import export_layout
    from quant.export.plan import make_plan
    from quant.export.writer import write_beside
    from quant.families import family_of
    from quant.files.checkpoint import Checkpoint
    from quant.files.safetensors_io import SafetensorsWriter

    def hollow(file: Path, layout: dict) -> None:
        writer = SafetensorsWriter(file, layout)
        writer.abandon()
        os.truncate(file, writer.size)

    source, out = directory / "src", directory / "out"
    source.mkdir()
    out.mkdir()
    hollow(
        source / "model.safetensors",
        {tensor.name: (torch.bfloat16, tuple(tensor.shape)) for tensor in hub_tensors(SIZES[size].config)},
    )
    hub_files.write(source, SIZES[size])
    checkpoint = Checkpoint(source)
    plan = make_plan(checkpoint, family_of(checkpoint.config, source), QuantConfig())
    layout = export_layout(checkpoint, plan, torch.bfloat16)
    names = list(layout)
    for number in range(3):  # as many files as 8 GB make at 4 GB a file
        part = {name: layout[name] for name in names[number * len(names) // 3 : (number + 1) * len(names) // 3]}
        hollow(out / f"quant_model_weight_w8a8-{number + 1:05d}-of-00003.safetensors", part)
    write_beside(out, checkpoint, plan, layout, torch.bfloat16)
    return out


def test_every_rule_is_in_the_troubleshooting_page():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [rule for rule in RULES if f"`{rule}`" not in page] == []
    named = set(re.findall(r"`([a-z0-9][a-z0-9-]*)`(?=[^|]*\|\n)", page))
    assert named <= set(RULES)
