"""families/anyres.py against transformers: resolutions, tiles, features; several images in one prompt."""

import itertools
import json

import pytest
import tiny
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from quant.base.errors import QuantError
from quant.families import FAMILIES, anyres
from quant.families.llava_next import SIDES as NEXT
from quant.families.llava_onevision import SIDES as ONEVISION
from quant.inputs.encoder import Encoder

LINE = ("llava_onevision", "llava_next", "llava_next_video")


@pytest.mark.parametrize("among", [NEXT, ONEVISION], ids=["next", "onevision"])
def test_the_resolution_is_the_one_that_transformers_chooses(among):
    sides = (1, 37, 336, 384, 385, 500, 768, 1003, 2304, 5000)
    for height, width in itertools.product(sides, sides):
        assert anyres.chosen(height, width, among) == select_best_resolution((height, width), [list(s) for s in among])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return {family: Encoder(tiny.make(tmp_path_factory.mktemp(family) / "src", family)) for family in LINE}


@pytest.mark.parametrize("family", LINE)
def test_no_image_has_more_features_than_said(encoders, family):
    """Counted as transformers counts, without pixels: of thousands of sizes, and for the tokens in the tower."""
    encoder = encoders[family]
    config = json.loads((encoder.directory / "config.json").read_text())
    processor, side = encoder._processor._processor, config["vision_config"]["image_size"]
    most, sides = encoder.family.processing.most_features(config), range(10, 400, 7)
    counted = [processor._get_number_of_features(*size, side, side) for size in itertools.product(sides, sides)]
    counted = [count - (processor.vision_feature_select_strategy == "default") for count in counted]  # class token
    assert 0.8 * most <= max(counted) <= most
    inputs = encoder(Image.new("RGB", (150, 90)), "What is this?")
    tiles, (patches, extra) = inputs["pixel_values"].shape[1], (16, int(family != "llava_onevision"))
    assert encoder.family.tower("vision").tokens(config, inputs) == tiles * (patches + extra) > 2 * patches


def test_several_images_are_one_tile_each_in_onevision_and_cut_in_next(encoders):
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((96, 64), (64, 128), (56, 56))]
    onevision, following = (encoders[family](pictures, "Which?") for family in LINE[:2])
    assert onevision["pixel_values"].shape == (3, 1, 3, 56, 56) and onevision["batch_num_images"].tolist() == [3]
    count = [
        (inputs["input_ids"] == encoders[family].image_token_id).sum()
        for inputs, family in zip((onevision, following), LINE)
    ]
    assert count[0] == 3 * (16 + 1)  # and image_newline
    assert following["pixel_values"].shape[:2] == (3, 5) and count[1] > 3 * 2 * 16
    grid = json.loads((encoders["llava_next"].directory / "config.json").read_text())["image_grid_pinpoints"]
    cut = sum(image_size_to_num_patches(size, grid, 56) for size in following["image_sizes"])
    for inputs, family, tokens in ((onevision, LINE[0], 3 * 16), (following, LINE[1], cut * 17)):
        config = json.loads((encoders[family].directory / "config.json").read_text())
        assert FAMILIES[config["architectures"][0]].tower("vision").tokens(config, inputs) == tokens


@pytest.mark.parametrize(
    "grid, said",
    [
        ([[56, 56], [56]], "a list of"),
        ([[56 * 9, 56 * 9]], "82 tiles, at most 64"),
        ("56", "a list of"),
        ([], "a list of"),
    ],
)
def test_resolutions_of_a_stranger(tmp_path, grid, said):
    source = tiny.make(tmp_path / "src", "llava_onevision")
    for name in ("config.json", "preprocessor_config.json"):
        values = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps({**values, "image_grid_pinpoints": grid}))
    with pytest.raises(QuantError, match=said):
        Encoder(source)
    (source / "preprocessor_config.json").write_text(json.dumps({**values, "image_grid_pinpoints": [[56, 112]]}))
    with pytest.raises(QuantError, match="they are of different models"):
        Encoder(source)
