"""Fused experts: read linear by linear whichever way round they lie, run as transformers runs them, rounded well though
no token reaches them, one type in a block.
"""

import weakref
from collections import Counter

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from quant import Calibrator, QuantConfig
from quant.arithmetic import smoothing
from quant.base.errors import UsageError
from quant.commands.cli import main
from quant.export import reader
from quant.export.plan import make_plan
from quant.families import family_of
from quant.families.qwen3vl_moe import QWEN3_VL_MOE
from quant.files import experts
from quant.files.checkpoint import Checkpoint
from quant.files.safetensors_io import read_header, read_pieces, read_tensor, unfused
from quant.inputs.samples import prepare
from quant.model.experts import Experts
from quant.model.streamed import StreamedModel
from quant.verify.verify import verify

BLOCK = "model.language_model.layers.0.mlp"


def fused(count: int, hidden: int, inner: int, turned: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(count, 2 * inner, hidden, generator=generator)
    second = torch.randn(count, hidden, inner, generator=generator)
    if turned:
        first, second = first.transpose(1, 2).contiguous(), second.transpose(1, 2).contiguous()
    return {"a.experts.gate_up_proj": first, "a.experts.down_proj": second, "a.gate.weight": torch.ones(count, hidden)}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count,hidden,inner", [(3, 8, 6), (2, 8, 4), (2, 8, 8), (1, 4, 8)])
def test_each_linear_is_read_by_itself(tmp_path, count, hidden, inner, turned):
    """Also where 2 I = H, or I = H, and one of the two tensors does not tell which way round it is."""
    whole = fused(count, hidden, inner, turned)
    save_file(whole, tmp_path / "x.safetensors")
    infos = unfused(read_header(tmp_path / "x.safetensors"), {"text_config": {"hidden_size": hidden}})
    first, second = (value.transpose(1, 2) if turned else value for value in list(whole.values())[:2])
    assert len(infos) == 3 * count + 1
    for number in range(count):
        wanted = {"gate": first[number, :inner], "up": first[number, inner:], "down": second[number]}
        for part, value in wanted.items():
            info = infos[f"a.experts.{number}.{part}_proj.weight"]
            assert info.shape == tuple(value.shape) and torch.equal(read_tensor(info), value)
            assert torch.equal(torch.cat(list(read_pieces(info, 5))), value.reshape(-1))


def test_what_is_no_fused_expert_stays():
    shapes = {"a.gate_up_proj": (4, 8), "b.gate_up_proj": (2, 8, 4), "c.down_proj": (2, 4, 4)}
    assert experts.pieces(shapes, 4) == {} and experts.width({"text_config": 3}) is None


@torch.inference_mode()
def test_int8_linears_are_run_as_the_whole_layer_is(tmp_path):
    """With linears that compute the same put in the place of all, the layer answers as transformers' own does."""
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", "qwen3_vl_moe", dtype="float32"))
    model = StreamedModel(checkpoint, QWEN3_VL_MOE, torch.float32)
    tower, samples = (
        QWEN3_VL_MOE.tower("language"),
        prepare(tiny.make_images(tmp_path / "i", 1), checkpoint, QWEN3_VL_MOE, QuantConfig()),
    )
    assert samples.inputs
    tensors = {name: checkpoint.load(name) for name in model.block_tensors(tower, 0)}
    model.set_all(tensors)
    layer = model.block(tower, 0).mlp
    assert isinstance(layer.experts, Experts)
    x = torch.randn(1, 40, 192, generator=torch.Generator().manual_seed(1))
    wanted = layer(x)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted

    class Same:
        def __init__(self, name):
            self.name, self.weight, self.seen = name, checkpoint.load(f"{name}.weight"), 0

        def __call__(self, rows):
            self.seen += len(rows)
            return torch.nn.functional.linear(rows, self.weight)

    linears = [Same(name.removesuffix(".weight")) for name in tensors if ".experts." in name]
    with model.replaced(linears):
        got = layer(x)
    got = got[0] if isinstance(got, tuple) else got
    assert torch.allclose(got, wanted, atol=1e-5)
    assert sum(linear.seen for linear in linears if linear.name.endswith("gate_proj")) == 2 * 40  # two experts a token
    model.clear(tensors)
    assert vars(layer.experts)["fused"].gate_up_proj.is_meta


@pytest.mark.parametrize("w_method", ["nearest", "gptq"])
def test_an_expert_that_no_token_reaches_is_rounded_well(tmp_path, w_method):
    """Of the routers' rows those of the last two experts are zero, the others are pairs r and -r: two of them are above
    zero for every token.
    """
    source, images = tiny.make(tmp_path / "src", "qwen3_vl_moe"), tiny.make_images(tmp_path / "images", 2)
    file = source / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("mlp.gate.weight")]:
        rows = tensors[name][:3]
        tensors[name] = torch.cat([rows, -rows, torch.zeros_like(rows[:2])])
    save_file(tensors, file, metadata={"format": "pt"})
    config = QuantConfig(anti_method="m2", w_method=w_method, dev_type="cpu")
    Calibrator(source, config, str(images), quiet=True).run(tmp_path).save(tmp_path / "out")
    if w_method == "nearest":  # gptq moves weights further than a step where there are fewer tokens than channels
        report = verify(tmp_path / "out", source, QuantConfig(dev_type="cpu", num_samples=1), str(images), tokens=0)
        assert (
            report["findings"] == [] and report["passed"]
        )  # every weight is the source's, folded, within its rounding
    export, original = reader.read(tmp_path / "out"), Checkpoint(source)
    for number in (0, 7):
        linear, weight = (
            f"{BLOCK}.experts.{number}.down_proj",
            original.load(f"{BLOCK}.experts.{number}.down_proj.weight"),
        )
        made = export.linear(linear)
        error = (made.weight.float() * made.weight_scale - weight.float()).abs() / made.weight_scale
        assert error.max() <= 0.5 + 0.01  # its input is not looked at: to the nearest code, whatever the method
    router = f"{BLOCK}.gate.weight"
    ratio = (export.load(router).float() / original.load(router).float())[:3].log2()
    assert torch.equal(ratio, ratio.round()) and ratio.any(), "powers of two, and not all one"


class Alive(TorchDispatchMode):
    """Counts what is alive in float32 of the shapes of an expert's linears; of all experts at once there is none."""

    def __init__(self, single: set[tuple], fused: set[tuple]):
        super().__init__()
        self.single, self.fused, self.alive, self.most = single, fused, {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                shape = tuple(tensor.shape)
                assert tensor.is_meta or shape not in self.fused, f"{function}: all experts of a block in float32"
                if shape in self.single and not tensor.is_meta:
                    key = id(tensor)
                    self.alive[key] = weakref.ref(tensor, lambda _, key=key: self.alive.pop(key, None))
        self.most = max(self.most, len(self.alive))
        return made


@pytest.mark.parametrize("family", [family for family in ("qwen3_vl_moe", "qwen3_5_moe") if family in tiny.known()])
def test_never_all_experts_in_float32(tmp_path, monkeypatch, family):
    """Linears with more outputs than a scale is tried on, as those of real sizes are."""
    monkeypatch.setattr(smoothing, "OUTPUTS", 8)
    source, images = tiny.make(tmp_path / "src", family), tiny.make_images(tmp_path / "images", 1)
    config = QuantConfig(anti_method="m2", calib_text="none", dev_type="cpu")
    alive = Alive({(80, 192), (192, 80)}, {(8, 160, 192), (8, 192, 160), (8, 192, 80), (8, 80, 192)})
    with alive:
        Calibrator(source, config, str(images), quiet=True).run(tmp_path).save(tmp_path / "out")
    assert 0 < alive.most < 8, f"{alive.most} matrices in float32 at once; a block has 24"


def test_both_servers_are_asked_about_dynamic_experts(tmp_path, capsys):
    """MindIE reads them beside static attention: its rules and numbers of NPUs stand at the end of a run, too."""
    source, images = tiny.make(tmp_path / "src", "qwen3_vl_moe"), tiny.make_images(tmp_path / "images", 1)
    words = ["--model_path", source, "--calib_images", images, "--save_directory", tmp_path / "out"]
    words += ["--calib_text", "none", "--anti_method", "none", "--device_type", "cpu"]
    assert main(["quantize", *map(str, words)]) == 0
    told = capsys.readouterr().out
    assert "check    nothing wrong for MindIE and vLLM-Ascend" in told and "NPUs     MindIE: right on 1, 2, 4" in told


def test_experts_are_dynamic_whatever_is_asked(tmp_path):
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", "qwen3_vl_moe"))
    plan = make_plan(checkpoint, family_of(checkpoint.config, checkpoint.dir), QuantConfig())
    words = Counter((".experts." in name, word) for name, word in plan.words.items())
    assert words.keys() == {(False, "W8A8"), (True, "W8A8_DYNAMIC")} and words[True, "W8A8_DYNAMIC"] == 2 * 8 * 3
    assert (
        plan.decisions[f"{BLOCK}.experts.0.up_proj"].why == "W8A8_DYNAMIC: servers have no static product for experts"
    )
    assert plan.decisions[f"{BLOCK}.gate"].why == "servers load the router in float"
    some = "model.language_model.layers.1.mlp.experts.*.down_proj"
    with pytest.raises(
        UsageError, match=r"layers\.1\.mlp\.experts\.0\.down_proj float but not all .* add .*\.mlp\.experts\.\*"
    ):
        make_plan(checkpoint, QWEN3_VL_MOE, QuantConfig(disable_names=(some,)))
    whole = make_plan(
        checkpoint, QWEN3_VL_MOE, QuantConfig(disable_names=("model.language_model.layers.1.mlp.experts.*",))
    )
    assert sum(".experts." in name for name in whole.words) == 8 * 3
