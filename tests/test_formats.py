"""Other formats from a finished static export: the tensors they hold, and what transformers makes of
compressed-tensors.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from exports import DESCRIPTION, WEIGHTS, Exports, copy, edit_json
from safetensors.torch import load_file, save_file

from quant.arithmetic.schemes import QuantizedLinear
from quant.base.config import QuantConfig
from quant.base.errors import UsageError
from quant.calibrate.calibrator import Calibrator
from quant.commands.cli import main
from quant.export import formats, reader
from quant.families import family_of
from quant.inputs.images import open_image
from quant.servers.rules import check
from quant.verify import runtime

FAMILIES = ("qwen2_vl", "llava", "qwen2_5_vl")
CHOICES = [(save_type, act) for save_type, acts in formats.SAVE_TYPES.items() for act in acts]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def contents(directory: Path) -> dict:
    return {
        path.name: (oct(path.stat().st_mode), path.read_bytes())
        for path in directory.iterdir()
        if path.name != "quant_run.json"
    }


def signal_to_noise(signal: torch.Tensor, other: torch.Tensor) -> float:
    """dB"""
    return 10 * torch.log10(signal.double().square().sum() / (other - signal).double().square().sum()).item()


# -- Ascend: dynamic and mix -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dynamic_holds_weights_and_scales_and_nothing_of_the_activations(exports, tmp_path, family, dtype):
    static = exports(family, dtype)
    out = formats.export(static, tmp_path / "out", act="dynamic")
    before, after = load_file(static / WEIGHTS), load_file(out / "quant_model_weight_w8a8_dynamic.safetensors")
    gone = {
        name for name in before if name.rsplit(".", 1)[1] in ("input_scale", "input_offset", "quant_bias", "deq_scale")
    }
    assert gone and set(after) == set(before) - gone
    assert all(torch.equal(after[name], before[name]) for name in after)
    described = json.loads((out / DESCRIPTION).read_text())
    assert {described[name] for name in after if after[name].dtype == torch.int8} == {"W8A8_DYNAMIC"}
    assert (
        described["model_quant_type"] == "W8A8_DYNAMIC"
        and described["lm_head.weight" if family != "llava" else "language_model.lm_head.weight"] == "FLOAT"
    )
    assert set(described) - {"version", "model_quant_type"} == set(after)
    config = json.loads((out / "config.json").read_text())
    assert config["quantize"] == "w8a8_dynamic" and "quantize" not in config["vision_config"]
    assert check(out, ["vllm-ascend"]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_mix_is_the_same_tensors_under_another_type(exports, tmp_path, family):
    static = exports(family)
    out = formats.export(static, tmp_path / "out", act="mix")
    assert (out / "quant_model_weight_w8a8_mix.safetensors").read_bytes() == (static / WEIGHTS).read_bytes()
    before, after = (json.loads((directory / DESCRIPTION).read_text()) for directory in (static, out))
    assert after == {name: "W8A8_MIX" if kind == "W8A8" else kind for name, kind in before.items()}
    assert check(out, ["vllm-ascend"]) == []
    assert reader.read(out).linear_names == reader.read(static).linear_names


def test_what_mindie_says_to_them(exports, tmp_path):
    # Its vision tower computes static int8: a dynamic one is wrong there; the rest it was not established to take.
    for act, rules in (("dynamic", {"vision-switch", "activation-type"}), ("mix", {"activation-type"})):
        out = formats.export(exports("qwen2_vl"), tmp_path / act, act=act)
        findings = check(out, ["mindie"])
        assert {finding.rule for finding in findings} == rules
        assert {finding.level for finding in findings if finding.rule == "activation-type"} == {"warning"}


# -- compressed-tensors ------------------------------------------------------------------------------------------------


def per_token(x: torch.Tensor) -> torch.Tensor:
    """x [batch, T, C] as int8 codes of each token, symmetric, in compressed-tensors' convention: 255 steps over [-max,
    max].

    What has no batch dimension, as in Qwen's vision tower, that package rounds as one tensor; vLLM rounds each token
    there too.
    """
    largest = x.abs().amax(-1, keepdim=True) if x.ndim > 2 else x.abs().max()
    scale = largest / 127.5
    return torch.round(x / scale).clamp(-128, 127) * scale


def per_tensor(scale: torch.Tensor):
    return lambda x: torch.round(x / scale).clamp(-128, 127) * scale


def symmetric_scale(linear) -> torch.Tensor:
    """Of the exported asymmetric range: what holds the farther of both ends in 127 steps."""
    ends = torch.stack([(code - linear.input_offset) * linear.input_scale for code in (-128, 127)])
    return ends.abs().max() / 127


def emulated(directory: Path, act: str) -> torch.nn.Module:
    """The Ascend export as a float model: its int8 linears compute what compressed-tensors promises, in float32."""
    model, _ = runtime.load(directory)
    export = reader.read(directory)
    for module in [module for module in model.modules() if isinstance(module, QuantizedLinear)]:
        linear = export.linear(module.name)
        weight = linear.weight.float() * linear.weight_scale
        rounded = per_token if act == "dynamic" else per_tensor(symmetric_scale(linear))
        module.forward = lambda x, w=weight, b=linear.bias, rounded=rounded: torch.nn.functional.linear(
            rounded(x), w, b
        )
    return model


@pytest.mark.parametrize("act", ["dynamic", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_from_compressed_tensors_what_the_export_says(exports, tmp_path, family, act):
    """In float32 throughout, so that nothing but the codes is rounded."""
    static = exports(family, "float32")
    out = formats.export(static, tmp_path / "out", "compressed-tensors", act)
    int8, encoder = runtime.load(static)
    inputs = encoder(open_image(next(exports.images.iterdir())), "What is this?")
    architecture = getattr(transformers, family_of(reader.read(static).config, static).architecture)
    loaded, report = architecture.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    quantized = [name for name, module in loaded.named_modules() if hasattr(module, "quantization_scheme")]
    assert len(quantized) == len(reader.read(static).linear_names)
    with torch.inference_mode():
        got = loaded.eval()(**inputs, use_cache=False).logits
        promised = emulated(static, act)(**inputs, use_cache=False).logits
        integers = int8(**inputs, use_cache=False).logits
        exact = runtime.load_float(exports.source(family, "float32"))[0](**inputs, use_cache=False).logits
    assert torch.equal(got, promised)
    # And near the integer runtime, as near as either is to the float model.
    assert signal_to_noise(integers, got) > 15
    assert signal_to_noise(exact, got) > signal_to_noise(exact, integers) - 6


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_compressed_tensors_in_the_models_own_dtype(exports, tmp_path, family):
    dtype = "bfloat16" if family == "qwen2_vl" else "float16"
    static = exports(family, dtype)
    for act in ("dynamic", "static"):
        out = formats.export(static, tmp_path / act, "compressed-tensors", act)
        config, tensors = json.loads((out / "config.json").read_text()), load_file(out / "model.safetensors")
        assert "quantize" not in config and "quantize" not in config["vision_config"]
        export = reader.read(static)
        for name in export.linear_names:
            assert torch.equal(tensors[f"{name}.weight"], export.load(f"{name}.weight"))
            assert torch.equal(tensors[f"{name}.weight_scale"], export.load(f"{name}.weight_scale"))
            assert (f"{name}.input_scale" in tensors) == (act == "static")
            assert not {
                f"{name}.{part}" for part in ("weight_offset", "input_offset", "quant_bias", "deq_scale")
            } & set(tensors)
        assert {str(tensor.dtype) for name, tensor in tensors.items() if name.endswith("norm.weight")} == {
            f"torch.{dtype}"
        }
        assert check_refused(out)


def check_refused(directory: Path) -> bool:
    with pytest.raises(UsageError, match="compressed-tensors"):
        check(directory)
    return True


def test_a_tied_head_is_ignored_too(exports, tmp_path):
    source = tiny.make(tmp_path / "src", "qwen2_vl", tied=True)
    calibrator = Calibrator(source, QuantConfig(anti_method="none", dev_type="cpu"), str(exports.images)).run(tmp_path)
    calibrator.save(tmp_path / "out", ["compressed-tensors"])
    ignore = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert {"re:.*lm_head", "visual.merger.mlp.0", "model.visual.merger.mlp.0"} <= set(ignore)
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert not hasattr(model.lm_head, "quantization_scheme")


# -- from the run, from a directory, from the command line -------------------------------------------------------------


def test_a_finished_directory_gives_the_bytes_that_the_run_gives(exports, tmp_path):
    calibrator = Calibrator(
        exports.source("qwen2_vl"), QuantConfig(anti_method="m2", dev_type="cpu"), str(exports.images)
    )
    calibrator.run(tmp_path)
    calibrator.save(tmp_path / "static")
    before = contents(tmp_path / "static")
    for save_type, act in CHOICES:
        calibrator.save(tmp_path / f"run-{save_type}-{act}", [save_type], act)
        formats.export(tmp_path / "static", tmp_path / f"dir-{save_type}-{act}", save_type, act)
        assert contents(tmp_path / f"run-{save_type}-{act}") == contents(tmp_path / f"dir-{save_type}-{act}")
    assert contents(tmp_path / "run-ascendV1-static") == before
    back = formats.export(tmp_path / "run-mindie-static", tmp_path / "back", "ascendV1")
    assert contents(back) == before
    again = formats.export(tmp_path / "run-ascendV1-mix", tmp_path / "again", "ascendV1")
    assert contents(again) == before
    assert contents(tmp_path / "static") == before


@pytest.mark.parametrize(
    "save_type, act", [("ascendV1", "dynamic"), ("ascendV1", "mix"), ("compressed-tensors", "dynamic")]
)
def test_shards_stay_shards_with_an_index_that_fits(exports, tmp_path, save_type, act):
    static = copy(exports("llava", "float16"), tmp_path / "static")
    tensors = load_file(static / WEIGHTS)
    (static / WEIGHTS).unlink()
    for number in (1, 2):
        save_file(
            dict(list(tensors.items())[number - 1 :: 2]),
            static / f"quant_model_weight_w8a8-{number:05d}-of-00002.safetensors",
        )
    out = formats.export(static, tmp_path / "out", save_type, act)
    index = json.loads(next(out.glob("*.index.json")).read_text())
    files = {path.name: load_file(path) for path in out.glob("*.safetensors")}
    assert len(files) == 2 and index["weight_map"] == {name: file for file, inside in files.items() for name in inside}
    if save_type == "ascendV1":
        assert check(out, ["vllm-ascend"]) == []
    else:
        assert not any(
            transformers.LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)[1].values()
        )


def test_a_directory_of_other_modes_is_copied_not_changed(exports, tmp_path):
    static = copy(exports("qwen2_vl"), tmp_path / "static")
    (static / WEIGHTS).chmod(0o400)
    out = formats.export(static, tmp_path / "out", act="mix")
    assert oct(next(out.glob("*.safetensors")).stat().st_mode)[-3:] == "640"
    assert oct((static / WEIGHTS).stat().st_mode)[-3:] == "400"


def test_an_export_that_does_not_say_of_which_model_it_is_is_read(exports, tmp_path):
    """As the vendor's library writes config.json in some versions."""
    static = exports(FAMILIES[0], "bfloat16")
    other = copy(static, tmp_path / "other")
    edit_json(other / "config.json", lambda config: (config.pop("architectures"), config.update(model_type="")))
    assert reader.read(other).words == reader.read(static).words != {}


def test_refusals(exports, tmp_path):
    static = exports("qwen2_vl")
    for arguments, message in [
        (("mindie", "dynamic"), "--act dynamic: mindie has static"),
        (("compressed-tensors", "mix"), "--act mix: compressed-tensors has dynamic and static"),
        (("gguf", None), "save_type gguf: there are ascendV1, mindie, compressed-tensors"),
    ]:
        with pytest.raises(UsageError, match=message):
            formats.export(static, tmp_path / "out", *arguments)
    dynamic = formats.export(static, tmp_path / "dynamic", act="dynamic")
    with pytest.raises(UsageError, match="is W8A8_DYNAMIC; only static W8A8"):
        formats.export(dynamic, tmp_path / "out")
    with pytest.raises(UsageError, match="not an Ascend export"):
        formats.export(exports.source("qwen2_vl"), tmp_path / "out")
    with pytest.raises(UsageError, match="is not empty"):
        formats.export(static, dynamic)
    with pytest.raises(UsageError, match="overlaps"):
        formats.export(static, static / "inside")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dynamic"]


def test_the_command(exports, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "quant", "export", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
        )

    done = run(exports("qwen2_vl"), tmp_path / "out", "--act", "dynamic")
    assert (done.returncode, done.stdout) == (
        0,
        f"result   {tmp_path / 'out'}\ncheck    nothing wrong for vLLM-Ascend\nNPUs     vLLM-Ascend: right on 1 or 2\n",
    )
    llava = exports("llava")  # bfloat16, which MindIE's LLaVA does not take
    done = run(llava, tmp_path / "again")
    assert done.returncode == 1 and "error: vision-dtype" in done.stdout
    assert done.stderr.startswith(f"error: {tmp_path / 'again'}: is written, but breaks rules of MindIE: vision-dtype;")
    assert run(llava, tmp_path / "vllm", "--target", "vllm-ascend").returncode == 0
    done = run(llava, tmp_path / "again")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "is not empty" in done.stderr
    done = run(llava, tmp_path / "other", "--save_type", "compressed-tensors", "--target", "mindie")
    assert done.returncode == 2 and "--target mindie" in done.stderr


def test_quantize_writes_any_format_and_checks_it(exports, tmp_path, capsys):
    def quantize(family: str, out: str, *flags: str) -> int:
        source, images = exports.source(family), exports.images
        arguments = ["--model_path", source, "--calib_images", images, "--save_directory", tmp_path / out, *flags]
        return main(["quantize", *map(str, arguments), "--device_type", "cpu"])

    assert quantize("qwen2_vl", "dynamic", "--act", "dynamic") == 0
    assert "check    nothing wrong for vLLM-Ascend" in capsys.readouterr().out
    assert (tmp_path / "dynamic" / "quant_model_weight_w8a8_dynamic.safetensors").is_file()
    assert quantize("qwen2_vl", "mindie", "--save_type", "mindie") == 0
    assert "check    nothing wrong for MindIE\n" in capsys.readouterr().out
    assert quantize("llava", "llava") == 0, "its default is what its server takes"
    assert "nothing wrong for MindIE and vLLM-Ascend" in capsys.readouterr().out
    assert quantize("llava", "asked", "--quiet", "--dtype", "bfloat16") == 1
    assert "breaks rules of MindIE: vision-dtype" in capsys.readouterr().err
    assert quantize("llava", "other", "--mindie_format", "--save_type", "compressed-tensors") == 2
    assert "two formats" in capsys.readouterr().err and not (tmp_path / "other").exists()
