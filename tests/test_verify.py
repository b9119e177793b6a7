"""verify: damage is found and named, intact exports are left alone, and a failure is put where it belongs."""

import json
import math
import subprocess
import sys

import exports
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from quant.arithmetic.int8 import pack_deq_scale, unpack_deq_scale
from quant.arithmetic.schemes import StaticLinear
from quant.base.config import QuantConfig
from quant.calibrate.calibrator import Calibrator
from quant.commands.cli import main
from quant.export import reader
from quant.families import family_of, llava, qwen2vl
from quant.files.checkpoint import Checkpoint
from quant.inputs.encoder import follow
from quant.inputs.images import open_image
from quant.verify import runtime, verdict
from quant.verify.measure import fidelity
from quant.verify.three_models import ThreeModels
from quant.verify.verify import check_format, check_values, compared_positions, verify

QWEN, LLAVA = ("qwen2_vl", "bfloat16"), ("llava", "float16")
PARTS = StaticLinear.parts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return exports.Exports(tmp_path_factory.mktemp("verify"))


# ---- damage, found without a run


def damage(source, directory) -> dict[str, str]:
    """Damaged tensor -> problem."""
    checkpoint, export = Checkpoint(source), reader.read(directory)
    found = check_format(checkpoint, export)
    family = family_of(checkpoint.config, source)
    found += check_values(checkpoint, export, family, {entry.tensor for entry in found})
    return {entry.tensor: entry.problem for entry in found}


def times(name: str, index, factor: float):
    def change(tensors):
        tensor = tensors[name].clone()
        if tensor.dtype == torch.int64:  # deq_scale of a float16 model
            value = unpack_deq_scale(tensor).clone()
            value[index] *= factor
            tensor = pack_deq_scale(value, torch.float16)
        else:
            tensor[index] = (tensor[index].double() * factor).to(tensor.dtype)
        tensors[name] = tensor

    return change


def plus(name: str, index, value: float):
    def change(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name][index] += value

    return change


def swapped(one: str, other: str, parts=PARTS):
    def change(tensors):
        for part in parts:
            tensors[f"{one}.{part}"], tensors[f"{other}.{part}"] = tensors[f"{other}.{part}"], tensors[f"{one}.{part}"]

    return change


def transposed(name: str):
    return lambda tensors: tensors.update({name: tensors[name].T.contiguous()})


def other_dtype(name: str):
    def change(tensors):
        tensor = tensors[name]
        tensors[name] = (
            unpack_deq_scale(tensor) if tensor.dtype == torch.int64 else pack_deq_scale(tensor, torch.float16)
        )

    return change


def halved_columns(name: str, columns: slice):
    """int8 codes of some columns, halved."""

    def change(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name][:, columns] //= 2

    return change


def reordered(name: str, *parts: slice):
    """The rows of a tensor, part by part in another order."""
    return lambda tensors: tensors.update({name: torch.cat([tensors[name][part] for part in parts])})


def code(name: str, row: int, column: int):
    """One int8 code far from what it was."""

    def change(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name][row, column] += 60 if tensors[name][row, column] < 0 else -60

    return change


V, L, C = "visual.blocks.1.", "model.layers.1.", "language_model.model.layers.1."
ATTN, CATTN = f"{L}self_attn.", f"{C}self_attn."
FLOAT, UNUSED = (f"vision_tower.vision_model.encoder.layers.{index}." for index in (0, 2))
OTHER = "is not the source's"
DAMAGE = {
    "one weight scale": (
        QWEN,
        times(f"{ATTN}q_proj.weight_scale", 3, 1.1),
        {f"{ATTN}q_proj.weight_scale": "wrong in row 3"},
    ),
    "one scale of a folded row": (
        QWEN,
        times(f"{ATTN}v_proj.weight_scale", 5, 1.2),
        {f"{ATTN}v_proj.weight_scale": "wrong in row 5"},
    ),
    "all weight scales": (
        QWEN,
        times(f"{ATTN}q_proj.weight_scale", slice(None), 1.1),
        {f"{ATTN}q_proj.weight_scale": "256 of 256"},
    ),
    "one deq_scale": (QWEN, times(f"{ATTN}k_proj.deq_scale", 7, 0.9), {f"{ATTN}k_proj.deq_scale": "row 7"}),
    "one deq_scale of a float16 model": (
        LLAVA,
        times(f"{CATTN}k_proj.deq_scale", 7, 0.9),
        {f"{CATTN}k_proj.deq_scale": "row 7"},
    ),
    "an input_scale": (QWEN, times(f"{ATTN}q_proj.input_scale", 0, 1.5), {f"{ATTN}q_proj.input_scale": "in most rows"}),
    "an input_offset": (
        QWEN,
        plus(f"{ATTN}k_proj.input_offset", 0, 3),
        {f"{ATTN}k_proj.input_offset": "quant_bias fits"},
    ),
    "one bias": (QWEN, times(f"{ATTN}q_proj.bias", 3, 2.0), {f"{ATTN}q_proj.bias": "row 3"}),
    "one bias of a fused qkv": (QWEN, times(f"{V}attn.qkv.bias", -5, 2.0), {f"{V}attn.qkv.bias": "row 475"}),
    "one quant_bias": (QWEN, plus(f"{ATTN}q_proj.quant_bias", 9, 5000), {f"{ATTN}q_proj.quant_bias": "row 9"}),
    "one quant_bias without a bias": (
        LLAVA,
        plus(f"{CATTN}q_proj.quant_bias", 9, 5000),
        {f"{CATTN}q_proj.quant_bias": "row 9"},
    ),
    "no quant_bias": (LLAVA, times(f"{CATTN}q_proj.quant_bias", slice(None), 0), {f"{CATTN}q_proj.quant_bias": "fits"}),
    "q and k swapped": (
        LLAVA,
        swapped(f"{CATTN}q_proj", f"{CATTN}k_proj"),
        {f"{CATTN}q_proj.weight": OTHER, f"{CATTN}k_proj.weight": OTHER},
    ),
    "weights of q and k swapped": (
        LLAVA,
        swapped(f"{CATTN}q_proj", f"{CATTN}k_proj", ["weight"]),
        {f"{CATTN}q_proj.weight": OTHER, f"{CATTN}k_proj.weight": OTHER},
    ),
    "k and v swapped": (
        LLAVA,
        swapped(f"{CATTN}k_proj", f"{CATTN}v_proj"),
        {f"{CATTN}k_proj.weight": OTHER, f"{CATTN}v_proj.weight": OTHER},
    ),
    "q and k of other shapes swapped": (
        QWEN,
        swapped(f"{ATTN}q_proj", f"{ATTN}k_proj"),
        {
            f"{ATTN}q_proj.weight": "has shape [128, 256], the source makes it [256, 256]",
            f"{ATTN}k_proj.weight": "has shape [256, 256], the source makes it [128, 256]",
        },
    ),
    "blocks swapped": (
        QWEN,
        swapped(f"{ATTN}q_proj", "model.layers.0.self_attn.q_proj", [*PARTS, "bias"]),
        {f"{ATTN}q_proj.weight": OTHER, "model.layers.0.self_attn.q_proj.weight": OTHER},
    ),
    "gate and up swapped": (
        QWEN,
        swapped(f"{L}mlp.gate_proj", f"{L}mlp.up_proj"),
        {f"{L}mlp.gate_proj.weight": OTHER, f"{L}mlp.up_proj.weight": OTHER},
    ),
    "q, k and v of a fused qkv in another order": (
        QWEN,
        reordered(f"{V}attn.qkv.weight", slice(160, 320), slice(0, 160), slice(320, None)),
        {f"{V}attn.qkv.weight": OTHER},
    ),
    "a square weight transposed": (QWEN, transposed(f"{ATTN}o_proj.weight"), {f"{ATTN}o_proj.weight": OTHER}),
    "a square weight after a norm transposed": (
        QWEN,
        transposed(f"{ATTN}q_proj.weight"),
        {f"{ATTN}q_proj.weight": OTHER},
    ),
    "a weight transposed": (
        QWEN,
        transposed(f"{L}mlp.gate_proj.weight"),
        {f"{L}mlp.gate_proj.weight": "it is transposed"},
    ),
    "a float weight transposed": (
        LLAVA,
        transposed(f"{FLOAT}self_attn.q_proj.weight"),
        {f"{FLOAT}self_attn.q_proj.weight": "is the transpose"},
    ),
    "deq_scale of a float16 model's dtype": (
        QWEN,
        other_dtype(f"{ATTN}q_proj.deq_scale"),
        {f"{ATTN}q_proj.deq_scale": "is int64, servers of bfloat16 models read float32"},
    ),
    "deq_scale of a bfloat16 model's dtype": (
        LLAVA,
        other_dtype(f"{CATTN}q_proj.deq_scale"),
        {f"{CATTN}q_proj.deq_scale": "is float32, servers of float16 models read int64"},
    ),
    "one channel of an RMSNorm": (
        QWEN,
        times(f"{L}input_layernorm.weight", 7, 1.5),
        {f"{L}input_layernorm.weight": "channel 7"},
    ),
    "a sign in an RMSNorm": (
        LLAVA,
        times(f"{C}post_attention_layernorm.weight", 7, -1),
        {f"{C}post_attention_layernorm.weight": "channel 7"},
    ),
    "one channel of a LayerNorm's bias": (QWEN, plus(f"{V}norm1.bias", 7, 0.3), {f"{V}norm1.bias": "channel 7"}),
    "one int8 code": (QWEN, code(f"{L}mlp.gate_proj.weight", 3, 4), {f"{L}mlp.gate_proj.weight": "in row 3"}),
    "columns of o for one of the heads that share a value": (
        QWEN,
        halved_columns(f"{ATTN}o_proj.weight", slice(0, 8)),
        {f"{ATTN}o_proj.weight": "by more than rounding"},
    ),
    "one value of a float linear": (
        QWEN,
        times(f"{L}mlp.down_proj.weight", (3, 5), 1.5),
        {f"{L}mlp.down_proj.weight": "1 of 81920"},
    ),
    "one value outside the blocks": (
        QWEN,
        plus("visual.merger.mlp.0.bias", 3, 1.0),
        {"visual.merger.mlp.0.bias": "1 of 640"},
    ),
    "a block without effect": (LLAVA, times(f"{UNUSED}mlp.fc1.bias", 3, 3.0), {f"{UNUSED}mlp.fc1.bias": "1 of"}),
    "a missing tensor": (QWEN, lambda t: t.pop(f"{ATTN}q_proj.quant_bias"), {f"{ATTN}q_proj.quant_bias": "is missing"}),
    "an unknown tensor": (
        QWEN,
        lambda t: t.update({"model.norm.bias": torch.zeros(256)}),
        {"model.norm.bias": "neither the source's"},
    ),
    "two at once": (
        QWEN,
        lambda t: (times(f"{ATTN}q_proj.bias", 3, 2.0)(t), transposed("model.layers.0.self_attn.o_proj.weight")(t)),
        {f"{ATTN}q_proj.bias": "row 3", "model.layers.0.self_attn.o_proj.weight": OTHER},
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(made, tmp_path, name):
    (family, dtype), change, expected = DAMAGE[name]
    directory = exports.copy(made(family, dtype), tmp_path / "out")
    exports.edit_tensors(directory, change)
    found = damage(made.source(family, dtype), directory)
    assert {
        tensor: expected[tensor] in problem for tensor, problem in found.items() if tensor in expected
    } == dict.fromkeys(expected, True), found
    # Another shape of the weight brings another shape of the bias; nothing else may be accused.
    assert all(tensor in expected or tensor.removesuffix("bias") + "weight" in expected for tensor in found), found


INTACT = [
    ("qwen2_vl", "bfloat16", dict(anti_method="m4")),
    ("qwen2_vl", "float32", dict(anti_method="m2")),
    ("qwen2_vl", "float16", dict(anti_method="m4", disable_names_only=(), act_method=3)),
    (
        "qwen2_vl",
        "bfloat16",
        dict(anti_method="m2", disable_names_only=("*q_proj", "*k_proj", "*v_proj", "*.layers.0.*")),
    ),
    ("llava", "float16", dict(anti_method="none")),
    ("llava", "bfloat16", dict(anti_method="m4", disable_names_only=(), dtype="float16")),
    ("qwen2_5_vl", "bfloat16", dict(anti_method="m4")),
]


@pytest.mark.parametrize("family,dtype,choices", INTACT)
def test_intact_exports_are_left_alone(made, tmp_path, family, dtype, choices):
    calibrator = Calibrator(made.source(family, dtype), QuantConfig(dev_type="cpu", **choices), made.images).run(
        tmp_path
    )
    calibrator.save(tmp_path / "out", ["mindie"])
    assert damage(made.source(family, dtype), tmp_path / "out") == {}


def test_channels_that_rounding_erases_are_no_damage(tmp_path):
    """A norm's outlier channel, whose weights are as small: without smoothing most of their codes are zero, all rounded
    the same way.
    """
    source = tiny.make(tmp_path / "src", "qwen2_vl", blocks=(1, 1))
    tensors = load_file(source / "model.safetensors")
    for norm, linears in (
        ("visual.blocks.0.norm2", ["visual.blocks.0.mlp.fc1"]),
        ("model.layers.0.post_attention_layernorm", ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]),
    ):
        for channel, factor in ((3, 100.0), (40, 300.0), (77, 1000.0)):
            tensors[f"{norm}.weight"][channel] *= factor
            for linear in linears:
                tensors[f"{linear}.weight"][:, channel] /= factor
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    Calibrator(source, QuantConfig(anti_method="none", dev_type="cpu"), tiny.make_images(tmp_path / "images", 1)).run(
        tmp_path
    ).save(tmp_path / "out")
    codes = reader.read(tmp_path / "out").load("model.layers.0.mlp.gate_proj.weight")
    assert (codes[:, [40, 77]] == 0).float().mean() > 0.9
    assert damage(source, tmp_path / "out") == {}


def test_a_description_that_calls_a_norm_int8_is_damage(made, tmp_path):
    directory, norm = exports.copy(made(*QWEN), tmp_path / "out"), f"{L}input_layernorm.weight"
    exports.edit_json(directory / exports.DESCRIPTION, lambda entries: entries.update({norm: "W8A8"}))
    found = damage(made.source(*QWEN), directory)
    assert found == {norm: "is described as an int8 linear's, the source's has shape [256]"}


def test_scales_that_are_no_numbers_are_named(made, tmp_path):
    directory = exports.copy(made(*QWEN), tmp_path / "out")
    exports.edit_tensors(directory, times(f"{ATTN}q_proj.deq_scale", 3, math.nan))
    assert set(damage(made.source(*QWEN), directory)) == {f"{ATTN}q_proj.deq_scale"}
    exports.edit_tensors(directory, times("visual.blocks.0.norm1.bias", 3, math.inf))
    assert set(damage(made.source(*QWEN), directory)) == {f"{ATTN}q_proj.deq_scale", "visual.blocks.0.norm1.bias"}
    assert run(made, directory, QWEN, "--json", tmp_path / "v.json") == 1
    report = json.loads(
        (tmp_path / "v.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON")
    )
    assert report["verdict"]["cause"] == "export" and report["verdict"]["first_bad_block"]


# ---- the three models


@pytest.mark.parametrize("family,dtype", [QWEN, LLAVA])
@torch.inference_mode()
def test_streamed_equals_whole_models(made, family, dtype):
    """Block after block, the float model and the export give what the whole models give, bit for bit."""
    checkpoint, export = Checkpoint(made.source(family, dtype)), reader.read(made(family, dtype))
    (float_model, encoder), (int8_model, _) = runtime.load_float(checkpoint.dir), runtime.load(export.dir)
    described = family_of(checkpoint.config, checkpoint.dir)
    inputs = encoder(open_image(next(made.images.iterdir())), described.prompt)
    models = ThreeModels(checkpoint, export, described, "cpu", [inputs])
    records = [record for tower in described.towers for record in models.run_tower(tower)]
    keep = compared_positions(inputs, described, checkpoint.config)
    ((_, logits),) = models.logits([keep])
    inputs["logits_to_keep"] = keep  # a product of fewer rows may round otherwise in bfloat16
    assert torch.equal(logits["float"], float_model(**inputs).logits[0])
    assert torch.equal(logits["export"], int8_model(**inputs).logits[0])
    assert not torch.equal(logits["rounded"], logits["float"])
    assert [entry["linear"] for record in records for entry in record["linears"]] == export.linear_names
    for record in records:  # calibrated on this very image: the export is as good as what is rounded afresh
        assert record["export"]["snr_db"] > record["rounded"]["snr_db"] - 1


def test_fidelity():
    rng = np.random.default_rng(0)
    y = [rng.normal(size=(count, 8)) * rng.uniform(1, 100, (count, 1)) for count in (3, 5)]
    got = [tensor + rng.normal(size=tensor.shape) for tensor in y]
    ratios = [((b - a) ** 2).sum() / (a**2).sum() for one, other in zip(y, got) for a, b in zip(one, other)]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for one, other in zip(y, got) for a, b in zip(one, other)]
    result = fidelity([torch.tensor(tensor)[None] for tensor in y], [torch.tensor(tensor)[None] for tensor in got])
    assert result["snr_db"] == pytest.approx(-10 * math.log10(np.mean(ratios)), rel=1e-5)
    assert result["cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)
    assert fidelity([torch.ones(2, 3)], [torch.ones(2, 3)])["snr_db"] == 200
    assert math.isnan(fidelity([torch.ones(2, 3)], [torch.full((2, 3), torch.nan)])["snr_db"])


def test_positions_and_answers():
    inputs = {
        "input_ids": torch.tensor([[1, 9, 9, 2, 3, 4]]),
        "attention_mask": torch.ones(1, 6, dtype=torch.long),
        "pixel_values": torch.zeros(2),
    }
    assert compared_positions(inputs, qwen2vl.QWEN2_VL, {"image_token_id": 9}).tolist() == [3, 4, 5]
    longer = follow(inputs, torch.tensor([7, 8]))
    assert longer["input_ids"].tolist() == [[1, 9, 9, 2, 3, 4, 7, 8]] and longer["attention_mask"].shape == (1, 8)
    assert compared_positions(longer, llava.LLAVA, {"image_token_index": 9}).tolist() == [3, 4, 5, 6, 7]
    # Old files of Qwen2-VL do not say it: it is the family's own.
    inputs["input_ids"][0, 3] = 151655
    assert compared_positions(inputs, qwen2vl.QWEN2_VL, {}).tolist() == [4, 5]
    assert inputs["input_ids"].shape == (1, 6)


# ---- the command


def run(made, directory, family=QWEN, *words):
    return main(
        [
            "verify",
            str(directory),
            "--model_path",
            str(made.source(*family)),
            "--images",
            str(made.images),
            "--tokens",
            "4",
            "--device_type",
            "cpu",
            *map(str, words),
        ]
    )


def test_a_good_export_passes(made, tmp_path, capsys):
    assert run(made, made(*QWEN), QWEN, "--json", tmp_path / "v.json") == 0
    printed = capsys.readouterr().out
    assert "passed" in printed and max(map(len, printed.splitlines())) <= 80
    report = json.loads(
        (tmp_path / "v.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON")
    )
    assert report["passed"] and report["findings"] == [] and report["verdict"]["cause"] is None
    assert [block["block"] for block in report["blocks"]] == [
        "visual.blocks.0",
        "visual.blocks.1",
        "model.layers.0",
        "model.layers.1",
    ]
    for model in ("export", "rounded"):
        assert report["logits"][model]["kl"] < 0.1
    (answer,) = report["free_running"]["answers"]
    assert 0 <= answer["same_from_start"] <= answer["tokens"] <= 4


@pytest.mark.parametrize(
    "name",
    [
        "one weight scale",
        "one bias",
        "q and k swapped",
        "deq_scale of a float16 model's dtype",
        "a square weight transposed",
    ],
)
def test_a_damaged_export_fails_by_name(made, tmp_path, capsys, name):
    family, change, expected = DAMAGE[name]
    directory = exports.copy(made(*family), tmp_path / "out")
    exports.edit_tensors(directory, change)
    assert run(made, directory, family, "--json", tmp_path / "v.json") == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "the export is damaged" in printed
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["verdict"]["cause"] == "export"
    for tensor in expected:
        assert tensor in printed and tensor in {finding["tensor"] for finding in report["findings"]}
    if name == "a square weight transposed":  # what it costs is measured too, where a server would run it
        (linear,) = expected
        assert report["verdict"]["first_bad_linear"] == linear.removesuffix(".weight")
        bad = next(
            entry
            for block in report["blocks"]
            for entry in block["linears"]
            if entry["linear"] == linear.removesuffix(".weight")
        )
        assert bad["export"]["snr_db"] < 3 and bad["rounded"]["snr_db"] > 20


def test_ranges_too_narrow_for_the_images_are_the_calibrations_fault(made, tmp_path, capsys):
    """Every tensor of the linear is consistent; only its range is a tenth of what it should be."""
    directory = exports.copy(made(*QWEN), tmp_path / "out")

    def change(tensors):
        for name in (f"{ATTN}q_proj", f"{ATTN}k_proj", f"{ATTN}v_proj"):
            scale, offset = tensors[f"{name}.input_scale"] / 10, tensors[f"{name}.input_offset"]
            weight = tensors[f"{name}.weight"].float() * tensors[f"{name}.weight_scale"]
            range_ = (-128 - offset[0]) * scale[0], (127 - offset[0]) * scale[0]
            linear = StaticLinear.quantize(name, weight, tensors[f"{name}.bias"].float(), range_, torch.bfloat16)
            tensors.update(linear.tensors())

    exports.edit_tensors(directory, change)
    assert run(made, directory, QWEN, "--json", tmp_path / "v.json") == 1
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["findings"] == [] and report["verdict"]["cause"] == "calibration"
    assert f"{ATTN}q_proj" in report["verdict"]["reasons"][0]
    assert "clipped" in capsys.readouterr().out


def test_a_wrong_reading_is_not_blamed_on_the_quantization(made, tmp_path, monkeypatch, capsys):
    """The tensors are right; what computes with them takes the scales of the rows in another order."""
    right = StaticLinear.read.__func__

    def confused(cls, *arguments):
        linear = right(cls, *arguments)
        linear.deq_scale = linear.deq_scale.flip(0) * 2
        return linear

    monkeypatch.setattr(StaticLinear, "read", classmethod(confused))
    assert run(made, made(*QWEN), QWEN, "--json", tmp_path / "v.json") == 1
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["findings"] == [] and report["verdict"]["cause"] == "reading"
    assert (
        report["verdict"]["first_bad_block"] == "visual.blocks.0"
        and report["verdict"]["first_bad_linear"] == "visual.blocks.0.attn.qkv"
    )


@pytest.mark.parametrize(
    "words,message",
    [
        (["--threshold", "kl"], "--threshold kl: '' is not a number"),
        (["--threshold", "klx=1"], "names are kl, top1, snr, clipped"),
        (["--json", "/nowhere/v.json"], "--json /nowhere/v.json: no such directory"),
        (["--tokens", "-1"], "--tokens -1: 0 or more"),
    ],
)
def test_bad_requests_are_one_line(made, capsys, words, message):
    assert run(made, made(*QWEN), QWEN, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_wrong_source_is_refused(made, capsys):
    assert run(made, made(*QWEN), LLAVA) == 2
    assert "one must be made from the other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "family,change,said",
    [
        (QWEN, lambda c: c.update(rms_norm_eps=1e-3), "rms_norm_eps is 0.001, the source's is 1e-06"),
        (QWEN, lambda c: c["vision_config"].update(num_heads=1), "vision_config.num_heads is 1, the source's is 2"),
        (LLAVA, lambda c: c["text_config"].update(rms_norm_eps=1e-3), "rms_norm_eps is 0.001, the source's is 1e-05"),
    ],
)
def test_another_config_is_damage(made, tmp_path, capsys, family, change, said):
    directory = exports.copy(made(*family), tmp_path / "out")
    exports.edit_json(directory / "config.json", change)
    assert run(made, directory, family) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"config.json: {said}" in printed and "the export is damaged" in printed


def depths(family, vision, language):
    """Sets the numbers of blocks in config.json."""

    def change(config):
        config["vision_config"]["num_hidden_layers" if family is LLAVA else "depth"] = vision
        config.get("text_config", config)["num_hidden_layers"] = language

    return change


@pytest.mark.parametrize("which", ["export", "source", "both"])
@pytest.mark.parametrize(
    "family,blocks,said",
    [
        (QWEN, (2, 1), "blocks of the language tower: 1 by config.json, 2 in the weights"),
        (QWEN, (1, 2), "blocks of the vision tower: 1 by config.json, 2 in the weights"),
        (QWEN, (2, 3), "blocks of the language tower: 3 by config.json, 2 in the weights"),
        (LLAVA, (2, 2), "blocks of the vision tower: 2 by config.json, 3 in the weights"),
    ],
)
def test_another_number_of_blocks_is_one_line(made, tmp_path, capsys, which, family, blocks, said):
    directory, source = exports.copy(made(*family), tmp_path / "out"), tmp_path / "src"
    exports.copy(made.source(*family), source)
    for changed in [directory] * (which != "source") + [source] * (which != "export"):
        exports.edit_json(changed / "config.json", depths(family, *blocks))
    words = ["verify", directory, "--model_path", source, "--images", made.images, "--device_type", "cpu"]
    assert main(list(map(str, words))) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {directory if which == 'export' else source}: {said};") and error.count("\n") == 1


@pytest.mark.parametrize("command", ["quantize", "dump"])
def test_fewer_blocks_than_the_weights_hold_are_one_line_to_every_command(made, tmp_path, capsys, command):
    source = exports.copy(made.source(*QWEN), tmp_path / "src")
    exports.edit_json(source / "config.json", depths(QWEN, 1, 2))
    words = {
        "quantize": ["--model_path", source, "--calib_images", made.images, "--save_directory", tmp_path / "out"],
        "dump": [tmp_path / "dump", "--model_path", source, "--images", made.images],
    }[command]
    assert main([command, *map(str, words), "--device_type", "cpu"]) == 1
    error = capsys.readouterr().err
    assert f"{source}: blocks of the vision tower: 1 by config.json, 2 in the weights" in error
    assert error.count("\n") == 1


def test_side_files_are_compared(made, tmp_path, capsys):
    directory = exports.copy(made(*QWEN), tmp_path / "out")
    (directory / "merges.txt").unlink()
    exports.edit_json(directory / "preprocessor_config.json", lambda value: value.update(image_mean=[0, 0, 0]))
    assert run(made, directory) == 0
    printed = capsys.readouterr().out
    assert "note: merges.txt of the source is missing in the export" in printed
    assert "note: preprocessor_config.json is not the source's" in printed


def test_int8_outside_the_blocks_is_refused(made, tmp_path, capsys):
    directory = exports.copy(made(*QWEN), tmp_path / "out")

    def change(tensors):
        name, one = "visual.merger.mlp.2", torch.tensor(1.0)
        weight, bias = (tensors[f"{name}.{part}"].float() for part in ("weight", "bias"))
        tensors.update(StaticLinear.quantize(name, weight, bias, (-one, one), torch.bfloat16).tensors())

    exports.edit_tensors(directory, change)
    exports.edit_json(
        directory / exports.DESCRIPTION, lambda d: d.update({f"visual.merger.mlp.2.{part}": "W8A8" for part in PARTS})
    )
    assert run(made, directory) == 1
    assert "visual.merger.mlp.2 is int8 and outside the blocks" in capsys.readouterr().err


def test_half_a_group_in_int8_is_measured(made, tmp_path):
    """No server takes it (check says so), but verify must not stumble over it."""
    directory = exports.copy(made(*LLAVA), tmp_path / "out")
    name, source = f"{CATTN}q_proj", Checkpoint(made.source(*LLAVA))
    tensors = reader.read(directory)
    scale = source.load(f"{C}input_layernorm.weight").float() / tensors.load(f"{C}input_layernorm.weight").float()

    def change(stored):
        for part in PARTS[1:]:
            del stored[f"{name}.{part}"]
        stored[f"{name}.weight"] = (source.load(f"{name}.weight").float() * scale).half()

    exports.edit_tensors(directory, change)
    exports.edit_json(
        directory / exports.DESCRIPTION,
        lambda d: ([d.pop(f"{name}.{part}") for part in PARTS], d.update({f"{name}.weight": "FLOAT"})),
    )
    report = verify(directory, source.dir, QuantConfig(dev_type="cpu"), made.images, tokens=0)
    measured = [entry["linear"] for block in report["blocks"] for entry in block["linears"]]
    assert name not in measured and f"{CATTN}k_proj" in measured
    assert report["blocks"][-1]["export"]["snr_db"] > 20


def test_thresholds_decide(made, capsys):
    assert run(made, made(*QWEN), QWEN, "--threshold", "snr=60", "kl=0.5") == 1
    assert "at least 60 are asked for" in capsys.readouterr().out


# ---- the verdict


def report_of(
    export=30.0,
    rounded=30.0,
    kl=(0.01, 0.01),
    clipped=0.0,
    seen=(-1.0, 1.0),
    covered=(-1.0, 1.0),
    findings=(),
    top1=(1.0, 1.0),
    decided=100,
):
    entry = {"export": {"snr_db": export}, "rounded": {"snr_db": rounded}}
    linear = {"linear": "l", **entry, "clipped_share": clipped, "range_seen": seen, "range_covered": covered}
    logits = {
        model: {"kl": value, "top1_decided": share} for model, value, share in zip(("export", "rounded"), kl, top1)
    } | {"decided": decided}
    limits = {name: limit for name, (limit, _) in verdict.THRESHOLDS.items()}
    return {
        "findings": list(findings),
        "blocks": [{"block": "b", **entry, "linears": [linear]}],
        "logits": logits,
        "thresholds": limits,
        "notices": [],
    }


@pytest.mark.parametrize(
    "facts,cause",
    [
        (dict(), None),
        (dict(findings=[{"tensor": "t", "problem": "p"}]), "export"),
        (dict(clipped=0.06), "calibration"),
        (dict(kl=(0.5, 0.4)), "quantization"),
        (dict(kl=(0.5, 0.01), export=5.0), "reading"),
        (dict(kl=(math.nan, 0.01), export=None), "reading"),
        (dict(kl=(0.022, 0.018), export=29.0), "quantization"),  # hardly worse than rounding afresh
        (
            dict(kl=(0.5, 0.01), export=5.0, seen=(-2.0, 1.0)),
            "calibration",
        ),  # outliers that a share of all values hides
        (dict(kl=(0.5, 0.01), export=5.0, seen=(-0.1, 0.1)), "calibration"),
        (dict(kl=(0.5, 0.01), export=26.5, seen=(-0.65, 0.65)), "calibration"),  # 3.5 dB behind, 3.7 by the width
        (dict(kl=(0.5, 0.01), export=22.5, seen=(-0.65, 0.65)), "reading"),  # 7.5 dB behind
        (dict(kl=(0.5, 0.01), export=26.0, seen=(-1.0, 1.08), clipped=0.003), "calibration"),  # clipped by ten codes
        (dict(kl=(0.5, 0.01), export=26.0, seen=(-1.0, 1.08), clipped=1e-6), "reading"),
        (dict(export=9.0, rounded=9.5), "quantization"),
        (dict(top1=(0.8, 0.8)), "quantization"),
        (dict(top1=(0.8, 0.8), decided=5), None),  # one of five
        (dict(top1=(None, None), decided=0), None),
    ],
)
def test_verdict(facts, cause):
    assert verdict.verdict(report_of(**facts))["cause"] == cause


def test_ranges_that_are_somewhat_too_wide_are_not_taken_for_a_wrong_reading(tmp_path):
    """A sound export, calibrated on two images and verified on others."""
    source = tiny.make(tmp_path / "src", "qwen3_vl")
    calibration, others = (tiny.make_images(tmp_path / f"{seed}", 2, seed=seed) for seed in (1, 9))
    config = QuantConfig(anti_method="none", calib_text="none", dev_type="cpu")
    Calibrator(source, config, str(calibration)).run(tmp_path).save(tmp_path / "out")
    report = verify(tmp_path / "out", source, QuantConfig(dev_type="cpu"), str(others), tokens=0)
    assert report["findings"] == [] and report["verdict"]["cause"] == "calibration"


def test_what_a_good_export_could_gain_is_said():
    report = verdict.conclude(report_of(export=20.0, rounded=35.0, seen=(-0.2, 0.2)), [], 0.0)
    assert report["passed"] and report["notices"] == [
        "up to 15 dB are lost against rounding afresh. l: its codes cover -1 to 1, its input goes from -0.2 to 0.2"
    ]
    assert verdict.conclude(report_of(export=33.0, rounded=35.0), [], 0.0)["notices"] == []


def test_infinities_do_not_reach_json():
    assert verdict.without_infinities({"a": [math.nan, 1.0, {"b": -math.inf}]}) == {"a": [None, 1.0, {"b": None}]}


def test_shares_nothing_with_what_made_the_export():
    code = "import sys, quant.verify.verify; print(*(name for name in sys.modules if name.startswith('quant.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.startswith("quant.calibrate")]


def test_quantization_needs_no_tensor_of_the_export(tmp_path):
    """The rounded model is the same, whatever scales the export holds: else it could not tell a bad export from bad
    quantization.
    """
    source = tiny.make(tmp_path / "src", "qwen2_vl", blocks=(1, 1))
    images = tiny.make_images(tmp_path / "images", 1)
    Calibrator(source, QuantConfig(anti_method="m2", dev_type="cpu"), images).run(tmp_path).save(tmp_path / "good")
    bad = exports.copy(tmp_path / "good", tmp_path / "bad")
    exports.edit_tensors(
        bad,
        lambda t: [
            times(name, slice(None), 3.0)(t)
            for name in list(t)
            if name.endswith(("deq_scale", "input_scale", "quant_bias"))
        ],
    )
    reports = [
        verify(directory, source, QuantConfig(dev_type="cpu"), images, tokens=0)
        for directory in (tmp_path / "good", bad)
    ]
    assert [block["rounded"] for block in reports[0]["blocks"]] == [block["rounded"] for block in reports[1]["blocks"]]
    assert reports[0]["passed"] and not reports[1]["passed"]
    assert reports[1]["logits"]["export"]["kl"] > 10 * reports[1]["logits"]["rounded"]["kl"]
