"""What a family's description says of videos, and the formulas by which frames and their sizes are chosen.

A video is sampled: of its `total` frames at `rate` a second some are taken, by number. Every family's processor has a
formula of its own for which, written here as it is published, rounding included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .areas import resize

CONTEXT, SHARE, FLOOR = 128_000, 0.9, 1.05  # qwen-vl-utils: tokens of a context, what of it a video may take, ...
FRAME_TOKENS = 768  # ... and how many tokens a frame may have (Qwen3-VL)

Sample = Callable[[int, float, float | None, int], list[int]]
"""Frames of the video, their rate per second, the rate asked for (None: a fixed number), at most how many -> which."""
FrameSize = Callable[[int, int, int, int, tuple[int, int], bool], tuple[int, int]]
"""Frames taken, height, width, the multiple that both become, (min_pixels, max_pixels), capped -> height, width."""


@dataclass(frozen=True)
class Video:
    """How a video becomes the model's inputs."""

    token: str
    """Stands for a video in the text; the processor puts features, frame numbers or times in its place."""
    token_id: Callable[[dict], int]
    """config.json -> the number of the token that stands for a feature of a video, as the model knows it."""
    chat: str
    """What {images} of Processing.chat holds for each video."""
    layout: Literal["patches", "frames"]
    """patches: `pixel_values_videos` [patches, channels * frames * side * side] of all videos and `video_grid_thw`
    [videos, 3]; frames: [videos, frames, channels, height, width].
    """
    sample: Sample
    """Which frames are taken."""
    fps: float | None
    """Frames a second, where neither the user nor the checkpoint's files say it; None: the most that may be."""
    most: int
    """Frames at most, where the checkpoint's files do not say it."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the pixels, where the checkpoint's files do not say it."""
    newline_rows: Callable[[dict], bool] = lambda config: False
    """config.json -> whether every row of a frame's features ends in image_newline, where transformers' class has one
    behind the last frame.
    """
    frame_features: Callable[[dict], int] | None = None
    """config.json -> features of a frame, where transformers' processor counts otherwise."""
    size: FrameSize | None = None
    """What a frame is resized to; None: all to the one size that the files give."""
    limits: tuple[int, int] | None = None
    """(min_pixels, max_pixels) where the files do not say it; None with the one size."""
    all_frames: bool = False
    """Whether the limits are of all frames together; else of each."""


def sample_starts(
    total: int, rate: float, fps: float | None, most: int, least: int = 4, multiple: int = 2
) -> list[int]:
    """Qwen2-VL's: an even number of frames, each the first of equal stretches."""
    wanted = total if fps is None else total / rate * fps
    largest = min(most, total) // multiple * multiple
    count = int(min(max(wanted, least), largest, total)) // multiple * multiple
    return _every(0.0, total, count) if count else list(range(min(most, total)))


def sample_ends(total: int, rate: float, fps: float | None, most: int, least: int = 4) -> list[int]:
    """Qwen3-VL's: the first frame, the last, and those evenly between."""
    import numpy as np

    count = min(max(total if fps is None else int(total / rate * fps), least), most, total)
    return np.linspace(0, total - 1, count).round().astype(int).tolist()


def sample_middles(total: int, rate: float, fps: float | None, most: int) -> list[int]:
    """InternVL's: the middle frames of equal stretches."""
    count = min(most if fps is None else max(1, int(total / rate * fps)), most, total)
    return _every(total / count / 2, total, count)


def sample_evenly(total: int, rate: float, fps: float | None, most: int) -> list[int]:
    """LLaVA's: the first frame, the last, and those evenly between, rounded down (llava's load_video: linspace)."""
    import numpy as np

    count = min(most if fps is None else max(1, int(total / rate * fps)), most, total)
    return np.linspace(0, total - 1, count, dtype=int).tolist()


def _every(first: float, total: int, count: int) -> list[int]:
    """In single precision, as torch.arange counts."""
    import numpy as np

    return np.arange(first, total, total / count).astype(np.float32).astype(int)[:count].tolist()


def size_of_each(
    frames: int, height: int, width: int, multiple: int, limits: tuple[int, int], capped: bool
) -> tuple[int, int]:
    """Qwen2-VL's: limits on a frame's area; capped: at most its share of the context."""
    low, high = limits
    if capped:
        whole = int(CONTEXT * multiple * multiple * SHARE)
        high = max(min(high, whole * 2 // frames), int(low * FLOOR))
    return resize(height, width, multiple, low, high)


def size_of_all(
    frames: int, height: int, width: int, multiple: int, limits: tuple[int, int], capped: bool
) -> tuple[int, int]:
    """Qwen3-VL's: limits on the area of all frames together; capped: a frame's share and tokens are limited, too."""
    low, high = limits
    if capped:
        high = max(min(FRAME_TOKENS * multiple * multiple, high // frames), int(low * FLOOR)) * frames
    if min(height, width) < multiple:
        grow = max(multiple / height, multiple / width)
        height, width = int(height * grow), int(width * grow)
    return resize(height, width, multiple, low, high, frames, 2 * round(frames / 2))
