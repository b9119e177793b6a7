"""The kinds of int8 linear: what is stored of them, what they compute, what they refuse; jobs with dynamic linears."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import DESCRIPTION, Exports, copy, edit_json, edit_tensors
from safetensors.torch import load_file

from quant.arithmetic import schemes
from quant.arithmetic.fold import FoldedNorm
from quant.arithmetic.int8 import INT32_MAX, quant_bias, quantize_tokens
from quant.arithmetic.product import int8_matmul
from quant.arithmetic.schemes import SCHEMES, DynamicLinear, StaticLinear
from quant.arithmetic.smoothing import Problem, Smoothing
from quant.arithmetic.stats import Stats
from quant.base import choices
from quant.base.config import QuantConfig
from quant.base.errors import QuantError, UsageError
from quant.calibrate.calibrator import Calibrator
from quant.commands.cli import main
from quant.export import formats, reader
from quant.inputs.images import open_image
from quant.servers.rules import check
from quant.verify import generation, runtime

ONE = torch.tensor(1.0)


def random_linear(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """weight [O, I], bias [O], x [T, I], float32."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((outputs, inputs), (outputs,), (700, inputs))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# -- what is stored ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scheme", SCHEMES.values())
@pytest.mark.parametrize("with_bias", [True, False])
def test_what_is_stored_is_read_and_computes_the_same(scheme, dtype, with_bias):
    weight, bias, x = random_linear(24, 32)
    linear = scheme.quantize("l", weight, bias if with_bias else None, (x.min(), x.max()), dtype)
    stored = linear.tensors()
    assert list(stored) == [f"l.{part}" for part in scheme.parts] + ["l.bias"] * with_bias
    expected = scheme.stored(24, 32, dtype)
    for part in scheme.parts:
        assert (stored[f"l.{part}"].dtype, tuple(stored[f"l.{part}"].shape)) == (
            expected[part][0][0],
            expected[part][1],
        )
    again = scheme.read("l", stored.__getitem__, dtype, with_bias)
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in stored.items())
    assert torch.equal(again(x.to(dtype)), linear(x.to(dtype)))


def test_parts_of_a_weight_make_the_whole():
    weight, bias, x = random_linear(24, 32)
    for scheme in SCHEMES.values():
        whole, parts = (
            scheme.quantize("l", each, bias, (x.min(), x.max()), torch.bfloat16)
            for each in (weight, iter(weight.split(7)))
        )
        assert all(torch.equal(tensor, parts.tensors()[name]) for name, tensor in whole.tensors().items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_scale": torch.zeros(24)}, r"l\.weight_scale has shape \[24\], \[24, 1\] is expected"),
        ({"weight": torch.zeros(24, 32)}, r"l\.weight is float32, a server of bfloat16 models reads int8 there"),
        ({"weight_offset": None}, r"out: tensor l\.weight_offset is missing"),
        ({"bias": torch.zeros(8)}, r"out: l\.bias has shape \[8\], \[24\] is expected"),
    ],
)
def test_what_no_server_reads_is_refused(change, message):
    weight, _, _ = random_linear(24, 32)
    stored = DynamicLinear.quantize("l", weight, None, None, torch.bfloat16).tensors()
    DynamicLinear.check("l", stored, torch.bfloat16)
    stored |= {f"l.{part}": tensor for part, tensor in change.items()}
    with pytest.raises(QuantError, match=message):
        DynamicLinear.check("l", stored, torch.bfloat16, where="out: ")


# -- what is computed --------------------------------------------------------------------------------------------------


def per_token(stored: dict[str, torch.Tensor], x: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """W8A8_DYNAMIC by its formula in numpy: codes by float32 division, sums in int64, the rest in float64."""
    x = x.to(dtype).float().numpy()
    scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
    codes = np.rint(x / scale).astype(np.int64)
    sums = codes @ stored["l.weight"].numpy().astype(np.int64).T
    weight_scale = stored["l.weight_scale"].to(dtype).double().numpy()
    return sums * weight_scale.T * scale.astype(np.float64) + stored["l.bias"].double().numpy()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dynamic_is_the_formula(dtype):
    weight, bias, x = random_linear(24, 32)
    x *= torch.logspace(-4, 3, len(x))[:, None]  # tokens of very different size
    linear = DynamicLinear.quantize("l", weight, bias, None, dtype)
    y = linear(x.to(dtype))
    expected = per_token(linear.tensors(), x, dtype)
    assert y.dtype == dtype and np.allclose(
        y.double().numpy(), expected, rtol=max(torch.finfo(dtype).eps, 1e-6), atol=1e-5
    )
    exact = torch.nn.functional.linear(x, weight, bias)
    relative = (y.float() - exact).norm(dim=1) / exact.norm(dim=1)
    assert relative.max() < 0.03, "each token has a scale of its own, so small ones are as good as large ones"
    # A float32 activation is rounded to the server's dtype on the way in and out.
    assert torch.equal(linear(x.to(dtype).float()), y.float())


def test_a_token_of_zeros():
    linear = DynamicLinear.quantize("l", torch.eye(8), torch.arange(8.0), None, torch.bfloat16)
    x = torch.zeros(2, 1, 8)
    x[1] = 3
    assert torch.equal(linear(x)[0, 0], torch.arange(8.0)) and torch.equal(linear(x)[1, 0], torch.arange(8.0) + 3)
    codes, scale = quantize_tokens(x[0])
    assert not codes.any() and scale.item() == 0


def test_the_largest_weight_is_within_a_step_whatever_the_dtype():
    """vLLM-Ascend holds weight_scale in the model's dtype, which float16 does not do well for tiny ones."""
    weight = torch.logspace(-6, 1, 4000)[:, None] * torch.tensor([1.0, -0.4])
    for dtype in (torch.bfloat16, torch.float16):
        linear = DynamicLinear.quantize("l", weight, None, None, dtype)
        scale = linear.weight_scale
        assert torch.equal(scale, scale.to(dtype).float())
        error = (linear.weight.float() * scale - weight).abs()
        assert (error <= scale / 2 * 1.001).all()


def test_search_sees_the_schemes_own_quantizers():
    weight, _, x = random_linear(16, 32)
    x[:5] *= 30  # a few large tokens, which one scale for all must hold
    stats = Stats(x.amin(0), x.amax(0), x, len(x))
    errors = {}
    for word, scheme in SCHEMES.items():
        problem = Problem(stats, weight, weight.abs().amax(0), lambda x: x, False, 1, scheme)
        linear = scheme.quantize("l", weight, None, (x.min(), x.max()), torch.float32)
        expected = (linear(x).double() - x.double() @ weight.double().T).square().sum().item()
        errors[word] = problem.error(lambda stats: Smoothing()).item()
        assert errors[word] == pytest.approx(expected, rel=1e-2 if scheme.needs_range else 1e-4), word
    assert errors["W8A8_DYNAMIC"] < errors["W8A8"] / 4


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_no_input_can_take_the_sum_over_int32():
    """Codes at their ends against the largest quant_bias that is let through."""
    inputs = 4096
    codes = torch.full((1, inputs), 127, dtype=torch.int8)
    most = INT32_MAX - 128 * 127 * inputs
    deq, zero = torch.tensor([2.0**-10]), torch.zeros(1)
    fits = quant_bias("l", codes, torch.tensor([most * 0.9999]) * deq, deq, zero)
    worst = codes.long().neg() * 128
    assert abs(worst.sum().item()) + abs(fits.item()) <= INT32_MAX
    sums = int8_matmul(torch.full((1, inputs), -128, dtype=torch.int8), codes) - fits
    assert sums.item() == worst.sum().item() - fits.item(), "no wrap-around"
    with pytest.raises(QuantError, match=r"l: quant_bias of output channel 0 is 2.08e\+09, with the products at most"):
        quant_bias("l", codes, torch.tensor([most * 1.0001]) * deq, deq, zero)
    # What counts are the codes: with small ones the same bias is harmless.
    assert quant_bias("l", codes // 64, torch.tensor([most * 1.0001]) * deq, deq, zero).item() > most


def test_a_bias_that_is_not_finite_over_the_scale_is_refused():
    codes = torch.ones(2, 16, dtype=torch.int8)
    with pytest.raises(QuantError, match="quant_bias of output channel 1 is inf"):
        quant_bias("l", codes, torch.tensor([0.0, 1e30]), torch.tensor([1.0, 1e-30]), torch.zeros(1))


def test_scales_beyond_float16_are_refused_with_the_way_out():
    weight, hi = torch.eye(8), torch.tensor(2e7)
    with pytest.raises(QuantError, match=r"a\.q: its input reaches from -1 to 2e\+07, .*float16.*--dtype bfloat16"):
        StaticLinear.quantize("a.q", weight, None, (-ONE, hi), torch.float16)
    assert StaticLinear.quantize("a.q", weight, None, (-ONE, hi), torch.bfloat16).input_scale.isfinite().all()
    with pytest.raises(QuantError, match=r"a\.q: weight_scale of output channel 3 is 7\.87e\+04, float16.*--dtype bfl"):
        heavy = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e7]))
        DynamicLinear.quantize("a.q", heavy, None, None, torch.float16)


def test_too_many_inputs_for_int32():
    weight = torch.ones(1, INT32_MAX // 127**2 + 1)
    with pytest.raises(QuantError, match=r"l: the products of 133145 inputs .*--disable_names l"):
        DynamicLinear.quantize("l", weight, None, None, torch.bfloat16)


def test_an_overflowing_norm_bias_is_the_norms():
    norm = FoldedNorm("block.norm1", torch.ones(4), torch.full((4,), 100.0), torch.float16)
    with pytest.raises(QuantError, match=r"block\.norm1\.bias reaches 1e\+06 by smoothing, float16 ends at 65504; use"):
        norm.absorb(torch.full((4,), 1e-4), None)


# -- the tables --------------------------------------------------------------------------------------------------------


def test_choices_name_what_there_is():
    assert {word: choice.load() for word, choice in choices.SCHEMES.items()} == {
        word: SCHEMES[word] for word in choices.SCHEMES
    }
    assert set(SCHEMES) - set(choices.SCHEMES) == {"W8A8_MIX"}  # which `export --act mix` makes
    for table in (choices.METHODS, choices.ROUNDINGS):
        assert all(choice.load() is not None or name == "none" for name, choice in table.items())
        assert all(choice.line and "\n" not in choice.line for choice in table.values())


@pytest.mark.parametrize("field", ["anti_method", "scheme", "w_method"])
def test_config_takes_what_the_table_has_and_nothing_else(field):
    table = {"anti_method": choices.METHODS, "scheme": choices.SCHEMES, "w_method": choices.ROUNDINGS}[field]
    for name in table:
        assert getattr(QuantConfig(**{field: name}), field) == name
    with pytest.raises(UsageError, match=rf"^{field}='m9': there are .* and {list(table)[-1]}$"):
        QuantConfig(**{field: "m9"})


def test_the_page_of_methods_has_every_choice():
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
    for flag, table in (("anti_method", choices.METHODS), ("scheme", choices.SCHEMES), ("w_method", choices.ROUNDINGS)):
        rows = [f"| `--{flag} {name}` | {choice.line} |" for name, choice in table.items()]
        assert [row for row in rows if row not in page] == []
        assert page.count(f"| `--{flag} ") == len(rows), "a row for a choice that there is not"


# -- jobs with dynamic linears -----------------------------------------------------------------------------------------

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "llava")
LANGUAGE = {"qwen2_vl": "model.layers.", "qwen2_5_vl": "model.layers.", "llava": "language_model.model.layers."}
FORMATS = {"qwen2_vl": "bfloat16", "qwen2_5_vl": "bfloat16", "llava": "float16"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Exports(tmp_path_factory.mktemp("schemes"))


def quantize(made, family: str, out: Path, *flags: str) -> int:
    source, images = made.source(family, FORMATS[family]), made.images
    words = ["--model_path", source, "--calib_images", images, "--save_directory", out, "--device_type", "cpu", *flags]
    return main(["quantize", "--quiet", *map(str, words)])


@pytest.fixture(scope="module")
def jobs(made):
    """family, kind -> directory; each made once, by the command line."""

    def job(family: str, kind: str) -> Path:
        out = made.root / f"{family}-{kind}"
        flags = {"dynamic": ["--scheme", "W8A8_DYNAMIC"], "mixed": ["--dynamic_names", "*.mlp.down_proj", "*.o_proj"]}
        if not out.exists():
            assert quantize(made, family, out, *flags[kind]) == 0
        return out

    return job


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["dynamic", "mixed"])
def test_a_job_describes_each_linear_as_it_is(jobs, family, kind):
    out = jobs(family, kind)
    described, config = (json.loads((out / name).read_text()) for name in (DESCRIPTION, "config.json"))
    stem = "quant_model_weight_w8a8" + ("_dynamic" if kind == "dynamic" else "")
    tensors = load_file(out / f"{stem}.safetensors")
    words = {name.removesuffix(".weight"): described[name] for name in tensors if tensors[name].dtype == torch.int8}
    assert set(words.values()) == ({"W8A8_DYNAMIC"} if kind == "dynamic" else {"W8A8", "W8A8_DYNAMIC"})
    dynamic = {name for name, word in words.items() if word == "W8A8_DYNAMIC"}
    if kind == "mixed":
        named = {
            f"{LANGUAGE[family]}{index}.{linear}"
            for index in range(2)
            for linear in ("mlp.down_proj", "self_attn.o_proj")
        }
        assert dynamic == named, "what the family keeps float for its recipe alone, and what it would have made static"
    else:
        assert not any(name.endswith("down_proj") for name in words), "the recipe still holds"
    for name, word in words.items():
        parts = {tensor.rpartition(".")[2] for tensor in tensors if tensor.rpartition(".")[0] == name} - {"bias"}
        assert parts == set(SCHEMES[word].parts)
        assert {described[f"{name}.{part}"] for part in parts} == {word}
        assert described.get(f"{name}.bias", "FLOAT") == "FLOAT"
    assert described["model_quant_type"] == ("W8A8_DYNAMIC" if kind == "dynamic" else "W8A8")
    assert config["quantize"] == ("w8a8_dynamic" if kind == "dynamic" else "w8a8")
    vision = {word for name, word in words.items() if not name.startswith(LANGUAGE[family])}
    assert config["vision_config"].get("quantize") == ("w8a8" if vision == {"W8A8"} else None)
    recipe = json.loads((out / "quant_recipe.json").read_text())
    assert recipe["config"]["scheme"] == ("W8A8_DYNAMIC" if kind == "dynamic" else "W8A8")
    assert check(out, ["vllm-ascend"]) == []


def by_formula(stored: dict[str, torch.Tensor], word: str, dtype: torch.dtype):
    """x -> what the description's type of linear computes, in float64 from the tensors as they are stored."""

    def run(x: torch.Tensor) -> torch.Tensor:
        rounded = x.to(dtype).float().reshape(-1, x.shape[-1])
        if word == "W8A8":
            codes = torch.clamp(torch.round(rounded / stored["input_scale"] + stored["input_offset"]), -128, 127)
            deq = stored["deq_scale"]
            deq = deq if deq.dtype == torch.float32 else deq.to(torch.int32).view(torch.float32)
            y = (codes.double() @ stored["weight"].double().T + stored["quant_bias"]) * deq.double()
        else:
            scale = rounded.abs().amax(1, keepdim=True) / 127
            codes = torch.round(rounded / scale).clamp(-128, 127)
            gain = stored["weight_scale"].to(dtype).double().T
            y = (
                codes.double() @ stored["weight"].double().T * gain * scale.double()
                + stored.get("bias", ONE * 0).double()
            )
        return y.float().to(dtype).to(x.dtype).reshape(*x.shape[:-1], -1)

    return run


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["dynamic", "mixed"])
@torch.inference_mode()
def test_the_runtime_computes_what_the_description_says(made, jobs, family, kind):
    out = jobs(family, kind)
    model, encoder = runtime.load(out)
    inputs = encoder(open_image(next(made.images.iterdir())), "What is this?")
    got = model(**inputs, use_cache=False).logits
    assert len(generation.greedy(model, inputs, 4)) > 0
    described = json.loads((out / DESCRIPTION).read_text())
    tensors = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    modules = [module for module in model.modules() if isinstance(module, schemes.QuantizedLinear)]
    assert {module.name for module in modules} == set(reader.read(out).words)
    dtype = getattr(torch, FORMATS[family])
    for module in modules:
        parts = {
            name.rpartition(".")[2]: value for name, value in tensors.items() if name.rpartition(".")[0] == module.name
        }
        module.forward = by_formula(parts, described[f"{module.name}.weight"], dtype)
    expected = model(**inputs, use_cache=False).logits
    error = (got - expected).float().norm() / expected.float().norm()
    assert error < 4 * torch.finfo(dtype).eps, "float64 in place of float32 moves a result by a rounding to its dtype"
    exact = runtime.load_float(made.source(family, FORMATS[family]))[0](**inputs, use_cache=False).logits
    assert (got - exact).float().norm() / exact.float().norm() < 0.2


@torch.inference_mode()
def test_down_proj_is_better_dynamic_than_static(made, tmp_path):
    """Its input has outlier tokens, which is why the recipes keep it float."""
    source, errors = made.source("qwen2_vl"), {}
    plain = ("--anti_method", "none", "--calib_text", "none")
    exact = runtime.load_float(source)[0]
    for name, flags in {
        "static": ["--disable_names_only", "model.layers.0.self_attn.o_proj"],
        "dynamic": ["--dynamic_names", "*down_proj"],
    }.items():
        assert quantize(made, "qwen2_vl", tmp_path / name, *flags, *plain) == 0
        model, encoder = runtime.load(tmp_path / name)
        inputs = encoder(open_image(next(made.images.iterdir())), "What is this?")
        expected = exact(**inputs).logits
        errors[name] = ((model(**inputs).logits - expected).float().norm() / expected.float().norm()).item()
    assert errors["dynamic"] < errors["static"]


def test_a_dynamic_job_rounds_for_its_own_quantizers(made, jobs, tmp_path):
    """Not what `export --act dynamic` makes of a static job: smoothing was judged by other errors, and weight_scale
    fits the dtype in which the server holds it.
    """
    static = made("qwen2_vl", "bfloat16")
    out = formats.export(static, tmp_path / "dynamic", act="dynamic")
    theirs, ours = reader.read(out), reader.read(jobs("qwen2_vl", "dynamic"))
    assert theirs.words == ours.words
    for name in ours.words:
        scale = ours.load(f"{name}.weight_scale")
        assert torch.equal(scale, scale.bfloat16().float())
    assert any(not torch.equal(ours.load(f"{name}.weight"), theirs.load(f"{name}.weight")) for name in ours.words)


@torch.inference_mode()
def test_a_converted_export_runs_too(made, tmp_path):
    """`export --act dynamic` and `--act mix` of a static directory."""
    static = made("llava", "float16")
    model, encoder = runtime.load(static)
    inputs = encoder(open_image(next(made.images.iterdir())), "What is this?")
    expected = model(**inputs).logits
    for act, limit in (("mix", 0.0), ("dynamic", 0.2)):
        out = formats.export(static, tmp_path / act, act=act)
        got = runtime.load(out)[0](**inputs).logits
        assert (got - expected).float().norm() / expected.float().norm() <= limit


def test_from_a_mixed_directory(jobs, tmp_path, capsys):
    mixed = jobs("qwen2_vl", "mixed")
    for flags in ([], ["--act", "static"], ["--act", "mix"], ["--save_type", "mindie"],
                  ["--save_type", "compressed-tensors", "--act", "static"]):  # fmt: skip
        assert main(["export", str(mixed), str(tmp_path / "no"), *flags]) == 2
        error = capsys.readouterr().err
        assert (
            "is W8A8_DYNAMIC; only static W8A8" in error and error.count("\n") == 1 and not (tmp_path / "no").exists()
        )
    assert main(["export", str(mixed), str(tmp_path / "dynamic"), "--act", "dynamic"]) == 0
    assert main(["export", str(mixed), str(tmp_path / "ct"), "--save_type", "compressed-tensors"]) == 0
    out, before = reader.read(tmp_path / "dynamic"), reader.read(mixed)
    assert set(out.words) == set(before.words) and set(out.words.values()) == {"W8A8_DYNAMIC"}
    for name, tensor in ((name, out.load(name)) for name in out.tensors):
        assert torch.equal(tensor, before.load(name))
    assert check(tmp_path / "dynamic", ["vllm-ascend"]) == []
    assert "quantize" not in out.config["vision_config"] and out.config["quantize"] == "w8a8_dynamic"
    ct = load_file(tmp_path / "ct" / "model.safetensors")
    assert {name.rpartition(".")[2] for name in ct} <= {"weight", "weight_scale", "bias", "class_embedding"}


def test_a_run_saves_as_asked_or_as_it_is(made, tmp_path):
    config = QuantConfig(dynamic_names=("*down_proj",), dev_type="cpu")
    calibrator = Calibrator(made.source("qwen2_vl"), config, str(made.images)).run(tmp_path)
    calibrator.save(tmp_path / "own")
    calibrator.save(tmp_path / "all", act="dynamic")
    words = {name: set(reader.read(tmp_path / name).words.values()) for name in ("own", "all")}
    assert words == {"own": {"W8A8", "W8A8_DYNAMIC"}, "all": {"W8A8_DYNAMIC"}}
    for save_type, act in (
        ("ascendV1", "static"),
        ("ascendV1", "mix"),
        ("mindie", None),
        ("compressed-tensors", "static"),
    ):
        with pytest.raises(UsageError, match="some linears are W8A8_DYNAMIC; only static W8A8"):
            calibrator.save(tmp_path / "no", [save_type], act)


@pytest.mark.parametrize(
    "family, flags, message",
    [
        ("qwen2_vl", ["--dynamic_names", "*.no_such"], r"--dynamic_names \*\.no_such: matches none of the \d+ linears"),
        ("qwen2_vl", ["--dynamic_names", "*.q_proj"],
         r"--dynamic_names makes model\.layers\.0\.self_attn\.q_proj W8A8_DYNAMIC but not .*: add .*k_proj .*v_proj"),
        ("qwen2_vl", ["--dynamic_names", "*.mlp.up_proj"], r"add model\.layers\.0\.mlp\.gate_proj"),
        ("qwen2_vl", ["--dynamic_names", "lm_head"], r"lm_head stays float: servers load the head in float"),
        ("qwen2_vl", ["--dynamic_names", "*.fc2"], r"fc2 stays float: MindIE's vision kernel takes fc2 in float"),
        ("qwen2_vl", ["--dynamic_names", "visual.*", "--vision", "float"], r"the vision tower is float \(--vision fl"),
        ("llava", ["--dynamic_names", "vision_tower.*"], r"the vision tower is float: MindIE loads LLaVA's vision"),
        ("qwen2_vl", ["--dynamic_names", "*.o_proj", "--disable_names", "*.o_proj"], r"o_proj stays float: asked for"),
        ("qwen2_vl", ["--dynamic_names", ""], "dynamic_names holds an empty pattern"),
        ("qwen2_vl", ["--dynamic_names", "*.o_proj", "--act", "static"], "--act static: some linears are W8A8_DYNAMIC"),
        ("qwen2_vl", ["--scheme", "W8A8_DYNAMIC", "--mindie_format"], "--save_type mindie --act static: some linears"),
        ("qwen2_vl", ["--scheme", "W8A8_DYNAMIC", "--target", "mindie"],
         r"--target mindie: visual.* would be W8A8_DYNAMIC, and MindIE's vision tower takes static W8A8 or float"),
        ("qwen2_vl", ["--dynamic_names", "*.o_proj", "--target", "all"],
         "--target all: MindIE takes one type for all int8 linears, not W8A8 beside W8A8_DYNAMIC"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_work(made, tmp_path, capsys, family, flags, message):
    assert quantize(made, family, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_mindie_takes_one_type(jobs):
    findings = {finding.rule: finding for finding in check(jobs("llava", "mixed"), ["mindie", "vllm-ascend"])}
    assert set(findings) - {"sampling"} == {"one-type", "activation-type"}  # tiny LLaVA's vocabulary is small
    found = findings["one-type"]
    assert set(found.effects) == {"mindie"} and "W8A8_DYNAMIC" in found.what and found.level == "error"
    assert "one-type" not in {finding.rule for finding in check(jobs("llava", "dynamic"), ["mindie", "vllm-ascend"])}


def test_an_unknown_type_is_named(made, tmp_path):
    out = copy(made("qwen2_vl"), tmp_path / "out")
    edit_json(out / DESCRIPTION, lambda d: d.update({"model.layers.0.mlp.up_proj.weight": "W4A8"}))
    with pytest.raises(
        UsageError, match=r"up_proj\.weight is W4A8; what can be read back is W8A8, W8A8_DYNAMIC, W8A8_MIX"
    ):
        reader.read(out)


def test_a_damaged_dynamic_linear_is_named(made, tmp_path):
    out = formats.export(made("qwen2_vl"), tmp_path / "out", act="dynamic")
    (out / "quant_model_weight_w8a8_dynamic.safetensors").rename(out / "quant_model_weight_w8a8.safetensors")
    name = "model.layers.0.self_attn.o_proj"
    edit_tensors(
        out, lambda tensors: tensors.update({f"{name}.weight_scale": tensors[f"{name}.weight_scale"].double()})
    )
    with pytest.raises(QuantError, match=rf"safetensors: {name}\.weight_scale is float64, a server of bfloat16 models"):
        runtime.load(out)


def test_dry_run_says_what_is_dynamic(made, capsys):
    words = [
        "--model_path",
        made.source("qwen2_vl"),
        "--calib_images",
        made.images,
        "--dry_run",
        "--device_type",
        "cpu",
    ]
    assert main(["quantize", *map(str, words), "--dynamic_names", "*down_proj"]) == 0
    printed = capsys.readouterr().out
    assert any(line.split()[:1] == ["mlp.down_proj"] and line.endswith("int8 dynamic") for line in printed.splitlines())
    assert "(2 of them dynamic), " in printed


def test_evaluate_and_report_take_a_mixed_directory(made, jobs, tmp_path):
    out = jobs("qwen2_vl", "mixed")
    image, data = next(made.images.iterdir()), made.root / "questions.jsonl"
    data.write_text(json.dumps({"image": f"images/{image.name}", "prompt": "What?", "answers": ["a"]}) + "\n")
    words = ["--quantized", out, "--data", data, "--results", tmp_path / "r.jsonl", "--quiet"]
    assert main(["evaluate", *map(str, words), "--max_new_tokens", "2", "--device_type", "cpu"]) == 0
    assert main(["report", str(out), "--output", str(tmp_path / "page.html")]) == 0
    assert "int8 dynamic" in (tmp_path / "page.html").read_text()
