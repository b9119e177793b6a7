"""What is measured on: checkpoints with random weights at true shapes, and photographs of 640 x 480.

The photographs are those of calibImages/, turned and brought to one size: COCO's are of that size, and may not be
shipped. Everything is made once and kept beside the results.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def checkpoint(directory: Path, size: str, blocks: int | None = None) -> Path:
    """bench/make_checkpoint.py's `size`, cut to `blocks` blocks in each tower, or whole."""
    target = directory / (f"{size}-{blocks}" if blocks else size)
    if not (target / "config.json").exists():  # it is written last
        cut = ["--blocks", str(blocks)] if blocks else []
        subprocess.run(
            [sys.executable, ROOT / "bench" / "make_checkpoint.py", size, target, *cut],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return target


def photographs(directory: Path, count: int) -> Path:
    """A folder of `count` photographs, 640 x 480, no two alike."""
    from PIL import Image, ImageOps

    target = directory / f"photographs-{count}"
    target.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "calibImages").glob("*.jpg"))
    turns = (lambda image: image, ImageOps.mirror, ImageOps.flip, lambda image: ImageOps.mirror(ImageOps.flip(image)))
    if count > len(sources) * len(turns):
        raise ValueError(f"{count} photographs were asked for, {len(sources) * len(turns)} can be made")
    for number in range(count):
        file = target / f"{number:03d}.png"
        if not file.exists():
            with Image.open(sources[number % len(sources)]) as image:
                turns[number // len(sources)](image.convert("RGB").resize((640, 480))).save(file)
    return target
