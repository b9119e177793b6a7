"""verify of exports whose linears are rounded per token, all of them or some beside static ones."""

import math

import pytest
import tiny
import torch
from exports import copy, edit_tensors

from quant import Calibrator, QuantConfig
from quant.verify.verify import verify

KINDS = {
    "dynamic": {"scheme": "W8A8_DYNAMIC"},
    "mixed": {"dynamic_names": ("*.mlp.down_proj",), "disable_names_only": ()},
}
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("images"), 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory, images):
    """(family, kind) -> (source, export)."""
    root, done = tmp_path_factory.mktemp("dynamic"), {}

    def make(family, kind):
        if (family, kind) not in done:
            source, out = root / family, root / f"{family}-{kind}"
            if not source.exists():
                tiny.make(source, family)
            choices = dict(KINDS[kind])
            if kind == "mixed":
                prefix = "language_model.model" if family == "llava" else "model"
                choices["dynamic_names"] = (f"{prefix}.layers.*.mlp.down_proj",)
                choices["disable_names_only"] = ("*vision*",) if family == "llava" else ("visual.blocks.*.mlp.fc2",)
            Calibrator(source, QuantConfig(dev_type="cpu", **choices), images, quiet=True).run(root).save(out)
            done[family, kind] = source, out
        return done[family, kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_good_export_passes(made, images, family, kind):
    source, out = made(family, kind)
    report = verify(out, source, QuantConfig(dev_type="cpu"), images, tokens=4)
    assert report["passed"] and not report["findings"], report["verdict"]
    linears = [entry for block in report["blocks"] for entry in block["linears"]]
    dynamic = [entry for entry in linears if entry["range_covered"] is None]
    assert dynamic and all(entry["clipped_share"] == 0 for entry in dynamic)
    assert (len(dynamic) == len(linears)) == (kind == "dynamic")
    assert all(entry["export"]["snr_db"] > 20 and math.isfinite(entry["rounded"]["snr_db"]) for entry in dynamic)
    # What is rounded afresh is rounded per token, too: the export is no worse than it.
    assert all(entry["export"]["snr_db"] > entry["rounded"]["snr_db"] - 1 for entry in dynamic)


def edited(name, change):
    def edit(tensors):
        tensors[name] = change(tensors[name].clone())

    return edit


def row(factor, dtype=None):
    def change(tensor):
        tensor[3] = (tensor[3].float() * factor).to(tensor.dtype)
        return tensor

    return change


DAMAGE = {
    "a row's scale": (edited(f"{DOWN}.weight_scale", row(1.5)), f"{DOWN}.weight_scale"),
    "codes": (edited(f"{DOWN}.weight", lambda w: w.roll(7, 0)), f"{DOWN}.weight"),
    "an offset": (edited(f"{DOWN}.weight_offset", lambda w: w + 1), f"{DOWN}.weight_offset"),
    "a shape": (edited(f"{DOWN}.weight_scale", lambda w: w[:, 0]), f"{DOWN}.weight_scale"),
    "a static tensor more": (
        lambda tensors: tensors.update({f"{DOWN}.deq_scale": torch.ones(256)}),
        f"{DOWN}.deq_scale",
    ),
    "one tensor less": (lambda tensors: tensors.pop(f"{DOWN}.weight_scale"), f"{DOWN}.weight_scale"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(made, images, tmp_path, damage):
    source, out = made("qwen2_vl", "mixed")
    edit, tensor = DAMAGE[damage]
    bad = copy(out, tmp_path / "bad")
    edit_tensors(bad, edit)
    report = verify(bad, source, QuantConfig(dev_type="cpu"), images, tokens=0)
    assert not report["passed"] and [finding["tensor"] for finding in report["findings"]] == [tensor]
