"""What GLM-OCR and PaddleOCR-VL have of their own, beside what tests/test_family_proofs.py asks of every family: areas
of several frames, images that are enlarged first, further names in the description, tensors that transformers does not
run.
"""

import json

import numpy as np
import pytest
import tiny
import torch
import transformers
import vllm_names
from exports import Exports, copy, edit_json, edit_tensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jobs import run_job
from PIL import Image
from safetensors.torch import load_file, save_file

from bench import hub_config, hub_files
from quant import Calibrator, QuantConfig
from quant.base.errors import QuantError
from quant.export import reader
from quant.export.formats import export
from quant.export.plan import make_plan
from quant.families import FAMILIES, family_of
from quant.families.areas import STEEPEST, resize
from quant.files.checkpoint import Checkpoint
from quant.inputs.encoder import Encoder
from quant.inputs.sizes import Measure
from quant.model.streamed import StreamedModel
from quant.servers.rules import check
from quant.servers.rules.repair import repair
from quant.verify.verify import verify

CLASSES = {"glm_ocr": "GlmOcrForConditionalGeneration", "paddleocr_vl": "PaddleOCRVLForConditionalGeneration"}
pytestmark = pytest.mark.skipif(
    not all(hasattr(transformers, name) for name in CLASSES.values()), reason="this transformers has neither model"
)
both = pytest.mark.parametrize("family", CLASSES)
DESCRIPTION = "quant_model_description.json"


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Tiny ones with the hub's own limits."""
    folder = tmp_path_factory.mktemp("sources")
    limits = {"glm_ocr": 4816896, "paddleocr_vl": 2822400}
    return {family: tiny.make(folder / family, family, max_pixels=limit) for family, limit in limits.items()}


@pytest.mark.parametrize(
    "size,ids",
    [
        ("glm_ocr", {"<|image|>": 59280, "<|video|>": 59281, "<|begin_of_image|>": 59256, "<|user|>": 59253}),
        ("paddleocr_vl", {"<|IMAGE_PLACEHOLDER|>": 100295, "<|IMAGE_START|>": 101305, "<|IMAGE_END|>": 101306}),
    ],
)
def test_the_published_sizes_tokenizer_has_the_true_ids(tmp_path, size, ids):
    hub_files.write(tmp_path, hub_config.SIZES[size])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    text = "describe this image in detail: zebra, 42 café\n东京"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


# -- images


def its_own(source):
    """The image processor that transformers makes of the checkpoint's files by itself, on Pillow and numpy."""
    said = json.loads((source / "preprocessor_config.json").read_text())
    kind = f"{said['image_processor_type']}Pil"
    module = {"glm_ocr": "glm46v", "paddleocr_vl": "paddleocr_vl"}[source.name]
    path = f"transformers.models.{module}.image_processing_pil_{module}"
    return getattr(__import__(path, fromlist=[kind]), kind).from_pretrained(source)


@both
def test_pixels_are_those_of_its_own_processor(sources, family):
    """Of several sizes, several in one prompt, one enlarged, one that is made smaller."""
    rng = np.random.default_rng(0)
    sizes = (64, 90), (300, 200), (31, 700), (9, 40), (2300, 2500)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    inputs = Encoder(sources[family])(images, "What is written?")
    wanted = its_own(sources[family])(images=images, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], wanted["pixel_values"])
    assert torch.equal(inputs["image_grid_thw"], wanted["image_grid_thw"])
    tokens = inputs["input_ids"] == Encoder(sources[family]).image_token_id
    assert tokens.sum() == wanted["image_grid_thw"].prod(-1).sum() // 4
    assert torch.equal(tokens, inputs["mm_token_type_ids"] == 1)


@both
def test_pixels_by_hand(sources, family):
    """An image that is resized to nothing else: its patches, in the order in which the model reads them."""
    picture = np.random.default_rng(1).integers(0, 256, (392, 420, 3), dtype=np.uint8)
    pixels = Encoder(sources[family])(Image.fromarray(picture), "x")["pixel_values"]
    said = json.loads((sources[family] / "preprocessor_config.json").read_text())
    scaled = (picture / 255 - said["image_mean"]) / said["image_std"]
    patches = scaled.reshape(28, 14, 30, 14, 3).transpose(0, 2, 4, 1, 3)  # row, column, channel, y, x
    if family == "glm_ocr":  # 2 x 2 neighbours together, each twice
        patches = patches.reshape(14, 2, 15, 2, 3, 14, 14).transpose(0, 2, 1, 3, 4, 5, 6)[..., None, :, :]
        patches = patches.repeat(2, axis=-3)
    assert pixels.shape[0] == 840
    assert np.abs(pixels.numpy().ravel() - patches.ravel()).max() < 1e-5


sides = st.integers(1, 4000)


@both
@settings(max_examples=300, deadline=None)
@given(height=sides, width=sides)
@example(height=27, width=28)
@example(height=5, width=900)
@example(height=900, width=5)
@example(height=3, width=3)
@example(height=4000, width=21)
def test_sizes_agree_with_transformers(family, height, width):
    processing = FAMILIES[CLASSES[family]].processing
    limits = tuple(processing.frames * limit for limit in processing.limits)
    if family == "glm_ocr":
        from transformers.models.glm46v.image_processing_pil_glm46v import smart_resize

        def asked():
            return smart_resize(2, height, width, 2, 28, *limits)
    else:
        from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import smart_resize

        def asked():
            return smart_resize(height, width, 28, *limits)

    sides = processing.at_least(height, width, 28) if min(height, width) < 28 else (height, width)
    if max(sides) > STEEPEST * min(sides):
        with pytest.raises(ValueError, match="aspect ratio"):
            asked()
        with pytest.raises(QuantError, match="over 200 times"):
            resize(*sides, 28, *processing.limits)
    else:
        assert resize(*sides, 28, *processing.limits) == asked()


@both
def test_limits_are_of_one_image(sources, family):
    """--max_pixels is an image's area, whatever the processor counts; sizes says what is then made."""
    assert Encoder(sources[family]).limits[1] == {"glm_ocr": 4816896, "paddleocr_vl": 2822400}[family]
    encoder, measure = (
        made(sources[family], max_pixels=200_000) for made in (Encoder, lambda d, **k: Measure(d, "x", **k))
    )
    grid = encoder(Image.new("RGB", (900, 700)), "x")["image_grid_thw"][0]
    made = measure(700, 900)
    assert (
        made.resized == (14 * int(grid[1]), 14 * int(grid[2]))
        and 180_000 < made.resized[0] * made.resized[1] <= 200_000
    )
    inputs, sizes = Encoder(sources[family])(Image.new("RGB", (40, 9)), "x"), Measure(sources[family], "x")(9, 40)
    assert sizes.pixel_values == tuple(inputs["pixel_values"].shape)


# -- what the checkpoint holds besides


@both
def test_a_fine_tune_without_what_is_not_run(exports, tmp_path, family):
    """As transformers saves it: it is planned, and its export is in order."""
    source = tiny.make(tmp_path / family, family)
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    known = family_of(config, source).may_hold(config)
    assert known and known.keys() <= tensors.keys()
    save_file({name: tensor for name, tensor in tensors.items() if name not in known}, source / "model.safetensors")
    checkpoint = Checkpoint(source)
    described = family_of(checkpoint.config, source)
    StreamedModel(checkpoint, described, torch.bfloat16)
    assert make_plan(checkpoint, described, QuantConfig()).int8_names
    out = copy(exports(family), tmp_path / "out")
    edit_tensors(out, lambda all_: [all_.pop(name) for name in known])
    drafter = described.tower("language").block(2)
    edit_json(
        out / DESCRIPTION,
        lambda said: [said.pop(name) for name in list(said) if name in known or name.startswith(drafter)],
    )
    assert check(out, ["vllm-ascend"]) == []


def test_a_block_that_nobody_knows_is_still_one_too_many(exports, tmp_path):
    out = copy(exports("glm_ocr"), tmp_path / "out")
    assert check(out, ["vllm-ascend"], source=exports.source("glm_ocr")) == []
    name = "model.language_model.layers.{}.input_layernorm.weight"
    edit_tensors(out, lambda all_: all_.update({name.format(3): all_[name.format(2)].clone()}))
    edit_json(out / DESCRIPTION, lambda said: said.update({name.format(3): "FLOAT"}))
    (finding,) = check(out, ["vllm-ascend"])
    assert finding.rule == "block-count" and finding.what == "has 2 blocks, the weights have 4"


@pytest.mark.parametrize("method", ["m2", "m4"])
def test_scales_pass_through_a_fused_gate_up(exports, tmp_path, method):
    """down_proj static int8, too: its scales are in the up half of gate_up_proj, and verify finds no damage."""
    config = QuantConfig(anti_method=method, calib_text="none", dev_type="cpu", disable_names_only=("lm_head",))
    source, images = exports.source("glm_ocr"), str(exports.images)
    out = run_job(Calibrator(source, config, images, quiet=True), tmp_path / "out")
    read = reader.read(out)
    block = "model.language_model.layers.0.mlp."
    assert read.words[f"{block}down_proj"] == read.words[f"{block}gate_up_proj"] == "W8A8"
    before, linear = Checkpoint(source), read.linear(f"{block}gate_up_proj")
    norm = "model.language_model.layers.0.post_attention_layernorm.weight"
    columns = before.load(norm).float() / read.load(norm).float()
    wanted = before.load(f"{block}gate_up_proj.weight").float() * columns
    stored = linear.weight.float() * linear.weight_scale.float()
    gate, up = ((stored * wanted).sum(1) / wanted.square().sum(1)).chunk(2)  # what each row was multiplied by
    assert (gate - 1).abs().max() < 0.02 < up.log().std()
    report = verify(out, source, QuantConfig(dev_type="cpu", num_samples=1), images, tokens=0, thresholds={"kl": 0.05})
    assert report["findings"] == [] and report["passed"], report["verdict"]


# -- further names in the description


@both
def test_further_names(exports, tmp_path, family):
    """Each has the type of its linear, is no linear of its own, and is asked for: without it vLLM-Ascend finds no key,
    with another type it builds the layer for that.
    """
    out = exports(family)
    config, said = (json.loads((out / file).read_text()) for file in ("config.json", DESCRIPTION))
    read, described = reader.read(out), family_of(config, out)
    linears = [name.removesuffix(".weight") for name in read.tensors if name.endswith(".weight")]
    missing = described.aliases(linears)
    assert missing and all(said[f"{alias}.weight"] == said[f"{linear}.weight"] for alias, linear in missing.items())
    assert not missing.keys() & read.words.keys()
    vllm_names.assert_found(out)
    for alias, linear in list(missing.items())[:: max(1, len(missing) // 3)]:
        if linear.startswith("model.language_model.layers.2."):
            continue  # the drafter's, which the model itself does not build
        lost, other = copy(out, tmp_path / f"lost-{alias}"), copy(out, tmp_path / f"other-{alias}")
        edit_json(lost / DESCRIPTION, lambda x, alias=alias: x.pop(f"{alias}.weight"))
        edit_json(other / DESCRIPTION, lambda x, alias=alias: x.update({f"{alias}.weight": "W8A8_DYNAMIC"}))
        with pytest.raises(KeyError):
            vllm_names.assert_found(lost)
        for broken in (lost, other):
            (finding,) = check(broken, ["vllm-ascend"])
            assert finding.rule == "description-alias" and finding.where == f"{DESCRIPTION}: {alias}.weight"
        repair(lost, tmp_path / f"fixed-{alias}")
        assert json.loads((tmp_path / f"fixed-{alias}" / DESCRIPTION).read_text()) == said


@both
@pytest.mark.parametrize("act,word", [("dynamic", "W8A8_DYNAMIC"), ("mix", "W8A8_MIX")])
def test_further_names_follow_into_another_format(exports, tmp_path, family, act, word):
    out = export(exports(family), tmp_path / act, "ascendV1", act)
    said = json.loads((out / DESCRIPTION).read_text())
    assert set(vllm_names.assert_found(out).values()) == {"FLOAT", word}
    assert {kind for name, kind in said.items() if name.endswith(".weight")} == {"FLOAT", word}
