"""The export on disk: every name, shape, dtype and byte."""

import copy
import json
import stat

import pytest
import safetensors.torch
import tiny
import torch

from quant import Calibrator, QuantConfig
from quant.base.errors import QuantError, UsageError
from quant.export import reader
from quant.export.writer import ExportWriter, to_dtype
from quant.files import config_json
from quant.files.safetensors_io import SafetensorsWriter, read_header, read_tensor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """family, dtype -> (source, export directory, calibrator); each made once."""
    cache, root = {}, tmp_path_factory.mktemp("exports")
    images = tiny.make_images(root / "images", 2)

    def make(family="qwen2_vl", dtype="bfloat16", **choices):
        key = (family, dtype, *sorted(choices.items()))
        if key not in cache:
            source = root / f"{family}-{dtype}"
            if not source.exists():
                tiny.make(source, family, dtype=dtype, tied=family == "qwen2_vl")
                (source / "merges.extra").write_text("kept")
            calibrator = Calibrator(source, QuantConfig(**{"anti_method": "m4", **choices}), images).run(root)
            out = root / f"out{len(cache)}"
            calibrator.save(out)
            cache[key] = source, out, calibrator
        return cache[key]

    return make


def loaded(directory) -> dict[str, torch.Tensor]:
    """By the safetensors library, not by our reader."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        part = safetensors.torch.load_file(file)
        assert not part.keys() & tensors.keys()
        tensors |= part
    return tensors


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_tensors_are_those_that_servers_demand(made, family, dtype):
    source, out, calibrator = made(family, dtype)
    tensors, floats = loaded(out), safetensors.torch.load_file(source / "model.safetensors")
    # LLaVA's server computes in float16 whatever the checkpoint holds; no server computes in float32.
    model_dtype = (
        torch.float16 if family == "llava" else torch.bfloat16 if dtype == "float32" else getattr(torch, dtype)
    )
    int8 = calibrator.plan.int8_names
    expected = {}
    for name, tensor in floats.items():
        linear = name.removesuffix(".weight")
        if linear == name or linear not in int8:
            expected[name] = (model_dtype, tuple(tensor.shape))
            continue
        o = len(tensor)
        deq = torch.float32 if model_dtype == torch.bfloat16 else torch.int64
        for part, kind, shape in [
            ("weight", torch.int8, tuple(tensor.shape)),
            ("weight_scale", torch.float32, (o, 1)),
            ("weight_offset", torch.float32, (o, 1)),
            ("input_scale", torch.float32, (1,)),
            ("input_offset", torch.float32, (1,)),
            ("deq_scale", deq, (o,)),
            ("quant_bias", torch.int32, (o,)),
        ]:
            expected[f"{linear}.{part}"] = (kind, shape)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == expected
    description = json.loads((out / "quant_model_description.json").read_text())
    assert (description.pop("version"), description.pop("model_quant_type")) == ("1.0.0", "W8A8")
    head = "language_model.lm_head.weight" if family == "llava" else "lm_head.weight"
    assert set(description) == set(tensors) | {head}
    for name, kind in description.items():
        linear, _, part = name.rpartition(".")
        assert kind == ("W8A8" if linear in int8 and part != "bias" else "FLOAT"), name


def test_deq_scale_holds_the_product_of_the_scales(made):
    for dtype in ("bfloat16", "float16"):
        _, out, calibrator = made("qwen2_vl", dtype)
        tensors = loaded(out)
        for linear in calibrator.plan.int8_names:
            stored = tensors[f"{linear}.deq_scale"]
            if dtype == "float16":
                assert (stored >= 0).all() and (stored < 2**31).all()
                stored = stored.to(torch.int32).view(torch.float32)
            product = tensors[f"{linear}.input_scale"] * tensors[f"{linear}.weight_scale"].flatten()
            assert torch.equal(stored, product)
            assert torch.equal(
                tensors[f"{linear}.input_scale"], tensors[f"{linear}.input_scale"].to(getattr(torch, dtype)).float()
            )
            assert not tensors[f"{linear}.weight_offset"].any()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_linears_that_read_one_tensor_share_its_scale(made, family):
    _, out, calibrator = made(family)
    tensors = loaded(out)
    language = calibrator.family.towers[1]
    for index in range(2):
        for group in language.groups[0::2][:2]:
            scales = {
                (
                    tensors[f"{language.block(index)}{name}.input_scale"].item(),
                    tensors[f"{language.block(index)}{name}.input_offset"].item(),
                )
                for name in group.linears
            }
            assert len(group.linears) > 1 and len(scales) == 1


def test_read_gives_what_was_written(made, tmp_path):
    for dtype in ("bfloat16", "float16"):
        _, out, calibrator = made("qwen2_vl", dtype)
        export = reader.read(out)
        assert set(export.linear_names) == calibrator.plan.int8_names and export.dtype == getattr(torch, dtype)
        tensors = loaded(out)
        for name in export.linear_names:
            written = export.linear(name).tensors()
            assert written.keys() == {key for key in tensors if key.rpartition(".")[0] == name}
            for key, tensor in written.items():
                assert tensor.dtype == tensors[key].dtype and torch.equal(tensor, tensors[key]), key
        for name in export.tensors:
            assert torch.equal(export.load(name), tensors[name])


@pytest.mark.parametrize("family,vision", [("qwen2_vl", "int8"), ("qwen2_vl", "float"), ("llava", "float")])
def test_config_is_the_sources_with_keys_edited(made, family, vision):
    source, out, _ = made(family, vision=vision)
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, out))
    assert (
        after["quantize"] == "w8a8"
        and after["torch_dtype"] == ("float16" if family == "llava" else "bfloat16")
        and after["vocab_size"]
    )
    assert after["vision_config"].get("quantize") == ("w8a8" if vision == "int8" else None)
    assert "quantization_config" not in after and None not in after.values()
    if "torch_dtype" in before.get("text_config", {}):  # where MindIE looks for the dtype of nested ones
        assert after["text_config"].pop("torch_dtype") == after["torch_dtype"]
        before["text_config"].pop("torch_dtype")
    edited = {"quantize", "torch_dtype", "vocab_size", "vision_config"}
    assert {key: value for key, value in before.items() if key not in edited} == {
        key: value for key, value in after.items() if key not in edited
    }
    assert before["vision_config"] == {key: value for key, value in after["vision_config"].items() if key != "quantize"}
    assert list(before) == [key for key in after if key in before]


def nested_by_transformers_5(config: dict) -> dict:
    """config.json as transformers 5.23 saves a Qwen2-VL: the language model's keys in text_config, rope in
    rope_parameters.
    """
    outer = {
        "architectures",
        "model_type",
        "vision_config",
        "tie_word_embeddings",
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    }
    text = {
        key: value for key, value in config.items() if key not in outer | {"rope_theta", "rope_scaling", "torch_dtype"}
    }
    rope = {
        "rope_type": "default",
        "type": "mrope",
        "rope_theta": config["rope_theta"],
        "mrope_section": config["rope_scaling"]["mrope_section"],
    }
    text |= {"model_type": "qwen2_vl_text", "dtype": config["torch_dtype"], "rope_parameters": rope}
    return {key: config[key] for key in config if key in outer} | {"dtype": config["torch_dtype"], "text_config": text}


def test_config_saved_by_a_newer_transformers_becomes_flat(made):
    source, _, _ = made("qwen2_vl")
    original = json.loads((source / "config.json").read_text())
    nested = nested_by_transformers_5(original)
    assert "hidden_size" not in nested and "rope_theta" not in nested
    flat = config_json.edit(nested, flat=True, dtype=torch.bfloat16, vision_int8=True, vocab_size=7)
    for key in original.keys() - {"rope_scaling", "torch_dtype", "vision_config"}:
        assert flat[key] == original[key], key
    assert flat["rope_scaling"]["mrope_section"] == original["rope_scaling"]["mrope_section"]
    assert "text_config" not in flat and "rope_parameters" not in flat and flat["torch_dtype"] == "bfloat16"


SECTIONS = {"mrope_section": [8, 12, 12]}
ROPES = {  # rope_parameters but for rope_theta, as transformers 5 writes it -> rope_scaling, as servers read it
    "plain": ({"rope_type": "default", "type": "mrope", **SECTIONS}, {"type": "mrope", **SECTIONS}),
    "plain with one name": ({"rope_type": "default", **SECTIONS}, {"type": "mrope", **SECTIONS}),
    "none": ({"rope_type": "default"}, None),
} | {
    kind: ({"rope_type": kind, **factors, **SECTIONS}, {"type": kind, "rope_type": kind, **factors, **SECTIONS})
    for kind, factors in {
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 32.0},
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 2.0},
        "longrope": {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0], "original_max_position_embeddings": 4096},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }.items()
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "nested"])
def test_rope_settings_keep_every_key(made, kind, flat):
    """YaRN taken for plain positions is another model, and no server would say so."""
    rope, scaling = ROPES[kind]
    if scaling and scaling["type"] == "mrope" and not flat:
        scaling = {"rope_type": "default", **SECTIONS}  # as the hub's nested files have it
    nested = nested_by_transformers_5(json.loads((made("qwen2_vl")[0] / "config.json").read_text()))
    nested["text_config"]["rope_parameters"] = {**rope, "rope_theta": 5e5}
    edited = config_json.edit(nested, flat=flat, dtype=torch.bfloat16, vision_int8=True, vocab_size=7)
    language = edited if flat else edited["text_config"]
    assert language["rope_theta"] == 5e5 and "rope_parameters" not in language
    assert language.get("rope_scaling") == scaling


@pytest.mark.parametrize("kind", ["plain", "yarn", "linear", "dynamic"])
def test_transformers_reads_the_rope_settings_as_they_were(made, kind):
    import transformers

    def settings(config: dict) -> dict:
        text = transformers.Qwen2VLConfig(**copy.deepcopy(config)).get_text_config()
        found = getattr(text, "rope_parameters", None) or {**text.rope_scaling, "rope_theta": text.rope_theta}
        return {key: value for key, value in found.items() if key != "type"}

    nested = nested_by_transformers_5(json.loads((made("qwen2_vl")[0] / "config.json").read_text()))
    nested["text_config"]["rope_parameters"] = {**ROPES[kind][0], "rope_theta": 5e5}
    flat = config_json.edit(nested, flat=True, dtype=torch.bfloat16, vision_int8=True, vocab_size=7)
    wanted = {key: value for key, value in nested["text_config"]["rope_parameters"].items() if key != "type"}
    assert settings(flat) == wanted


def test_rope_settings_in_the_hubs_own_layout_stay_as_they_are(made):
    config = json.loads((made("qwen2_vl")[0] / "config.json").read_text())
    for scaling in ({"type": "mrope", **SECTIONS}, {"type": "yarn", "factor": 4.0, **SECTIONS}):
        config["rope_scaling"] = scaling
        edited = config_json.edit(config, flat=True, dtype=torch.bfloat16, vision_int8=True, vocab_size=7)
        assert edited["rope_scaling"] == scaling and edited["rope_theta"] == config["rope_theta"]
        both = {**config, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1.0}}
        edited = config_json.edit(both, flat=True, dtype=torch.bfloat16, vision_int8=True, vocab_size=7)
        assert edited["rope_scaling"] == scaling and edited["rope_theta"] == config["rope_theta"]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_a_checkpoint_saved_by_the_installed_transformers(made, tmp_path, family):
    """A fine-tune that its author saved with save_pretrained gives the same int8 codes as the hub's own files."""
    import shutil

    import transformers

    source, out, calibrator = made(family)
    model = getattr(transformers, calibrator.family.architecture).from_pretrained(source, dtype=torch.bfloat16)
    saved = tmp_path / "saved"
    shutil.copytree(source, saved)
    (saved / "model.safetensors").unlink()
    model.save_pretrained(saved)
    again = Calibrator(saved, calibrator.config, calibrator.samples.inputs).run(tmp_path)
    same = Calibrator(source, calibrator.config, calibrator.samples.inputs).run(tmp_path)
    for one, name in ((again, "again"), (same, "same")):
        one.save(tmp_path / name)
    a, b = loaded(tmp_path / "again"), loaded(tmp_path / "same")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_side_files_and_modes(made):
    source, out, _ = made("qwen2_vl")
    theirs = {path.name for path in source.iterdir()} - {"model.safetensors", "config.json"}
    assert theirs and "merges.txt" in theirs
    for name in theirs:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}
    assert {path.name for path in out.iterdir()} - theirs == {
        "README.md",
        "config.json",
        "quant_model_description.json",
        "quant_model_weight_w8a8.safetensors",
        "quant_recipe.json",
        "quant_run.json",
    }


def test_mindie_layout_holds_the_same_tensors(made, tmp_path):
    _, out, calibrator = made("qwen2_vl")
    calibrator.save(tmp_path / "mindie", ["mindie"])
    ours, other = loaded(out), loaded(tmp_path / "mindie")
    assert ours.keys() == other.keys() and all(torch.equal(ours[name], other[name]) for name in ours)
    assert not (tmp_path / "mindie" / "quant_model_description.json").exists()
    old = json.loads((tmp_path / "mindie" / "quant_model_description_w8a8.json").read_text())
    assert old == json.loads((out / "quant_model_description.json").read_text())
    config = json.loads((tmp_path / "mindie" / "config.json").read_text())
    assert config["quantization_config"]["anti_method"] == "m4" and config["quantization_config"]["act_method"] == 1
    assert config["quantize"] == config["vision_config"]["quantize"] == "w8a8"
    assert reader.read(tmp_path / "mindie").kind == "mindie"
    assert reader.read(out).kind == "ascendV1" and "quantization_config" not in reader.read(out).config


def test_large_exports_are_sharded_with_an_index(made, tmp_path, monkeypatch):
    source, out, calibrator = made("qwen2_vl")
    writer = ExportWriter(tmp_path / "s", calibrator.checkpoint, calibrator.plan, torch.bfloat16, 900_000)
    whole = loaded(out)
    for name in reversed(list(writer.layout)):  # any order will do
        writer.put(name, whole[name])
    writer.finish()
    files = sorted(path.name for path in (tmp_path / "s").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"quant_model_weight_w8a8-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "s" / name).stat().st_size < 950_000 for name in files)
    parts = loaded(tmp_path / "s")
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    index = json.loads((tmp_path / "s" / "quant_model_weight_w8a8.safetensors.index.json").read_text())
    assert {name: file for file in files for name in safetensors.torch.load_file(tmp_path / "s" / file)} == index[
        "weight_map"
    ]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())


def test_safetensors_golden_bytes(tmp_path):
    layout = {"b": (torch.int8, (3,)), "a": (torch.bfloat16, (1, 2)), "empty": (torch.float32, (0, 4))}
    writer = SafetensorsWriter(tmp_path / "x.safetensors", layout)
    writer.write("a", torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16))
    writer.write("empty", torch.zeros(0, 4))
    writer.write("b", torch.tensor([1, -1, 127], dtype=torch.int8))
    writer.close()
    header = (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},'
        b'"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[3,7]},"empty":{"dtype":"F32","shape":[0,4],"data_offsets":[7,7]}}'
    )
    header += b" " * (-len(header) % 8)
    assert (tmp_path / "x.safetensors").read_bytes() == len(header).to_bytes(
        8, "little"
    ) + header + b"\x01\xff\x7f" + b"\x80\x3f\x00\xc0"
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read["b"].tolist() == [1, -1, 127] and read["a"].tolist() == [[1.0, -2.0]]
    ours = {name: read_tensor(info) for name, info in read_header(tmp_path / "x.safetensors").items()}
    assert all(torch.equal(ours[name], read[name]) for name in layout)


def test_writer_refuses_what_was_not_announced(tmp_path):
    writer = SafetensorsWriter(tmp_path / "x.safetensors", {"a": (torch.int8, (3,)), "b": (torch.int8, (3,))})
    with pytest.raises(QuantError, match=r"a: torch.float32 \[3\] written where torch.int8 \[3\] was announced"):
        writer.write("a", torch.zeros(3))
    writer.write("a", torch.zeros(3, dtype=torch.int8))
    with pytest.raises(QuantError, match="a: written twice"):
        writer.write("a", torch.zeros(3, dtype=torch.int8))
    with pytest.raises(QuantError, match="1 tensors were never written, b among them"):
        writer.close()


def test_float16_overflow_is_named():
    with pytest.raises(QuantError, match=r"norm\.weight reaches 1e\+05, float16 ends at 65504; use --dtype bfloat16"):
        to_dtype("norm.weight", torch.tensor([1e5]), torch.float16)


def test_two_layouts_in_one_directory_are_refused(made, tmp_path):
    _, _, calibrator = made("qwen2_vl")
    with pytest.raises(UsageError, match="one is needed, or every tensor would be there twice"):
        calibrator.save(tmp_path / "x", ["ascendV1", "mindie"])


def test_pieces_and_rows_are_the_tensor(tmp_path):
    from quant.files.safetensors_io import read_header, read_pieces, read_rows, read_tensor

    tensor = torch.randn(7, 5).bfloat16()
    writer = SafetensorsWriter(
        tmp_path / "x.safetensors", {"a": (torch.bfloat16, (7, 5)), "none": (torch.bfloat16, (0, 5))}
    )
    writer.write_pieces("a", iter(tensor.reshape(-1).split(4)))
    writer.write("none", torch.zeros(0, 5).bfloat16())
    writer.close()
    infos = read_header(tmp_path / "x.safetensors")
    assert torch.equal(read_tensor(infos["a"]), tensor)
    pieces = list(read_pieces(infos["a"], numbers=8))
    assert [len(piece) for piece in pieces] == [8, 8, 8, 8, 3] and torch.equal(torch.cat(pieces), tensor.reshape(-1))
    rows = torch.tensor([6, 0, 3, 99, -1])
    assert torch.equal(read_rows(infos["a"], rows)[[6, 0, 3]], tensor[[6, 0, 3]])
    assert not list(read_pieces(infos["none"]))


def test_pieces_that_do_not_make_the_tensor_are_refused(tmp_path):
    writer = SafetensorsWriter(tmp_path / "x.safetensors", {"a": (torch.int8, (8,))})
    with pytest.raises(QuantError, match="a: 6 bytes written where 8 were announced"):
        writer.write_pieces("a", [torch.zeros(6, dtype=torch.int8)])
    with pytest.raises(QuantError, match="a: torch.int16 written where torch.int8 was announced"):
        writer.write_pieces("a", [torch.zeros(4, dtype=torch.int16)])
