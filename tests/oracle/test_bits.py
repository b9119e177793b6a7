"""Without smoothing and with min-max ranges, our numbers are msmodelslim's, bit for bit, on a float32 checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import reference
import tiny
import torch

from quant import QuantConfig
from quant.arithmetic.schemes import StaticLinear
from quant.export import reader
from quant.files.checkpoint import Checkpoint

CONFIG = {"anti_method": "none", "act_method": 1, "dtype": "float32", "dev_type": "cpu", "calib_text": "none"}


@dataclass
class Pair:
    """One checkpoint and one image, through both."""

    checkpoint: Checkpoint
    theirs: reference.Reference
    ours: dict[str, reader.Export]  # layout -> export

    @property
    def linears(self) -> list[str]:
        return self.theirs.export().linear_names


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def pair(request, tmp_path_factory, native) -> Pair:
    path: Path = tmp_path_factory.mktemp(request.param)
    source = tiny.make(path / "source", request.param, dtype="float32")
    images = tiny.make_images(path / "images", 1)
    saved = {str(path / kind): kind for kind in ("ascendV1", "mindie")}
    native({"source": str(source), "images": str(images), "config": CONFIG, "save": saved})
    theirs = reference.run(source, images, QuantConfig(**CONFIG), path / "msmodelslim")
    return Pair(Checkpoint(source), theirs, {kind: reader.read(directory) for directory, kind in saved.items()})


def differing(linears: list[str], parts: tuple[str, ...], ours, theirs) -> list[str]:
    """Names of the tensors that are not equal in dtype, shape and every bit. ours, theirs: name -> tensor."""
    names = [f"{linear}.{part}" for linear in linears for part in parts]
    assert names
    return [name for name in names if not identical(ours(name), theirs(name))]


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))
    )


def test_weights_are_rounded_alike(pair):
    parts = ("weight", "weight_scale", "weight_offset")
    assert differing(pair.linears, parts, pair.ours["ascendV1"].load, pair.theirs.export().load) == []


def test_equal_ranges_give_equal_activation_parameters(pair):
    """While it calibrates, the library's network is quantized already: the ranges are taken from its observers."""
    ours = {}
    for name in pair.linears:
        weight = pair.checkpoint.load(f"{name}.weight")
        bias = pair.checkpoint.load(f"{name}.bias") if f"{name}.bias" in pair.checkpoint.tensors else None
        ours |= StaticLinear.quantize(name, weight, bias, pair.theirs.ranges[name], torch.float32).tensors()
    assert differing(pair.linears, StaticLinear.parts, ours.get, pair.theirs.export().load) == []


def test_first_linear_sees_the_same_range(pair):
    """Nothing quantized stands in front of it: image file to input_scale, in two versions of transformers."""
    first, ours, theirs = pair.linears[0], pair.ours["ascendV1"], pair.theirs.export()
    for part in ("input_scale", "input_offset"):
        torch.testing.assert_close(ours.load(f"{first}.{part}"), theirs.load(f"{first}.{part}"), rtol=1e-5, atol=0)


def test_floats_are_carried_over(pair):
    theirs, ours = pair.theirs.export(), pair.ours["ascendV1"]
    floats = [name for name, kind in theirs.description.items() if kind == "FLOAT"]
    assert len(floats) > len(pair.linears)
    assert [name for name in floats if not identical(ours.load(name), theirs.load(name))] == []


def test_names_shapes_and_dtypes(pair):
    def signature(export):
        return {name: (info.dtype, info.shape) for name, info in export.tensors.items()}

    assert signature(pair.ours["ascendV1"]) == signature(pair.theirs.export())


def test_description(pair):
    assert pair.ours["ascendV1"].description == pair.theirs.export().description


def test_mindie_layout(pair):
    """Other names of files; the library's older description knows no version."""
    theirs, ours = pair.theirs.export("mindie"), pair.ours["mindie"]
    assert {path.name for path in theirs.dir.iterdir()} <= {path.name for path in ours.dir.iterdir()}
    assert {key: value for key, value in ours.description.items() if key != "version"} == theirs.description
    assert all(identical(ours.load(name), pair.ours["ascendV1"].load(name)) for name in theirs.tensors)
