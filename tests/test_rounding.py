"""Roundings of weights: GPTQ against the slow form of its own paper, and the second moments that it needs; the mean
error of rounding, taken up.
"""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from quant.arithmetic.int8 import quantize_weight, weight_scale
from quant.arithmetic.rounding import Gptq, Nearest, mean_error, round_weight
from quant.arithmetic.schemes import DynamicLinear, StaticLinear
from quant.arithmetic.stats import COARSE, FINE, MOST, Observer
from quant.base.config import QuantConfig
from quant.base.errors import QuantError, SourceError
from quant.calibrate.calibrator import Calibrator
from quant.commands.cli import main
from quant.export import reader
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.verify.verify import check_values


def correlated(tokens: int, channels: int, seed: int = 0) -> torch.Tensor:
    """x [T, C], channels that move together and are of unlike size, float32."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, channels // 4, generator=generator)
    mix = torch.randn(channels // 4, channels, generator=generator)
    x = few @ mix + 0.3 * torch.randn(tokens, channels, generator=generator)
    return x * torch.logspace(-1, 1, channels) + 0.5


def seen(x: torch.Tensor, name: str = "l") -> Observer:
    observer = Observer(name, x.shape[1], 64, second_moments=True)
    for number, part in enumerate(x.split(50)):
        observer.update(part[None], number, number)
    return observer


def brute_force(weight: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Column after column, as the paper derives it: the columns that are left move by -e [H^-1]_i / [H^-1]_ii, H that
    of the columns that are left, inverted anew each time. float64.
    """
    damping = 0.01 * moments.diagonal().mean()
    hessian = moments + damping * torch.eye(len(moments), dtype=torch.float64)
    left, codes = weight.double(), torch.zeros(weight.shape, dtype=torch.int8)
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        rounded = torch.round(left[:, column : column + 1] / scale).clamp(-127, 127)
        codes[:, column : column + 1] = rounded.to(torch.int8)
        error = left[:, column : column + 1] - rounded * scale
        left[:, column:] -= error / inverse[0, 0] * inverse[0]
    return codes


@pytest.mark.parametrize("channels", [40, 128, 300])  # less than a block, one, and several
def test_gptq_is_the_slow_form(channels):
    x = correlated(500, channels)
    weight = torch.randn(12, channels, generator=torch.Generator().manual_seed(1))
    scale, moments = weight_scale(weight), seen(x).stats().moments.matrix()
    codes = Gptq("l", moments)(weight, scale)
    slow = brute_force(weight, scale.double(), moments)
    assert codes.dtype == torch.int8 and (codes == slow).float().mean() > 0.99, "but for ties in float32"
    assert (codes != quantize_weight(weight, scale)).float().mean() > 0.05

    def error(codes):
        return ((codes.double() * scale - weight.double()) @ x.double().T).norm().item()

    assert error(codes) == pytest.approx(error(slow), rel=0.02)
    assert error(codes) < 0.8 * error(quantize_weight(weight, scale))


def test_rows_are_rounded_alike_whatever_part_they_come_in():
    x = correlated(300, 64)
    weight, rounding = torch.randn(30, 64), Gptq("l", seen(x).stats().moments.matrix())
    parts = torch.cat([rounding(part, weight_scale(part)) for part in weight.split(7)])
    assert torch.equal(parts, rounding(weight, weight_scale(weight)))


def test_a_linear_rounded_by_gptq_answers_better():
    x = correlated(600, 96)
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(20, 96, generator=generator), torch.randn(20, generator=generator)
    errors = {}
    for name, rounding in (("nearest", Nearest()), ("gptq", Gptq("l", seen(x).stats().moments.matrix()))):
        linear = StaticLinear.quantize("l", weight, bias, (x.min(), x.max()), torch.float32, rounding)
        back = linear.weight.float() * linear.weight_scale
        errors[name] = ((back - weight) @ x.T).norm().item()
    assert errors["gptq"] < 0.8 * errors["nearest"]


def test_columns_that_were_never_active():
    x = correlated(100, 16)
    x[:, 3] = 0
    weight = torch.randn(4, 16)
    assert torch.isfinite(Gptq("l", seen(x).stats().moments.matrix()).factor).all()
    zeros = Gptq("l", torch.zeros(16, 16, dtype=torch.float64))
    assert torch.equal(zeros(weight, weight_scale(weight)), Nearest()(weight, weight_scale(weight)))


def test_moments_that_are_none_are_refused():
    with pytest.raises(QuantError, match=r"q_proj: gptq cannot invert .*; use --w_method nearest"):
        Gptq("q_proj", torch.tensor([[1.0, 9.0], [9.0, 1.0]], dtype=torch.float64))


# -- second moments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_are_those_of_the_smoothed_input(dtype):
    x = correlated(400, 24).to(dtype)
    stats = seen(x).stats()
    assert stats.count == 400
    exact = x.double()
    assert torch.allclose(stats.moments.matrix(), exact.T @ exact / 400, rtol=1e-9, atol=1e-11)
    generator = torch.Generator().manual_seed(2)
    one, two = torch.rand(2, 24, generator=generator) + 0.2
    z = torch.randn(24, generator=generator)
    for shift, again in ((None, None), (z, None), (None, z), (z, z)):
        moved = (exact - (0 if shift is None else shift)) / one
        moved = (moved - (0 if again is None else again)) / two
        got = stats.smoothed(one, shift).smoothed(two, again)
        wanted = moved.T @ moved / 400
        size = wanted.diagonal().sqrt()
        assert ((got.moments.matrix() - wanted).abs() <= 1e-6 * torch.outer(size, size)).all()


def test_moments_do_not_depend_on_order_or_distribution():
    """Samples of very unlike size, as no float sum would bear: every order, and the sum of what three ranks have."""
    samples = [correlated(37 + number, 20, number) * 10.0 ** (number - 4) for number in range(9)]
    orders = [list(range(9)), list(range(8, -1, -1)), [4, 0, 8, 2, 6, 1, 7, 3, 5]]
    found = []
    for order in orders:
        observer = Observer("l", 20, 8, second_moments=True)
        for number in order:
            observer.update(samples[number], number, number)
        found.append(observer.moments)
    ranks = [Observer("l", 20, 8, second_moments=True) for _ in range(3)]
    for number, sample in enumerate(samples):
        ranks[number % 3].update(sample, number, number)
    found.append(sum(rank.moments for rank in ranks))
    assert found[0].dtype == torch.int64 and all(torch.equal(found[0], other) for other in found[1:])
    floats = [sum(samples[number].double().T @ samples[number].double() for number in order) for order in orders]
    assert not torch.equal(floats[0], floats[2]), "the order must matter to floats, or this shows nothing"


def test_moments_do_not_overflow_and_refuse_what_could():
    """The bounds that the docstring states: at MOST a sample, 2^16 samples."""
    assert MOST / COARSE * 2**16 <= 2.0**62 and COARSE / FINE * 2**16 < 2.0**62
    observer = Observer("l", 2, 4, second_moments=True)
    large = torch.tensor([[2.0**26.9, 1.0]])
    observer.update(large, 0, 0)
    got = observer.stats().moments.matrix()[0, 0]
    assert got == large.double()[0, 0] ** 2
    with pytest.raises(SourceError, match=r"the input of l: the sum of its products reaches .*--w_method nearest"):
        observer.update(torch.tensor([[2.0**27, 1.0]]), 1, 1)


def test_none_are_kept_unless_they_are_asked_for():
    observer = Observer("l", 4, 4)
    observer.update(torch.randn(3, 4), 0, 0)
    assert observer.moments is None and observer.stats().moments is None
    assert observer.stats().smoothed(torch.ones(4)).moments is None


# -- jobs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, method", [("qwen2_vl", "m2"), ("llava", "m4")])
def test_a_job_by_gptq(tmp_path, family, method):
    """By the command line: other codes, the same scales; and the order of the images does not change a bit."""
    source, images = tiny.make(tmp_path / "src", family), tiny.make_images(tmp_path / "images", 4)
    listed = [{"image": f"images/{image.name}", "prompt": "What is this?"} for image in sorted(images.iterdir())]
    for name, order in (("forth", listed), ("back", listed[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in order))
    exports = {}
    for name, flags in (("gptq", ["--w_method", "gptq"]), ("back", ["--w_method", "gptq"]), ("nearest", [])):
        samples = tmp_path / ("back.jsonl" if name == "back" else "forth.jsonl")
        words = ["--model_path", source, "--calib_images", samples, "--save_directory", tmp_path / name, "--quiet"]
        assert main(["quantize", *map(str, words), "--device_type", "cpu", "--anti_method", method, *flags]) == 0
        exports[name] = reader.read(tmp_path / name)
    recipe = json.loads((tmp_path / "gptq" / "quant_recipe.json").read_text())
    assert recipe["config"]["w_method"] == "gptq"
    names = exports["gptq"].linear_names
    for name in exports["gptq"].tensors:
        assert torch.equal(exports["gptq"].load(name), exports["back"].load(name)), name
    for part in ("weight_scale", "input_scale", "input_offset", "deq_scale"):
        assert all(
            torch.equal(exports["gptq"].load(f"{name}.{part}"), exports["nearest"].load(f"{name}.{part}"))
            for name in names
        )
    changed = [
        (exports["gptq"].load(f"{name}.weight") != exports["nearest"].load(f"{name}.weight")).float().mean()
        for name in names
    ]
    assert min(changed) > 0.01


def test_a_block_rounded_by_gptq_is_nearer(tmp_path):
    """On the sample that is measured, averaged over the blocks; without smoothing, so that nothing else differs."""
    source, images = tiny.make(tmp_path / "src", "qwen2_vl", outliers=False), tiny.make_images(tmp_path / "images", 4)
    decibels = {}
    for w_method in ("nearest", "gptq"):
        config = QuantConfig(w_method=w_method, dev_type="cpu", dynamic_names=("*",))  # a token's own scale: less noise
        blocks = Calibrator(source, config, str(images)).run(tmp_path).blocks
        decibels[w_method] = sum(block["snr_db"] for block in blocks) / len(blocks)
    assert decibels["gptq"] > decibels["nearest"]


# -- the mean error, taken up ------------------------------------------------------------------------------------------


def test_the_mean_error_is_that_of_the_outputs():
    """Against the outputs themselves, row after row, in float64."""
    torch.manual_seed(0)
    x, weight = torch.randn(400, 24) + 2, torch.randn(10, 24)
    codes, scale = round_weight("l", weight, Nearest())
    errors = x.double() @ (codes.double() * scale - weight.double()).T
    found = mean_error([weight[:3], weight[3:]], codes, scale, x.mean(0))
    torch.testing.assert_close(found.double(), errors.mean(0), rtol=1e-4, atol=1e-4)


def test_a_static_linear_takes_the_mean_error_up_and_a_dynamic_one_stays():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4000, 24) + 2, torch.randn(10, 24), torch.randn(10)
    wanted = (x @ weight.T + bias).mean(0)
    for scheme in (StaticLinear, DynamicLinear):
        linear = scheme.quantize("l", weight, bias, (x.min(), x.max()), torch.float32)
        before, stored = (linear(x).mean(0) - wanted).abs(), {k: v.clone() for k, v in linear.tensors().items()}
        linear.take_up(mean_error([weight], linear.weight, linear.weight_scale, x.mean(0)))
        after = (linear(x).mean(0) - wanted).abs()
        changed = {name for name, tensor in linear.tensors().items() if not torch.equal(tensor, stored[name])}
        if scheme is DynamicLinear:
            assert not changed
        else:
            assert changed == {"l.quant_bias"} and after.mean() < before.mean() / 4


@pytest.mark.parametrize("family, method", [("qwen2_vl", "m2"), ("llava", "none")])
def test_a_job_that_corrects_biases(tmp_path, family, method, capsys):
    """Of the export quant_bias alone is another; verify lets pass what the rounding explains, and nothing beyond."""
    source, images = tiny.make(tmp_path / "src", family), tiny.make_images(tmp_path / "images", 4)
    words = ["--model_path", source, "--calib_images", images, "--quiet", "--device_type", "cpu"]
    exports = {}
    for name, flags in (("plain", []), ("corrected", ["--bias_correction"])):
        target = tmp_path / name
        made = ["quantize", *map(str, words), "--save_directory", str(target), "--anti_method", method, *flags]
        assert main(made) == 0
        exports[name] = reader.read(target)
    parts = {
        name.rpartition(".")[2]
        for name in exports["plain"].tensors
        if not torch.equal(exports["plain"].load(name), exports["corrected"].load(name))
    }
    assert parts == {"quant_bias"}
    recipe = tmp_path / "corrected" / "quant_recipe.json"
    assert json.loads(recipe.read_text())["config"]["bias_correction"] is True
    checkpoint, found = Checkpoint(source), family_of(Checkpoint(source).config, source)
    assert check_values(checkpoint, exports["corrected"], found, set()) == []
    recipe.rename(tmp_path / "recipe.json")  # without it, the same tensors are damaged
    damaged = check_values(checkpoint, exports["corrected"], found, set())
    assert damaged and {each.tensor.rpartition(".")[2] for each in damaged} == {"quant_bias"}
    (tmp_path / "recipe.json").rename(recipe)
    name = exports["corrected"].linear_names[0] + ".quant_bias"
    file = exports["corrected"].tensors[name].file
    tensors = load_file(file)
    tensors[name][3] += 1_000_000
    save_file(tensors, file)
    assert [each.tensor for each in check_values(checkpoint, reader.read(tmp_path / "corrected"), found, set())] == [
        name
    ]
