"""dump and compare: the first module that differs is found, and what the difference looks like is said."""

import json

import numpy as np
import pytest
import tiny
import torch

from quant.base.errors import QuantError, UsageError
from quant.commands.cli import main
from quant.compare.compare import compare, describe, rename
from quant.compare.features import Dump, Writer
from quant.verify import runtime

RNG = np.random.default_rng(0)
A = RNG.normal(size=(1, 40, 64)).astype(np.float32)


def noisy(x: np.ndarray, size: float) -> np.ndarray:
    return x + size * RNG.normal(size=x.shape)


# ---- kinds of differences


KINDS = {
    "factor": (noisy(A * 0.125, 1e-4), "B is A times 0.125"),
    "sign": (-A, "opposite sign"),
    "bias": (A + RNG.normal(size=64), "a constant per channel is added"),
    "channel factors": (A * RNG.uniform(0.2, 3, 64), "every channel is A's times a factor of its own"),
    "channels in another order": (np.concatenate([A[..., 32:], A[..., :32]], -1), "channel 0 of B is channel 32 of A"),
    "tokens in another order": (A[:, ::-1], "token 0 of B is token 39 of A"),
    "one token": (np.where(np.arange(40)[:, None] == 7, 0, A), "of the error is in 1 of 40 tokens (7)"),
    "one channel": (np.where(np.arange(64) == 9, A.clip(-0.5, 0.5), A), "of the error is in 1 of 64 channels (9)"),
    "transposed": (A[0].T, "B is A transposed"),
    "another shape": (A[0].reshape(-1), "only the shape differs"),
    "another number of tokens": (A[:, :39], "another number of tokens or channels"),
    "NaN": (np.where(np.arange(64) == 9, np.nan, A), "B holds NaN or Inf in 40 of 2560 values"),
    "rounding": (torch.tensor(A).bfloat16().float().numpy(), "as small as bfloat16's rounding"),
    "other weights": (A @ RNG.normal(size=(64, 64)) / 8, "no simple pattern"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_differences(kind):
    b, said = KINDS[kind]
    assert said in describe([(A, b)])[0]


# ---- two dumps


INPUTS = {"input_ids": np.arange(5)[None], "pixel_values": A}
FEATURES = ["embed", "layers.0.q_proj", "layers.0", "layers.1.norm", "layers.1", "logits"]


def write(directory, change=lambda name, value: value, inputs=INPUTS, rename=lambda name: name, **facts):
    rng = np.random.default_rng(1)
    writer = Writer(directory, facts.pop("model", str(directory)), **facts)
    for sample in ("one", "two"):
        writer.sample(sample, inputs)
        for name in FEATURES:
            writer.feature(rename(name), change(name, rng.normal(size=(1, 6, 8))))
    writer.close()
    return Dump(directory)


def damaged_from(first: str, amount: float = 0.1):
    """Every feature from `first` on differs, the later the more."""

    def change(name, value):
        behind = FEATURES.index(name) - FEATURES.index(first)
        return value if behind < 0 else noisy(value, amount * (1 + behind))

    return change


@pytest.mark.parametrize("feature", FEATURES)
def test_the_first_difference_is_found(tmp_path, feature):
    result = compare(write(tmp_path / "a"), write(tmp_path / "b", damaged_from(feature)))
    assert result.first.feature == feature
    before = FEATURES.index(feature) - 1
    assert (result.before and result.before.feature) == (FEATURES[before] if before >= 0 else None)


def test_equal_dumps_agree(tmp_path):
    result = compare(write(tmp_path / "a"), write(tmp_path / "b"))
    assert result.first is None and all(row.relative == 0 and row.cosine == pytest.approx(1) for row in result.rows)


def test_tolerance(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", damaged_from("layers.0", 1e-3))
    assert compare(a, b, tolerance=0.01).first is None
    assert compare(a, b, tolerance=1e-4).first.feature == "layers.0"


def test_relative_error_over_all_samples(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", damaged_from("layers.1", 0.3))
    row = next(row for row in compare(a, b).rows if row.feature == "layers.1")
    one, two = (np.stack([dump.load("layers.1", sample) for sample in (0, 1)]).astype(float) for dump in (a, b))
    assert row.relative == pytest.approx(np.linalg.norm(two - one) / np.linalg.norm(one))
    assert row.largest == pytest.approx(np.abs(two - one).max())


def test_other_inputs_are_refused(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", inputs={**INPUTS, "pixel_values": A + 1e-6})
    with pytest.raises(UsageError, match="are of different inputs .* sample 0 differs"):
        compare(a, b)


def test_names_are_mapped(tmp_path):
    a, b = (
        write(tmp_path / "a"),
        write(tmp_path / "b", rename=lambda name: name.replace("layers.", "model.blocks.").replace("q_proj", "query")),
    )
    assert [row.feature for row in compare(a, b).rows] == ["embed", "logits"]
    names = {"layers.*": "model.blocks.*", "layers.0.q_proj": "model.blocks.0.query"}
    result = compare(a, b, names)
    assert [row.feature for row in result.rows] == FEATURES and result.only == ([], [])
    assert rename("layers.12.mlp", {"layers.*": "x.*", "layers.1*.mlp": "y.*"}) == "y.2"


def test_no_common_name_is_refused(tmp_path):
    with pytest.raises(UsageError, match="share no feature name: A has embed, B has x.embed; --map"):
        compare(write(tmp_path / "a"), write(tmp_path / "b", rename=lambda name: f"x.{name}"))


def test_a_dump_without_features_is_refused(tmp_path):
    a = write(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest | {"features": []}))
    with pytest.raises(UsageError, match="share no feature name: A has embed, B has none; --map"):
        compare(a, Dump(tmp_path / "b"))


def test_nondeterminism_is_warned_of(tmp_path):
    shaky = compare(write(tmp_path / "a", repeat={"layers.1": 0.25}), write(tmp_path / "b"))
    assert (
        "nondeterministic, 1 features differ between two runs of the same model, layers.1 by 0.25" in shaky.warnings[0]
    )
    same = dict(model="m", device="cpu", dtype="d", torch="2")
    twice = compare(write(tmp_path / "c", **same), write(tmp_path / "d", damaged_from("logits", 1e-6), **same))
    assert "both dumps are of the same model" in twice.warnings[0] and twice.first is None
    assert compare(write(tmp_path / "e", **same), write(tmp_path / "f", **same)).warnings == []


@pytest.mark.parametrize("content", ["", "[]", '{"samples": 3, "features": []}', '{"features": []}'])
def test_damaged_manifest_is_one_line(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(QuantError, match="manifest.json: damaged, or not of a dump"):
        Dump(tmp_path)


def test_missing_feature_file_is_named(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    (tmp_path / "b" / "0001" / "layers.0.npy").unlink()
    with pytest.raises(QuantError, match=r"0001/layers.0.npy"):
        compare(a, b)


# ---- dumps of models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("dump")
    tiny.make_images(root / "images", 2)
    return tiny.make(root / "src", "qwen2_vl", tied=True), root / "images"


def run(*words) -> int:
    return main([*map(str, words), *(["--device_type", "cpu"] if words[0] == "dump" else [])])


@torch.inference_mode()
def test_features_are_those_of_the_whole_model(source, tmp_path):
    """Streamed, and yet what hooks on the whole model see, in its order of execution."""
    checkpoint, images = source
    assert (
        run(
            "dump", tmp_path / "d", "--model_path", checkpoint, "--images", images, "--num_samples", 2, "--modules", "*"
        )
        == 0
    )
    dump = Dump(tmp_path / "d")
    model, _ = runtime.load_float(checkpoint)
    names = {
        "visual.blocks.1.attn.qkv": "model.visual.blocks.1.attn.qkv",
        "model.layers.0": "model.language_model.layers.0",
        "visual.merger.mlp.2": "model.visual.merger.mlp.2",
        "model.norm": "model.language_model.norm",
    }
    caught = {}
    for hub, path in names.items():
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, hub=hub: caught.update(
                {hub: output[0] if isinstance(output, tuple) else output}
            )
        )
    for sample in (0, 1):
        logits = model(**{key: torch.from_numpy(value) for key, value in dump.inputs(sample).items()}).logits
        assert list(caught) == [name for name in dump.features if name in names]
        for name, value in caught.items():
            assert np.array_equal(dump.load(name, sample), value.float().numpy()), name
        assert np.array_equal(dump.load("logits", sample), logits[0, -1].float().numpy())
        caught.clear()
    assert dump.manifest["repeat"] == {}
    assert (
        dump.features.index("visual.patch_embed.proj")
        < dump.features.index("visual.blocks.0.norm1")
        < dump.features.index("visual.blocks.0")
        < dump.features.index("visual.blocks.1.norm1")
    )
    assert dump.features[-1] == "logits"


def test_a_damaged_weight_is_found_by_the_commands(source, tmp_path, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    checkpoint, images = source
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.bias"] += 3
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    for name, model in (("a", checkpoint), ("b", broken)):
        more = ["--images", images] if name == "a" else ["--inputs", tmp_path / "a"]
        assert run("dump", tmp_path / name, "--model_path", model, *more, "--modules", "model.layers.*") == 0
    capsys.readouterr()
    assert run("compare", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "c.json") == 1
    printed = capsys.readouterr().out
    assert "differs first: model.layers.1.self_attn.q_proj; the last that agrees is" in printed
    assert "a constant per channel is added" in printed and max(map(len, printed.splitlines())) <= 80
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["first"] == "model.layers.1.self_attn.q_proj" and not written["same"]
    assert run("compare", tmp_path / "a", tmp_path / "a") == 0


def test_bad_requests_are_one_line(source, tmp_path, capsys):
    checkpoint, images = source
    assert (
        run("dump", tmp_path / "d", "--model_path", checkpoint, "--images", images, "--modules", "model.layer.*") == 2
    )
    assert "--modules model.layer.*: matches none of" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert run("dump", tmp_path / "full", "--model_path", checkpoint, "--images", images) == 2
    assert "is not empty" in capsys.readouterr().err
    assert run("compare", tmp_path / "full", tmp_path / "full") == 2
    assert "holds no manifest.json" in capsys.readouterr().err


def test_nondeterminism_of_a_model_is_recorded(source, tmp_path, monkeypatch, capsys):
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    forward = modeling_qwen2_vl.Qwen2MLP.forward
    monkeypatch.setattr(
        modeling_qwen2_vl.Qwen2MLP, "forward", lambda self, x: forward(self, x) + torch.randn_like(x) * 0.1
    )
    checkpoint, images = source
    assert run("dump", tmp_path / "d", "--model_path", checkpoint, "--images", images) == 0
    assert "nondeterministic" in capsys.readouterr().out
    assert set(Dump(tmp_path / "d").manifest["repeat"]) >= {"model.layers.0", "model.layers.1"}
