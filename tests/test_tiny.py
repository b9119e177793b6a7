"""tests/tiny.py held against transformers: its checkpoints load without a missing or unexpected key, and run."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tiny import make, make_images
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

V4 = transformers.__version__.startswith("4.")
PIL_BACKEND = {"use_fast": False} if V4 else {"backend": "pil"}

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "llava", "qwen3_vl")  # the others are in tests/test_family_proofs.py


def load(directory, **arguments):
    model, info = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True, **arguments)
    return model.eval(), info


def weights(directory):
    return dict(item for file in sorted(directory.glob("*.safetensors")) for item in load_file(file).items())


def digest(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


def encode(directory, image):
    """The inputs of a forward, by transformers' image processor and tokenizer: one image, then a question."""
    config = json.loads((directory / "config.json").read_text())
    pixels = AutoImageProcessor.from_pretrained(directory, **PIL_BACKEND)(images=[image], return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if config["model_type"] == "llava":
        count = (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2
        text, token = f"USER: {'<image>' * count}\nwhat is this ASSISTANT:", config["image_token_index"]
    else:
        count = int(pixels["image_grid_thw"].prod()) // 4
        text = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>what is this<|im_end|>"
        token = config["image_token_id"]
    ids = tokenizer(text, return_tensors="pt")
    assert int((ids["input_ids"] == token).sum()) == count
    if not V4 and config["model_type"] != "llava":  # 5.x derives the positions of image tokens from this
        ids["mm_token_type_ids"] = (ids["input_ids"] == token).int()
    return {**pixels, **ids}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_transformers_loads_every_key_and_runs(tmp_path, family, dtype):
    source = make(tmp_path / "src", family, dtype=dtype)
    assert {tensor.dtype for tensor in weights(source).values()} == {getattr(torch, dtype)}
    model, info = load(source, dtype="auto")
    assert not any(info.values()), info
    assert model.dtype == getattr(torch, dtype)
    image = Image.open(make_images(tmp_path / "images", 1) / "image00.png")
    with torch.no_grad():
        logits = model(**encode(source, image)).logits.float()
    assert torch.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


@pytest.mark.parametrize("family", FAMILIES)
def test_image_reaches_the_logits(tmp_path, family):
    """Two pictures give different answers: vision tower and projector are connected, not drowned or saturated."""
    source = make(tmp_path / "src", family, dtype="float32")
    model, _ = load(source)
    first, second = (Image.new("RGB", (90, 90), colour) for colour in ("red", "white"))
    with torch.no_grad():
        a, b = (model(**encode(source, image)).logits[0, -1] for image in (first, second))
    assert (a - b).norm() / a.norm() > 0.01


def test_qwen2_5_vl_attends_in_windows_and_in_full(tmp_path):
    """Its blocks see different segments of one image, which is what block-by-block replay has to get right."""
    source = make(tmp_path / "src", "qwen2_5_vl")
    model, _ = load(source)
    seen = []
    for block in model.model.visual.blocks:
        block.register_forward_pre_hook(lambda _, a, kw: seen.append(kw["cu_seqlens"].tolist()), with_kwargs=True)
    with torch.no_grad():
        model(**encode(source, Image.open(make_images(tmp_path / "images", 1) / "image00.png")))
    windows, full, again = seen
    assert len(full) == 2 and len(windows) > 3 and windows == again


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_tied_head_is_left_out_and_filled_by_transformers(tmp_path, family):
    source = make(tmp_path / "src", family, tied=True)
    assert "lm_head.weight" not in weights(source)
    model, info = load(source)
    assert not any(info.values()), info
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    "changes", [{"blocks": (1, 1)}, {"blocks": (4, 3)}, {"kv_heads": 2}, {"kv_heads": 1}, {"outliers": False}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_variants_load(tmp_path, family, changes):
    _, info = load(make(tmp_path / "src", family, **changes))
    assert not any(info.values()), info


@pytest.mark.parametrize("family", FAMILIES)
def test_same_arguments_same_bytes_and_seed_matters(tmp_path, family):
    one, two, other = (make(tmp_path / name, family, seed=seed) for name, seed in [("a", 3), ("b", 3), ("c", 4)])
    assert digest(one) == digest(two)
    one, other = weights(one), weights(other)
    assert not [name for name in one if torch.equal(one[name], other[name])]


def test_dtypes_hold_the_same_values_rounded(tmp_path):
    exact, half, brain = (
        weights(make(tmp_path / dtype, "qwen2_vl", dtype=dtype)) for dtype in ("float32", "float16", "bfloat16")
    )
    assert all(torch.equal(exact[name].half(), half[name]) for name in exact)
    assert all(torch.equal(exact[name].bfloat16(), brain[name]) for name in exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_hold_the_same_tensors(tmp_path, family):
    single = weights(make(tmp_path / "single", family))
    source = make(tmp_path / "sharded", family, shards=3)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(file.name for file in source.glob("*.safetensors")) == names
    index = json.loads((source / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {tensor: name for name in names for tensor in load_file(source / name)}
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in single.values())
    sharded = weights(source)
    assert sharded.keys() == single.keys()
    assert all(torch.equal(single[name], sharded[name]) for name in single)
    assert not any(load(source)[1].values())


def test_too_many_shards_are_refused(tmp_path):
    with pytest.raises(ValueError, match="58 tensors do not fill 1000 files"):
        make(tmp_path / "src", "qwen2_vl", shards=1000)


@pytest.mark.parametrize("family", FAMILIES)
def test_outlier_channels(tmp_path, family):
    """Three channels 10 to 40 times above the rest, the same ones in every norm of a tower's blocks, on request."""
    with_, without = (weights(make(tmp_path / str(o), family, dtype="float32", outliers=o)) for o in (True, False))
    norms = [name for name in with_ if "norm" in name and with_[name].abs().max() > 5]
    assert len([name for name in norms if ".layers." in name or ".blocks." in name]) >= 8
    places = {}
    for name in norms:
        ratio = with_[name] / without[name]
        large = ratio.sub(1).abs().gt(1e-3).nonzero().flatten()
        assert len(large) == 3 and 9.9 < ratio[large].min() < ratio[large].max() < 40.1
        places.setdefault(len(ratio), []).append(large.tolist())
    assert all(first == second for found in places.values() for first, second in itertools.pairwise(found))
    changed = {name for name in with_ if not torch.equal(with_[name], without[name])}
    assert set(norms) <= changed and all("norm" in name or "ln_q" in name for name in changed)


def test_old_llava_lacks_the_processor_keys(tmp_path):
    new, old = (
        json.loads((make(tmp_path / str(flag), "llava", old_llava=flag) / "processor_config.json").read_text())
        for flag in (False, True)
    )
    assert set(new) - set(old) == {
        "image_token",
        "num_additional_image_tokens",
        "patch_size",
        "vision_feature_select_strategy",
    }
    assert old == {"processor_class": "LlavaProcessor"}


TEXT = "describe this image in detail: zebra, 42 café\n东京"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_round_trip_and_special_ids(tmp_path, family):
    source = make(tmp_path / "src", family)
    config = json.loads((source / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    assert len(ids) < len(TEXT.encode()) - 10  # the merges work
    if family == "llava":
        expected = {"<s>": 1, "</s>": 2, "<image>": config["image_token_index"], "<pad>": config["pad_token_id"]}
        assert ids[0] == 1
    elif family == "internvl":
        text = config["text_config"]
        expected = {"<|im_end|>": text["eos_token_id"], "<IMG_CONTEXT>": config["image_token_id"]}
    else:
        config = {**config.get("text_config", {}), **config}
        names = {
            "<|im_end|>": "eos",
            "<|vision_start|>": "vision_start",
            "<|vision_end|>": "vision_end",
            "<|image_pad|>": "image",
            "<|video_pad|>": "video",
            "<|endoftext|>": "bos",
        }
        expected = {token: config[f"{key}_token_id"] for token, key in names.items()}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in expected} == expected
    assert all(tokenizer(token, add_special_tokens=False)["input_ids"] == [i] for token, i in expected.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_template(tmp_path, family):
    source = make(tmp_path / "src", family)
    template = json.loads((source / "chat_template.json").read_text())["chat_template"]
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this"}]}]
    tokenizer = AutoTokenizer.from_pretrained(source)
    prompt = tokenizer.apply_chat_template(question, chat_template=template, tokenize=False, add_generation_prompt=True)
    if family == "llava":
        assert prompt == "USER: <image>\nwhat is this ASSISTANT:"
    else:
        assert tokenizer.chat_template == template
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if family.startswith("qwen2") else ""
        image = "<IMG_CONTEXT>\n" if family == "internvl" else "<|vision_start|><|image_pad|><|vision_end|>"
        asked = f"<|im_start|>user\n{image}what is this<|im_end|>\n"
        assert prompt == f"{system}{asked}<|im_start|>assistant\n"


def test_images_are_small_readable_and_reproducible(tmp_path):
    one, two, other = (make_images(tmp_path / n, 4, seed) for n, seed in [("a", 0), ("b", 0), ("c", 1)])
    assert digest(one) == digest(two) and not set(digest(one).values()) & set(digest(other).values())
    assert [file.name for file in sorted(one.iterdir())] == ["image00.png", "image01.jpg", "image02.png", "image03.jpg"]
    for file in one.iterdir():
        with Image.open(file) as image:
            assert image.mode == "RGB" and 64 <= min(image.size) <= max(image.size) <= 160
            assert np.asarray(image).std() > 5
