"""Tiny checkpoints in the hub's layout, and small pictures, for tests: what a user downloads, in a tenth of a second.

    make(tmp_path / "src", "qwen2_vl", shards=3)      -> tmp_path / "src"
    make_images(tmp_path / "images", 4)               -> tmp_path / "images"

Two language blocks of width 256 and, by family: Qwen2-VL a ViT of two blocks with heads of 80 channels; Qwen2.5-VL one
of three, the second with full and the others with window attention; LLaVA a CLIP of three, the last without effect.
Names, config.json, tokenizer and image processor are the hub's, as bench/make_checkpoint.py writes them for full sizes.
"""

import copy
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import make_checkpoint  # noqa: E402
from bench.hub_config import SIZES, cut  # noqa: E402
from quant import families as described  # noqa: E402

FAMILIES = {
    "qwen2_vl": "qwen2vl-tiny",
    "qwen2_5_vl": "qwen2_5vl-tiny",
    "llava": "llava-tiny",
    "qwen3_vl": "qwen3vl-tiny",
    "internvl": "internvl-tiny",
    "qwen3_vl_moe": "qwen3vl_moe-tiny",
    "qwen3_5": "qwen3_5-tiny",
    "qwen3_5_moe": "qwen3_5_moe-tiny",
    "llava_onevision": "llava_onevision-tiny",
    "llava_next": "llava_next-tiny",
    "llava_next_video": "llava_next_video-tiny",
    "llava_video": "llava_video-tiny",
    "glm_ocr": "glm_ocr-tiny",
    "paddleocr_vl": "paddleocr_vl-tiny",
    "molmo": "molmo-tiny",
}


def family(name: str):
    """The description of one of FAMILIES."""
    return described.FAMILIES[SIZES[FAMILIES[name]].config["architectures"][0]]


def known() -> list[str]:
    """Those of FAMILIES whose class the installed transformers has."""
    import transformers

    families = {name: family(name) for name in FAMILIES}
    return [name for name, family in families.items() if hasattr(transformers, family.built_as)]


def make(
    directory: Path,
    family: str,
    *,
    dtype: str = "bfloat16",
    shards: int = 1,
    seed: int = 0,
    outliers: bool = True,
    tied: bool = False,
    old_llava: bool = False,
    blocks: tuple[int, int] | None = None,
    kv_heads: int | None = None,
    max_pixels: int | None = None,
) -> Path:
    """Writes a checkpoint into `directory` and returns it. The same arguments give the same bytes.

    family: a key of FAMILIES. dtype: float32, float16 or bfloat16, for tensors and config alike; the values of one are
    those of another, rounded. shards: number of weight files, with an index from 2 on. outliers: outlier channels in
    the norms of blocks. tied: no lm_head.weight (Qwen only). old_llava: processor_config.json without the keys that
    LLaVA's processor needs. blocks: (vision, language). kv_heads: 1 or 2 for 2 query heads, default 1 for Qwen, 2 for
    LLaVA. max_pixels: of Qwen's processor, default 112 x 112, which is 16 image tokens.
    """
    size = SIZES[FAMILIES[family]]
    config = cut(size.config, *blocks) if blocks else copy.deepcopy(size.config)
    text = config.get("text_config", config)
    if "dtype" in text:
        text["dtype"] = dtype
    else:
        config["torch_dtype"] = text["torch_dtype"] = dtype
    config["tie_word_embeddings"] = tied
    if "tie_word_embeddings" in text:
        text["tie_word_embeddings"] = tied
    if kv_heads:
        text["num_key_value_heads"] = kv_heads
    size = size._replace(config=config, max_pixels=max_pixels or size.max_pixels)
    make_checkpoint.make(directory, size, shards=shards, seed=seed, outliers=outliers, old_llava=old_llava)
    return directory


def make_images(directory: Path, count: int, seed: int = 0) -> Path:
    """Writes `count` pictures, PNG and JPEG in turn, of 64 to 160 pixels a side: colour gradients, a disc and grain."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        height, width = rng.integers(64, 161, 2)
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        slope_x, slope_y, offset, disc = rng.uniform(-120, 120, (4, 3))
        picture = 128 + offset + slope_x * (x[..., None] - 0.5) + slope_y * (y[..., None] - 0.5)
        centre_x, centre_y = rng.uniform(0.2, 0.8, 2)
        picture += disc * ((x - centre_x) ** 2 + (y - centre_y) ** 2 < 0.05)[..., None]
        picture += rng.normal(0, 8, picture.shape)
        name = f"image{number:02d}.{'png' if number % 2 == 0 else 'jpg'}"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(directory / name)
    return directory
