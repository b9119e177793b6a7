"""A tiny Qwen3-VL with taps in the middle and at the end, a vision tower that runs twice for image and video, several
images. Its checkpoint is what transformers saves; its inputs are made by hand, since what is tested is the model's
forward, not a processor.
"""

from pathlib import Path

import torch
import transformers

from quant.families.qwen3vl import QWEN3_VL as QWEN3_VL

IMAGE, VIDEO, START, WIDTH = 90, 91, 92, 64


def make(directory: Path, dtype: torch.dtype, seed: int = 0) -> Path:
    """A checkpoint of 5 vision and 4 language blocks; taps behind vision blocks 1, 2 and 4, the last."""
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": 100, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False,
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
        vision_config={
            "depth": 5, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": WIDTH,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [1, 2, 4], "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=93,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.inference_mode(False):
        model = transformers.Qwen3VLForConditionalGeneration(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() > 1 else 0.1)
        model.to(dtype).save_pretrained(directory)
    return directory


def sample(images: list[tuple[int, int, int]], video: tuple[int, int, int] | None = None, seed: int = 0) -> dict:
    """The model's inputs for images and a video of these grids (time, height, width in patches), with text between."""
    generator = torch.Generator().manual_seed(seed)
    ids, inputs = [1, 2, 10 + seed], {}
    for grid in images:
        ids += [START, *[IMAGE] * (grid[1] * grid[2] // 4), 93, 4, 5]
    for _ in range(video[0]) if video else ():  # a video's frames stand apart, each after a time stamp
        ids += [6, START, *[VIDEO] * (video[1] * video[2] // 4), 93]
    ids += [7, 8, 9]
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    kinds = {IMAGE: 1, VIDEO: 2}
    if int(transformers.__version__.split(".")[0]) >= 5:
        inputs["mm_token_type_ids"] = torch.tensor([[kinds.get(token, 0) for token in ids]])
    if images:
        inputs["image_grid_thw"] = torch.tensor(images)
        inputs["pixel_values"] = torch.randn(sum(t * h * w for t, h, w in images), 1536, generator=generator)
    if video:
        inputs["video_grid_thw"] = torch.tensor([video])
        inputs["pixel_values_videos"] = torch.randn(video[0] * video[1] * video[2], 1536, generator=generator)
    return inputs
