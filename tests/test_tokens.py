"""How many tokens a sample's images and text make: what shares of ranks, estimates and the share of int8 count with."""

import pytest
import torch

from quant.families import FAMILIES

QWEN = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
TEXT = {"input_ids": torch.arange(7)[None]}


def vision_tokens(architecture, config=None, **inputs):
    return FAMILIES[architecture].tower("vision").tokens(config or {}, {**TEXT, **inputs})


@pytest.mark.parametrize("architecture", QWEN)
def test_patches_of_several_images_and_videos_add_up(architecture):
    one, two = [1, 4, 4], [1, 8, 8]
    assert vision_tokens(architecture, image_grid_thw=torch.tensor([one])) == 16
    assert vision_tokens(architecture, image_grid_thw=torch.tensor([one, two])) == 80
    video = torch.tensor([[3, 4, 6]])  # frames, height, width
    assert vision_tokens(architecture, video_grid_thw=video) == 72
    assert vision_tokens(architecture, image_grid_thw=torch.tensor([one, two]), video_grid_thw=video) == 152
    assert vision_tokens(architecture) == 0


def test_llavas_patches_are_counted_by_the_image_tokens_in_the_text():
    config = {"image_token_index": 9, "vision_config": {"image_size": 28, "patch_size": 14}}
    for images in (0, 1, 2):
        ids = torch.tensor([[1, *[9] * (4 * images), 2]])
        assert vision_tokens("LlavaForConditionalGeneration", config, input_ids=ids) == 5 * images  # class token


@pytest.mark.parametrize("architecture", FAMILIES)
def test_text_is_counted_whatever_it_holds(architecture):
    config = {"mm_vision_tower": "google/siglip-so400m-patch14-384"}  # LLaVA-Video's, which must say it
    assert FAMILIES[architecture].tower("language").tokens(config, TEXT) == 7
