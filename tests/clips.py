"""Small videos for tests: moving squares on a gradient, so that no two frames are alike; as a file, a GIF, a folder."""

from pathlib import Path

import av
import numpy as np
from PIL import Image


def pictures(count: int, width: int = 96, height: int = 64, seed: int = 0) -> list[np.ndarray]:
    """uint8 [height, width, 3] of each frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)
    found = []
    for number in range(count):
        frame = ground.copy()
        left, top = number * 7 % (width - 16), number * 5 % (height - 16)
        frame[top : top + 16, left : left + 16] = rng.integers(0, 255, 3)
        found.append(frame)
    return found


def make_file(path: Path, frames: list[np.ndarray], rate: int = 10, codec: str = "mpeg4") -> Path:
    """A file of FFmpeg's own encoders, by the path's suffix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def make_gif(path: Path, frames: list[np.ndarray], rate: int = 10) -> Path:
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // rate, loop=0)
    return path


def make_folder(path: Path, frames: list[np.ndarray]) -> Path:
    path.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{number:03d}.png")
    return path
