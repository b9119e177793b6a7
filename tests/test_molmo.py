"""Molmo-7B-D: its crops against cases worked by hand, its class as the checkpoint's own code, what it writes, and its
features against the whole model's. What every family must show is in test_family_proofs.py.
"""

import json

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image

from bench import hub_config
from quant import Calibrator, QuantConfig
from quant.base.errors import QuantError, UsageError
from quant.base.own_code import own_class
from quant.commands.cli import main
from quant.compare.compare import compare
from quant.compare.features import Dump, Writer
from quant.evaluate.local_model import LocalModel
from quant.families.molmo import LANGUAGE, MOLMO, VISION
from quant.files.checkpoint import Checkpoint
from quant.inputs.crops import Crops, choose_tiling
from quant.inputs.encoder import Encoder, follow
from quant.model.streamed import StreamedModel
from quant.verify import runtime
from quant.verify.generation import greedy

SMALL = {"base_image_input_size": [112, 112], "overlap_margins": [2, 2], "max_crops": 4}
"""8 x 8 patches a crop, of which 4 x 4 are its own: 4 x 4 features, of which neighbours share one row or column."""
START, END, PATCH, COLUMN, TEXT = 101, 102, 103, 104, [7, 103, 8, 9]


class Tokenizer:
    """As much of one as Crops asks for."""

    unk_token_id = None

    def convert_tokens_to_ids(self, token):
        return {"<im_start>": START, "<im_end>": END, "<im_patch>": PATCH, "<im_col>": COLUMN}.get(token)

    def __call__(self, text, add_special_tokens):
        return {"input_ids": list(TEXT)}


def crops(tmp_path, **settings) -> Crops:
    return Crops(tmp_path / "preprocessor_config.json", {**SMALL, **settings}, Tokenizer())


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("molmo") / "src", "molmo", dtype="float32")


# ---- crops


@pytest.mark.parametrize(
    "size,tiling",
    [
        ((336, 336), (1, 1)),  # 224 x 224 between the margins: one window as it is
        ((336, 560), (1, 2)),
        ((480, 640), (2, 3)),  # 368 x 528: two windows high (x 1.22) and three wide (x 1.27); (2, 4) gains nothing
        ((340, 340), (2, 2)),  # a little over one window: rather twice as large than shrunk
        ((3000, 3000), (3, 3)),  # too large for twelve: 2888 pixels to 672; (3, 4) shrinks the height as much
        ((200, 3000), (1, 12)),
        ((50, 60), (1, 1)),  # smaller than the margins
        ((112, 400), (1, 2)),  # nothing between the margins one way, 288 pixels the other
    ],
)
def test_tilings_worked_by_hand(size, tiling):
    assert choose_tiling(size[0] - 112, size[1] - 112, 224, 12) == tiling


def test_tokens_and_places_of_two_crops(tmp_path):
    """112 x 168 pixels: one row of two crops, 4 x 6 features behind the whole image's 4 x 4."""
    inputs = crops(tmp_path)(["x"], [Image.fromarray(noise(112, 168))])
    whole, tiled = [START, *[*[PATCH] * 4, COLUMN] * 4, END], [START, *[*[PATCH] * 6, COLUMN] * 4, END]
    assert inputs["input_ids"].tolist() == [[7, *whole, *tiled, 8, 9]]
    assert inputs["attention_mask"].tolist() == [[1] * 55]
    assert inputs["images"].shape == (1, 3, 64, 588) and inputs["images"].dtype == torch.float32
    places = inputs["image_input_idx"][0].view(3, 4, 4).tolist()
    # Behind the 7 and <im_start>; rows are five tokens apart.
    assert places[0] == [[2, 3, 4, 5], [7, 8, 9, 10], [12, 13, 14, 15], [17, 18, 19, 20]]
    # 22 is <im_end>, 23 <im_start>, rows seven apart; the inner column is the other crop's.
    assert places[1] == [[24, 25, 26, -100], [31, 32, 33, -100], [38, 39, 40, -100], [45, 46, 47, -100]]
    assert places[2] == [[-100, 27, 28, 29], [-100, 34, 35, 36], [-100, 41, 42, 43], [-100, 48, 49, 50]]
    ids = inputs["input_ids"][0]
    used = inputs["image_input_idx"][inputs["image_input_idx"] >= 0]
    assert sorted(used.tolist()) == (ids == PATCH).nonzero().flatten().tolist(), "every place once"


def test_four_crops_share_their_corners(tmp_path):
    inputs = crops(tmp_path)(["x"], [Image.fromarray(noise(168, 168))])
    kept = (inputs["image_input_idx"][0].view(5, 4, 4) >= 0)[1:].int().tolist()
    assert kept[0] == [[1, 1, 1, 0]] * 3 + [[0] * 4] and kept[3] == [[0] * 4] + [[0, 1, 1, 1]] * 3
    assert int((inputs["input_ids"] == PATCH).sum()) == 16 + 36


def test_pixels_of_a_patch_lie_row_by_row(tmp_path):
    """An image of a crop's size is not resized: whole and only crop are the same, normalized in float32."""
    picture, mean, std = noise(112, 112), [0.5, 0.4, 0.3], [0.25, 0.5, 0.2]
    images = crops(tmp_path, image_mean=mean, image_std=std)(["x"], [Image.fromarray(picture)])["images"][0]
    assert images.shape[0] == 2 and torch.equal(images[0], images[1])
    for row, column, y, x in ((0, 0, 0, 0), (0, 1, 0, 0), (2, 5, 3, 13), (7, 7, 13, 13)):
        pixel = picture[row * 14 + y, column * 14 + x].astype(np.float32) / np.float32(255)
        expected = (pixel - np.array(mean, np.float32)) / np.array(std, np.float32)
        at = (y * 14 + x) * 3
        assert np.array_equal(images[0, row * 8 + column, at : at + 3].numpy(), expected)


@pytest.mark.parametrize(
    "width,shares",
    [(56, [0, 0, 1, 1, 1, 1, 0, 0]), (60, [0, 1 / 7, 1, 1, 1, 1, 1 / 7, 0])],  # from pixel 28 to 84, from 26 to 86
)
def test_masks_say_what_share_of_a_patch_is_image(tmp_path, width, shares):
    """The mask of the whole image, -1, stands last: the model was trained with crops that have the next one's mask."""
    inputs = crops(tmp_path)(["x"], [Image.fromarray(noise(112, width))])
    masks = inputs["image_masks"][0]
    assert masks.shape == (2, 64) and torch.equal(masks[1], -torch.ones(64))
    assert torch.allclose(masks[0].view(8, 8), torch.tensor(shares, dtype=torch.float32).expand(8, 8))
    black = inputs["images"][0, 1].view(8, 8, -1)[:, 0]
    assert not black.any(), "padding is black before it is normalized"


@pytest.mark.parametrize("height,width", [(90, 130), (300, 200), (64, 64)])
def test_the_resize_is_bilinear_and_antialiased(tmp_path, height, width):
    """Against Pillow's own, of floats: an independent implementation of the same kernel."""
    picture = noise(height, width)
    whole = crops(tmp_path)(["x"], [Image.fromarray(picture)])["images"][0, 0]
    scale = np.float32(112) / np.float32(max(height, width))
    rows, columns = int(np.float32(height) * scale), int(np.float32(width) * scale)
    channels = [Image.fromarray(channel.astype(np.float32) / 255, "F") for channel in picture.transpose(2, 0, 1)]
    other = np.stack([np.asarray(channel.resize((columns, rows), Image.BILINEAR)) for channel in channels], -1)
    canvas = whole.view(8, 8, 14, 14, 3).permute(0, 2, 1, 3, 4).reshape(112, 112, 3).numpy()
    top, left = (112 - rows) // 2, (112 - columns) // 2
    assert np.abs(canvas[top : top + rows, left : left + columns] - other).max() < 1e-4


def test_an_image_that_leaves_nothing_is_named(tmp_path):
    with pytest.raises(QuantError, match="3000x2 pixels become 11[12]x0: crop the image"):
        crops(tmp_path)(["x"], [Image.new("RGB", (2, 3000))])


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"max_crops": 0}, "max_crops is 0, a whole number from 1 to 64"),
        ({"max_crops": 10**6}, "max_crops is 1000000"),
        ({"overlap_margins": [4, 4]}, "margins of 4 and 4 patches make no squares"),
        ({"overlap_margins": [1, 2]}, "margins of 1 and 2 patches make no squares"),
        ({"overlap_margins": "4"}, "overlap_margins is '4', two numbers were expected"),
        ({"base_image_input_size": [112, 110]}, "crops of 112x110 pixels"),
        ({"base_image_input_size": [98, 98]}, "crops of 98x98 pixels"),  # seven patches
        ({"base_image_input_size": [1e9, 1]}, "base_image_input_size is 1000000000.0"),
        ({"image_patch_size": -14}, "image_patch_size is -14"),
        ({"image_token_length_w": 12}, "image_token_length_w is 12, a crop has 4 features a side"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, said):
    with pytest.raises(QuantError, match=said):
        crops(tmp_path, **settings)


def test_one_image_a_prompt(source):
    with pytest.raises(QuantError, match="2 images in one prompt: the model takes one"):
        Encoder(source)([Image.new("RGB", (64, 64))] * 2, "Which?")


def test_the_prompt_is_the_models_own(source):
    """<|endoftext|>, the image, and a blank before each speaker: no chat template of the checkpoint has an image."""
    encoder = Encoder(source)
    inputs = encoder(Image.new("RGB", (112, 112)), "What is this?")
    said = encoder.raw(inputs["input_ids"][0])
    assert said.startswith("<|endoftext|><im_start><im_patch>")
    assert said.endswith("<im_col><im_end> User: What is this? Assistant:")
    assert encoder.raw(encoder(None, "How?")["input_ids"][0]) == "<|endoftext|> User: How? Assistant:"


# ---- the checkpoint's own code


def test_its_code_is_not_run_unasked(tmp_path, capsys):
    source, mark = tiny.make(tmp_path / "src", "molmo"), tmp_path / "ran"
    file = source / "config_molmo.py"
    file.write_text(f"open({str(mark)!r}, 'w')\n{file.read_text()}")
    images = tiny.make_images(tmp_path / "images", 1)
    with pytest.raises(QuantError, match="its model is code of its own: read it, then pass --trust_remote_code True"):
        Calibrator(source, QuantConfig(dev_type="cpu", calib_text="none"), str(images), quiet=True).run()
    words = ["--model_path", str(source), "--images", str(images)]
    assert main(["dump", str(tmp_path / "dump"), *words]) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith("read it, then pass --trust_remote_code True") and "\n" not in said
    assert not mark.exists()
    assert main(["dump", str(tmp_path / "again"), *words, "--trust_remote_code", "True", "--quiet"]) == 0
    assert mark.exists()


def test_a_configuration_that_transformers_knows_lets_no_class_in(tmp_path):
    """config.json says that it is another model's; its auto_map counts only where code may be run."""
    source = tiny.make(tmp_path / "src", "molmo")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises((QuantError, UsageError), match="trust_remote_code|has no MolmoForCausalLM"):
        StreamedModel(Checkpoint(source), MOLMO, torch.float32)


def test_an_auto_map_without_the_class(source):
    config = transformers.PretrainedConfig(auto_map={"AutoModel": "modeling_molmo.Another"})
    with pytest.raises(QuantError, match="its auto_map names no MolmoForCausalLM among the files there"):
        own_class("MolmoForCausalLM", config, source)
    config = transformers.PretrainedConfig(auto_map={"AutoModel": "elsewhere/x--modeling_molmo.MolmoForCausalLM"})
    with pytest.raises(QuantError, match="names no MolmoForCausalLM among the files there"):
        own_class("MolmoForCausalLM", config, source)


@torch.inference_mode()
def test_what_it_writes_is_what_one_forward_after_the_other_says(source):
    """With keys and values kept, as without; also where a sample has text alone."""
    model, encoder = runtime.load_float(source, trust_remote_code=True)
    for inputs in (encoder(Image.fromarray(noise(120, 90)), "What is this?"), encoder(None, "How are you?")):
        step, expected = dict(inputs), []
        for _ in range(4):
            expected.append(int(model(**step, use_cache=False).logits[0, -1].argmax()))
            step = follow(step, expected[-1:])
        assert greedy(model, inputs, 4).tolist() == expected
        kept = model(**inputs, use_cache=True).past_key_values
        last = torch.ones(1, step["input_ids"].shape[1], dtype=torch.int64)[:, : inputs["input_ids"].shape[1] + 1]
        again = model(
            input_ids=torch.tensor([expected[:1]]),
            attention_mask=last,
            position_ids=last.sum(-1, keepdim=True) - 1,
            past_key_values=kept,
        )
        whole = model(**follow(inputs, expected[:1]), use_cache=False)
        assert torch.allclose(again.logits[0, -1], whole.logits[0, -1], atol=1e-4)


@torch.inference_mode()
def test_samples_of_several_crops_are_answered_one_by_one(source):
    """Their inputs make no batch: places in the text would move with the padding, and the crops are not as many."""
    model, encoder = runtime.load_float(source, trust_remote_code=True)
    samples = [encoder(Image.fromarray(noise(*size)), "What is this?") for size in ((120, 90), (90, 300))]
    local = LocalModel(source, False, max_new_tokens=2, batch_size=2, trust_remote_code=True)
    local.loaded = (model, encoder)
    expected = [greedy(model, inputs, 2).tolist() for inputs in samples]
    assert [answer.tolist() for answer in local._generate(samples)] == expected


# ---- features


def test_features_of_two_blocks():
    """Of the published 23 blocks the last has no effect; the tower's answer is that before it, and one is a tap."""
    config = hub_config.SIZES["molmo-7b"].config
    assert (VISION.blocks(config), VISION.used(config), VISION.taps(config)) == (23, 22, (14,))
    assert (LANGUAGE.mlp(config), MOLMO.vocab_size(config)) == (18944, 152064)
    assert MOLMO.processing.image_token_id(config) == 152066
    with pytest.raises(UsageError, match="vit_layers is .-2, -30., the vision tower has 23 blocks"):
        VISION.used({**config, "vit_layers": [-2, -30]})


@torch.inference_mode()
def test_features_are_the_whole_models(tmp_path, source):
    """dump, block after block, against hooks on the whole model: the same numbers, layer by layer."""
    words = ["--model_path", str(source), "--images", str(tiny.make_images(tmp_path / "images", 2))]
    words += ["--num_samples", "2", "--trust_remote_code", "True", "--quiet"]
    assert main(["dump", str(tmp_path / "ours"), *words]) == 0
    ours = Dump(tmp_path / "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=True)
    modules, caught = dict(model.eval().named_modules()), {}
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    named = [name for name in ours.features if name in modules]
    assert len([name for name in named if ".blocks." in name or ".resblocks." in name]) == 2 + 3
    assert any("image_projector" in name for name in named), "what stands outside the blocks, too"
    for name in named:

        def catch(module, args, output, name=name):
            caught[name] = (output[0] if isinstance(output, tuple) else output).numpy()

        modules[name].register_forward_hook(catch)
    writer = Writer(tmp_path / "theirs", "the whole model")
    for number, name in enumerate(ours.names):
        inputs = ours.inputs(number)
        writer.sample(name, inputs)
        model(**{key: torch.from_numpy(value) for key, value in inputs.items()}, use_cache=False)
        for feature in named:
            writer.feature(feature, caught[feature])
    writer.close()
    found = compare(ours, Dump(tmp_path / "theirs"))
    assert [row.feature for row in found.rows] == named and all(row.largest == 0 for row in found.rows)
