"""A whole run: what it depends on, what it improves, what it leaves alone."""

import hashlib
import json
import random
import shutil

import pytest
import safetensors.torch
import tiny
import torch
import transformers

from quant import Calibrator, QuantConfig, UsageError
from quant.arithmetic import smoothing
from quant.arithmetic.schemes import StaticLinear
from quant.export import reader
from quant.inputs.encoder import Encoder
from quant.inputs.images import open_image


def export(source, out, images, **choices):
    calibrator = Calibrator(source, QuantConfig(**choices), images).run(out.parent)
    calibrator.save(out)
    return calibrator


def digest(directory, leave_out=("quant_run.json",)):
    """Name -> hash of every file; quant_run.json holds the times."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.name not in leave_out
    }


@pytest.mark.parametrize("family,method,act_method", [("qwen2_vl", "m2", 1), ("qwen2_vl", "m4", 3), ("llava", "m4", 1)])
def test_order_and_names_of_images_do_not_change_a_byte(tmp_path, family, method, act_method):
    source = tiny.make(tmp_path / "src", family)
    images = tiny.make_images(tmp_path / "images", 5)
    paths = sorted(images.iterdir())
    encoder = Encoder(source)
    inputs = [encoder(open_image(path), "What is this?") for path in paths]
    shuffled = inputs[:]
    random.Random(1).shuffle(shuffled)
    assert [id(x) for x in shuffled] != [id(x) for x in inputs]
    for name, order in (("a", inputs), ("b", shuffled)):
        export(source, tmp_path / name, order, anti_method=method, act_method=act_method)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")

    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(reversed(paths)):
        shutil.copy(path, renamed / f"{number}{path.suffix}")
    for name, folder in (("c", images), ("d", renamed)):
        export(source, tmp_path / name, folder, anti_method=method, act_method=act_method)
    c, d = digest(tmp_path / "c"), digest(tmp_path / "d")
    assert c.pop("quant_recipe.json") != d.pop("quant_recipe.json")  # it records the names
    assert c == d


def test_every_image_counts(tmp_path):
    """The vendor's m2 looks at one image; here leaving any of three out changes the result."""
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 3)
    weights = set()
    for number, leave_out in enumerate([None, *sorted(images.iterdir())]):
        some = tmp_path / f"some{number}"
        shutil.copytree(images, some)
        if leave_out:
            (some / leave_out.name).unlink()
        export(source, tmp_path / f"out{number}", some, anti_method="m2")
        weights.add(digest(tmp_path / f"out{number}")["quant_model_weight_w8a8.safetensors"])
    assert len(weights) == 4


@pytest.mark.parametrize("family,vision", [("qwen2_vl", "int8"), ("llava", "float")])
@pytest.mark.parametrize("method", ["m2", "m4"])
def test_folding_leaves_the_float_model_as_it_was(tmp_path, monkeypatch, family, vision, method):
    """Rounding taken out: with int8 replaced by exact float weights, what is exported is the source's own function."""
    source, images = tiny.make(tmp_path / "src", family, dtype="float32"), tiny.make_images(tmp_path / "images", 2)
    kept = {}

    def keep(cls, name, weight, bias, *rest):
        weight = torch.cat(list(weight))
        kept[f"{name}.weight"] = weight  # the last call is the smoothed one
        if bias is not None:
            kept[f"{name}.bias"] = bias.clone()
        return original(cls, name, weight, bias, *rest)

    original = StaticLinear.quantize.__func__
    monkeypatch.setattr(StaticLinear, "quantize", classmethod(keep))
    calibrator = export(source, tmp_path / "out", images, anti_method=method, vision=vision, dtype="float32")
    before = safetensors.torch.load_file(source / "model.safetensors")
    after = {
        **{
            name: reader.read(tmp_path / "out").load(name)
            for name in before
            if name in reader.read(tmp_path / "out").tensors
        },
        **kept,
    }
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    norms = [name for name in changed if "norm" in name]
    assert norms and len(changed) > len(norms), "nothing was folded: the method did not work"

    folded = tmp_path / "folded"
    shutil.copytree(source, folded)
    safetensors.torch.save_file(after, folded / "model.safetensors", {"format": "pt"})
    kind = getattr(transformers, calibrator.family.architecture)
    inputs = calibrator.samples.inputs[0]
    with torch.inference_mode():
        a, b = (kind.from_pretrained(path, dtype=torch.float32).eval()(**inputs).logits for path in (source, folded))
    assert (a - b).abs().max() < 2e-4 * a.abs().max()


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_smoothing_pays_on_outliers(tmp_path, family):
    source, images = tiny.make(tmp_path / "src", family), tiny.make_images(tmp_path / "images", 3)
    for method in ("m2", "m4"):
        calibrator = export(source, tmp_path / method, images, anti_method=method)
        measured = [entry for entry in calibrator.blocks if entry["int8"]]
        assert len(measured) == (4 if family == "qwen2_vl" else 2)
        gains = [entry["snr_db"] - entry["snr_plain_db"] for entry in measured]
        assert min(gains) > 0 and sum(gains) / len(gains) > 3, gains
        for entry in measured:
            assert all(
                after[1] - after[0] < before[1] - before[0]
                for before, after in ((r["before"], r["after"]) for r in entry["ranges"][0::2])
            )


def test_plain_rounding_changes_no_float(tmp_path):
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 2)
    calibrator = export(source, tmp_path / "out", images, anti_method="none")
    before, read = safetensors.torch.load_file(source / "model.safetensors"), reader.read(tmp_path / "out")
    for name, tensor in before.items():
        if name.removesuffix(".weight") not in calibrator.plan.int8_names:
            assert torch.equal(read.load(name), tensor), name
    for name in calibrator.plan.int8_names:
        weight = before[f"{name}.weight"].float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        assert torch.equal(read.linear(name).weight, torch.round(weight / scale).clamp(-127, 127).to(torch.int8))


def test_shards_do_not_matter(tmp_path):
    images = tiny.make_images(tmp_path / "images", 2)
    for shards in (1, 3):
        export(
            tiny.make(tmp_path / f"src{shards}", "qwen2_vl", shards=shards),
            tmp_path / f"out{shards}",
            images,
            anti_method="m4",
        )
    told = ("README.md", "quant_recipe.json", "quant_run.json")  # which name the source by its files
    assert digest(tmp_path / "out1", told) == digest(tmp_path / "out3", told)
    one, three = (json.loads((tmp_path / out / "quant_recipe.json").read_text()) for out in ("out1", "out3"))
    assert one.pop("source_sha256") != three.pop("source_sha256")
    assert one == three


def test_source_is_never_touched(tmp_path):
    source, images = tiny.make(tmp_path / "src", "llava", old_llava=True), tiny.make_images(tmp_path / "images", 2)
    before = digest(source), {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    export(source, tmp_path / "out", images, anti_method="m2")
    assert before == (digest(source), {path.name: path.stat().st_mtime_ns for path in source.iterdir()})


def test_disable_names_only_replaces_the_recipe(tmp_path):
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 2)
    calibrator = export(source, tmp_path / "out", images, anti_method="m4", disable_names_only=("model.layers.1.*",))
    int8 = set(reader.read(tmp_path / "out").linear_names)
    assert "model.layers.0.mlp.down_proj" in int8 and not any(name.startswith("model.layers.1.") for name in int8)
    assert "lm_head" not in int8 and "visual.blocks.0.mlp.fc2" not in int8
    # down_proj is int8, so up -> down is a group that is smoothed, in the order up, value, norm.
    assert ("model.layers.0.mlp.up_proj", ("model.layers.0.mlp.down_proj",)) in calibrator.plan.smoothed
    floats = safetensors.torch.load_file(source / "model.safetensors")
    for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "mlp.down_proj"):
        assert torch.equal(
            reader.read(tmp_path / "out").load(f"model.layers.1.{name}.weight"), floats[f"model.layers.1.{name}.weight"]
        )


def test_a_float_source_of_a_fold_is_exported_folded(tmp_path, monkeypatch):
    """up float and down int8: up's rows are divided and must be written that way."""
    monkeypatch.setattr(smoothing, "CLEAR", float("inf"))  # whether it gains or not
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 2)
    export(
        source,
        tmp_path / "out",
        images,
        anti_method="m4",
        disable_names_only=("model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"),
    )
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = (
        safetensors.torch.load_file(source / "model.safetensors")[name].float(),
        reader.read(tmp_path / "out").load(name).float(),
    )
    ratio = before / after
    assert after.dtype == torch.float32 and not torch.equal(before, after)
    assert ((ratio / ratio.median(1, keepdim=True).values - 1).abs() < 0.02).all(), "every row divided by one number"


def test_vision_float(tmp_path):
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 2)
    export(source, tmp_path / "out", images, anti_method="m2", vision="float")
    assert all(name.startswith("model.layers") for name in reader.read(tmp_path / "out").linear_names)


def test_recipe_says_what_was_done(tmp_path):
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 3)
    export(source, tmp_path / "out", images, anti_method="m4", num_samples=2, seed=5)
    recipe = json.loads((tmp_path / "out" / "quant_recipe.json").read_text())
    assert recipe["config"]["anti_method"] == "m4" and recipe["alpha"] == 0.9 and recipe["config"]["seed"] == 5
    assert recipe["torch"] == torch.__version__ and recipe["transformers"] == transformers.__version__
    names = [sample["name"] for sample in recipe["samples"]]
    assert names[0].startswith("image") and names[1].startswith("image") and len(recipe["calibration_sha256"]) == 64
    assert len(names) > 2 and all(name.startswith("calibration.jsonl:") for name in names[2:])
    assert (
        recipe["config"]["calib_text"] == "shipped"
        and 0 < recipe["tokens"]["answer"] <= recipe["config"]["text_tokens"]
    )
    assert recipe["tokens"]["image"] > 0 and recipe["tokens"]["prompt"] > 0
    assert recipe["float"]["lm_head"] and recipe["smoothed_groups"] == 12 and recipe["encoder"]
    other = QuantConfig(anti_method="m4", num_samples=2, seed=6).fingerprint()
    assert (
        recipe["fingerprint"]
        == QuantConfig(anti_method="m4", num_samples=2, seed=5, part_file_size=1).fingerprint()
        != other
    )


def test_seed_chooses_the_samples(tmp_path):
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 8)
    chosen = []
    for seed in range(4):
        calibrator = Calibrator(source, QuantConfig(num_samples=2, seed=seed), images)
        calibrator.prepare()
        chosen.append(tuple(calibrator.samples.keys))
    assert len(set(chosen)) > 1


def test_jsonl_prompts_reach_the_model(tmp_path):
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 2)
    lines = [
        json.dumps({"image": path.name, "prompt": f"Count to {number}."})
        for number, path in enumerate(sorted(images.iterdir()))
    ]
    (images / "list.jsonl").write_text("\n".join(lines))
    calibrator = Calibrator(source, QuantConfig(calib_text="none"), images / "list.jsonl")
    calibrator.prepare()
    texts = {Encoder(source).tokenizer.decode(inputs["input_ids"][0]) for inputs in calibrator.samples.inputs}
    assert len(texts) == 2 and all("Count to" in text for text in texts)


def test_saving_twice_and_saving_before_running(tmp_path):
    source, images = tiny.make(tmp_path / "src", "llava"), tiny.make_images(tmp_path / "images", 1)
    calibrator = Calibrator(source, QuantConfig(anti_method="none"), images)
    with pytest.raises(UsageError, match=r"call run\(\) first"):
        calibrator.save(tmp_path / "out")
    calibrator.run(tmp_path)
    calibrator.save(tmp_path / "one")
    (tmp_path / "two").mkdir()  # empty: as good as absent
    calibrator.save(tmp_path / "two", save_type=["ascendV1"])
    assert digest(tmp_path / "one", ()) == digest(tmp_path / "two", ())
    calibrator.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images",
        "one",
        "src",
        "two",
    ], "the working copy is gone"
