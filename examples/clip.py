"""python examples/clip.py DIRECTORY: a disc that crosses the picture, as a GIF, a folder of frames and, where PyAV is
installed, an .mp4; with videos.jsonl, rows to calibrate with, and questions.jsonl, for evaluate.
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw

FRAMES, RATE, SIZE = 24, 12, (160, 120)
PROMPT = "Which way does the disc move?"


def frame(number: int) -> Image.Image:
    """RGB."""
    picture = Image.new("RGB", SIZE, "white")
    centre = 20 + number * (SIZE[0] - 40) // (FRAMES - 1)
    ImageDraw.Draw(picture).ellipse((centre - 15, 45, centre + 15, 75), fill="red")
    return picture


def write_file(path: Path, frames: list[Image.Image]) -> bool:
    """Whether PyAV is there."""
    try:
        import av
    except ImportError:
        return False
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return True


def main(directory: Path) -> None:
    """Writes all of it."""
    frames = [frame(number) for number in range(FRAMES)]
    folder = directory / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(frames[::6]):
        picture.save(folder / f"{number}.png")
    frames[0].save(directory / "disc.gif", save_all=True, append_images=frames[1:], duration=1000 // RATE, loop=0)
    rows = [
        {"video": "disc.gif", "prompt": PROMPT, "answer": "To the right."},
        {"images": ["frames/0.png", "frames/3.png"], "prompt": "What has changed?", "answer": "The disc has moved."},
        {
            "image": "frames/0.png",
            "video": "frames",
            "prompt": "The picture is the beginning of the video. What happens?",
        },
    ]
    if write_file(directory / "disc.mp4", frames):
        rows.append({"video": "disc.mp4", "prompt": "How many discs are there?", "answer": "One."})
    (directory / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"video": row["video"], "prompt": PROMPT, "answers": ["right"]} for row in rows if "video" in row]
    (directory / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    main(parser.parse_args().directory)
