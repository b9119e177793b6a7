"""The runtime against an int64 computation in numpy, and against what the directory holds."""

import exports
import numpy as np
import pytest
import tiny
import torch
import transformers

from quant.arithmetic.int8 import pack_deq_scale, unpack_deq_scale
from quant.arithmetic.schemes import QuantizedLinear, StaticLinear
from quant.base.errors import QuantError
from quant.export import reader
from quant.inputs.images import open_image
from quant.verify import runtime
from quant.verify.generation import greedy
from quant.verify.runtime import load, load_float

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FAMILIES = [("qwen2_vl", "bfloat16"), ("llava", "float16")]


def parts(rng, outputs: int, inputs: int, dtype: torch.dtype, extreme: bool) -> dict[str, torch.Tensor]:
    """What an export stores of one linear; extreme: codes at their ends, a bias that brings sums near int32's."""
    codes = rng.choice([-127, 127], (outputs, inputs)) if extreme else rng.integers(-127, 128, (outputs, inputs))
    largest = 2**31 - 1 - 128 * 127 * inputs
    deq = torch.from_numpy(rng.uniform(1e-6, 1e-3, outputs).astype(np.float32))
    return {
        "weight": torch.from_numpy(codes.astype(np.int8)),
        "weight_scale": torch.full((outputs, 1), torch.nan),  # in no formula of the server
        "weight_offset": torch.zeros(outputs, 1),
        "input_scale": torch.tensor([0.037]).to(dtype).float(),
        "input_offset": torch.tensor([-128.0 if extreme else 17.0]),
        "quant_bias": torch.from_numpy(rng.integers(-largest, largest, outputs).astype(np.int32)),
        "deq_scale": pack_deq_scale(deq, dtype),
    }


def static(stored: dict[str, torch.Tensor], dtype: torch.dtype) -> StaticLinear:
    named = {f"linear.{part}": tensor for part, tensor in stored.items()}
    return StaticLinear.read("linear", named.__getitem__, dtype, has_bias=False)


def by_hand(stored: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The server's arithmetic in numpy: codes by float32 division, sums in int64, one float32 product."""
    scale, offset = (stored[name].numpy() for name in ("input_scale", "input_offset"))
    codes = np.clip(np.rint(x.float().numpy() / scale + offset), -128, 127).astype(np.int64)
    sums = codes @ stored["weight"].numpy().astype(np.int64).T + stored["quant_bias"].numpy().astype(np.int64)
    assert np.abs(sums).max() < 2**31
    deq = stored["deq_scale"].numpy()
    deq = deq if deq.dtype == np.float32 else deq.astype(np.uint64).astype(np.uint32).view(np.float32)
    return torch.from_numpy(sums.astype(np.float32) * deq).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    "tokens,outputs,inputs", [(1, 8, 16), (1, 320, 256), (7, 128, 640), (40, 96, 160), (3, 8, 5120)]
)
def test_integers_are_exact(dtype, extreme, tokens, outputs, inputs):
    rng, kind = np.random.default_rng(tokens + inputs), DTYPES[dtype]
    stored = parts(rng, outputs, inputs, kind, extreme)
    x = torch.from_numpy(rng.normal(0, 3, (tokens, inputs)).astype(np.float32))
    if extreme:  # beyond the codes on both sides, ties, and zero
        x[:, ::4], x[:, 1::4], x[:, 2::4] = 1e4, -1e4, stored["input_scale"] * 2.5
    x = x.to(kind)
    assert torch.equal(static(stored, kind)(x), by_hand(stored, x))


def test_any_number_of_leading_dimensions_and_float32_activations():
    stored = parts(np.random.default_rng(0), 8, 16, torch.float16, False)
    x = torch.randn(2, 3, 5, 16)
    y = static(stored, torch.float16)(x)
    assert y.dtype == torch.float32 and y.shape == (2, 3, 5, 8)
    # A float16 server sees the activation, and leaves the result, in float16.
    assert torch.equal(y.reshape(-1, 8), by_hand(stored, x.half().reshape(-1, 16)).float())


def test_computes_what_was_quantized():
    """From float weights to the export's tensors and back: the error is that of 8 bits, and quant_bias carries the
    offset and the bias.
    """
    torch.manual_seed(0)
    weight, bias, x = torch.randn(32, 64), torch.randn(32), torch.randn(100, 64) * 2 + 1
    stored = StaticLinear.quantize("linear", weight, bias, (x.min(), x.max()), torch.float32).tensors()
    y = StaticLinear.read("linear", stored.__getitem__, torch.float32)(x)
    expected = torch.nn.functional.linear(x, weight, bias)
    assert (y - expected).norm() < 0.012 * expected.norm()
    assert not torch.allclose(y, expected, rtol=1e-3)


def test_deq_scale_round_trip():
    deq = torch.tensor([1e-30, 2.5e-7, 1.0, 3e38])
    for dtype in DTYPES.values():
        assert torch.equal(unpack_deq_scale(pack_deq_scale(deq, dtype)), deq)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return exports.Exports(tmp_path_factory.mktemp("runtime"))


def sample(made, encoder):
    return encoder(open_image(next(made.images.iterdir())), "What is this?")


@pytest.mark.parametrize("family,dtype", FAMILIES)
@torch.inference_mode()
def test_both_layouts_run_and_generate(made, family, dtype):
    logits, answers = [], []
    for layout in ("ascendV1", "mindie"):
        model, encoder = load(made(family, dtype, layout))
        inputs = sample(made, encoder)
        logits.append(model(**inputs).logits)
        answers.append(greedy(model, inputs, 6))
    assert torch.isfinite(logits[0]).all() and torch.equal(*logits)
    assert len(answers[0]) <= 6 and torch.equal(*answers)
    int8 = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert {module.name for module in int8} == set(reader.read(made(family, dtype)).linear_names)

    float_model, _ = load_float(made.source(family, dtype))
    expected = float_model(**inputs).logits
    error = (logits[0] - expected).float().norm() / expected.float().norm()
    assert 0 < error < 0.2


@pytest.mark.parametrize("family,dtype", FAMILIES)
@torch.inference_mode()
def test_float_model_is_transformers_own(made, family, dtype):
    model, encoder = load_float(made.source(family, dtype))
    inputs = sample(made, encoder)
    whole = (
        getattr(transformers, type(model).__name__)
        .from_pretrained(made.source(family, dtype), dtype=model.dtype)
        .eval()
    )
    assert torch.equal(model(**inputs).logits, whole(**inputs).logits)
    assert model.generation_config.eos_token_id == whole.generation_config.eos_token_id


@torch.inference_mode()
def test_only_what_a_server_reads_is_read(made, tmp_path):
    """weight_scale and the float bias of an int8 linear are in no formula of the server."""
    directory = exports.copy(made("qwen2_vl"), tmp_path / "out")

    def change(tensors):
        for name in reader.read(directory).linear_names:
            tensors[f"{name}.weight_scale"] = tensors[f"{name}.weight_scale"] * 7
            if f"{name}.bias" in tensors:
                tensors[f"{name}.bias"] = tensors[f"{name}.bias"] + 1

    exports.edit_tensors(directory, change)
    (model, encoder), (changed, _) = load(made("qwen2_vl")), load(directory)
    inputs = sample(made, encoder)
    assert torch.equal(model(**inputs).logits, changed(**inputs).logits)


@pytest.mark.parametrize(
    "change,message",
    [
        (
            lambda t: t.pop("model.layers.0.self_attn.q_proj.quant_bias"),
            "tensor model.layers.0.self_attn.q_proj.quant_bias is missing",
        ),
        (
            lambda t: t.update(
                {"model.layers.0.self_attn.q_proj.deq_scale": t["model.layers.0.self_attn.q_proj.deq_scale"].long()}
            ),
            "q_proj.deq_scale is int64, a server of bfloat16 models reads float32 there",
        ),
        (
            lambda t: t.update(
                {"model.layers.1.mlp.up_proj.input_scale": t["model.layers.1.mlp.up_proj.input_scale"][0]}
            ),
            r"up_proj.input_scale has shape \[\], \[1\] is expected",
        ),
    ],
)
def test_what_no_server_would_load_is_named(made, tmp_path, change, message):
    directory = exports.copy(made("qwen2_vl"), tmp_path / "out")
    exports.edit_tensors(directory, change)
    with pytest.raises(QuantError, match=message):
        load(directory)


def test_tied_head(tmp_path):
    from quant.base.config import QuantConfig
    from quant.calibrate.calibrator import Calibrator

    source = tiny.make(tmp_path / "src", "qwen2_vl", tied=True)
    Calibrator(source, QuantConfig(anti_method="none", dev_type="cpu"), tiny.make_images(tmp_path / "images", 1)).run(
        tmp_path
    ).save(tmp_path / "out")
    model, _ = runtime.load(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
