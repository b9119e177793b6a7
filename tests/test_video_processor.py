"""video_processor: inputs equal to those of transformers' own video processors, bit for bit; the formulas by hand."""

import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import clips
import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image
from test_encoder import edit, refused

from quant.base.errors import QuantError
from quant.families.video import sample_ends, sample_middles, sample_starts, size_of_all, size_of_each
from quant.inputs import video_processor
from quant.inputs.encoder import Encoder

HERE = Path(__file__).resolve().parent
PROMPT = "What happens?"
CLASSES = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "internvl": ("InternVLProcessor", "InternVLVideoProcessor"),
    "llava_onevision": ("LlavaOnevisionProcessor", "LlavaOnevisionVideoProcessor"),
    "llava_next_video": ("LlavaNextVideoProcessor", "LlavaNextVideoVideoProcessor"),
}
FAMILIES = [family for family in CLASSES if family in tiny.known()]
SHAPES = [(20, 10, 96, 64), (50, 25, 160, 90), (9, 3, 64, 120)]  # frames, a second, width, height


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    made = {family: tiny.make(root / family, family) for family in FAMILIES}
    if "internvl" in made:
        side = json.loads((made["internvl"] / "preprocessor_config.json").read_text())["size"]
        file = made["internvl"] / "video_preprocessor_config.json"
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        file.write_text(json.dumps({"size": side, "image_mean": mean, "image_std": std}))
    return made


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    return [
        clips.make_file(root / f"{number}.mp4", clips.pictures(count, width, height, number), rate)
        for number, (count, rate, width, height) in enumerate(SHAPES)
    ]


def capped(family: str) -> bool:
    """One family of each rule has its frames' area capped, where the installed transformers knows of it."""
    source = Path(transformers.__file__).parent / "models" / "qwen2_vl" / "video_processing_qwen2_vl.py"
    return family in ("qwen2_5_vl", "qwen3_5") and "cap_pixels_per_frame" in source.read_text()


@pytest.fixture(scope="module")
def compared(checkpoints, videos, tmp_path_factory):
    """(family, video) -> (ours, transformers' own): of a video alone, and behind an image."""
    root = tmp_path_factory.mktemp("oracle")
    image = root / "image.png"
    Image.fromarray(clips.pictures(1, 80, 60)[0]).save(image)
    cases, ours = [], {}
    for family, directory in checkpoints.items():
        if capped(family):
            edit_settings(directory, cap_pixels_per_frame=True)
        encoder = Encoder(directory)
        for number, video in enumerate(videos):
            shown = image if number == 1 else None
            clip = encoder.clip(video)
            ours[family, number] = encoder(Image.open(image) if shown else None, PROMPT, clips=[clip])
            processing = encoder.family.processing
            places = processing.chat_image * bool(shown) + processing.video.chat
            text = processing.chat.replace("{images}", places).replace("{prompt}", PROMPT)
            own, own_video = CLASSES[family]
            case = {"checkpoint": str(directory), "processor": own, "video_processor": own_video, "text": text}
            case |= {"video": str(video), "image": shown and str(shown), "fps": processing.video.fps, "settings": {}}
            asked = processing.from_config(json.loads((directory / "config.json").read_text()))
            case["arguments"] = {key: getattr(encoder._processor._processor, key) for key in asked}
            if family.startswith("llava"):  # transformers leaves it to the user which frames are taken
                case["taken"] = clip.taken
            cases.append(case)
    (root / "cases.json").write_text(json.dumps(cases))
    path = os.pathsep.join([str(HERE / "torchvision_stub"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "video_oracle.py"), str(root / "cases.json"), str(root / "out")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {key: (ours[key], theirs) for key, theirs in zip(ours, torch.load(root / "out"))}


def edit_settings(directory: Path, **values) -> None:
    """Of the file that says how videos are processed."""
    own = directory / "video_preprocessor_config.json"
    edit(own if own.is_file() else directory / "preprocessor_config.json", **values)


@pytest.mark.parametrize("number", range(len(SHAPES)))
@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_those_of_the_models_own_processor(compared, family, number):
    ours, theirs = compared[family, number]
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name


def test_resizing_differs_from_pillows_by_one_level_at_most(checkpoints, tmp_path):
    """Of one picture as an image and as a video of equal frames: the same grid; where nothing is resized the same
    patches but for the order of two float operations, else by one level of 255 here and there (torch's 8-bit bicubic
    filter, which torchvision calls, against Pillow's).
    """
    for size, levels in ((112, 0), (150, 1)):
        frames = [clips.pictures(1, size, size)[0]] * 4
        encoder = Encoder(checkpoints["qwen2_vl"])
        clip = encoder.clip(clips.make_folder(tmp_path / str(size), frames))
        video = encoder(None, PROMPT, clips=[clip])
        image = encoder(Image.fromarray(frames[0]), PROMPT)
        assert video["video_grid_thw"].tolist() == [[2, *image["image_grid_thw"][0, 1:].tolist()]]
        first, second = video["pixel_values_videos"].chunk(2)
        assert torch.equal(first, second)
        level = 1 / 255 / 0.26  # of the least standard deviation
        difference = (first - image["pixel_values"]).abs()
        assert difference.max() <= levels * level * 1.01 + 2e-6
        assert (difference > level / 2).float().mean() < 0.05


def test_frames_in_a_folder_were_sampled_before(checkpoints, tmp_path):
    folder = clips.make_folder(tmp_path / "frames", clips.pictures(7))
    clip = Encoder(checkpoints["qwen2_vl"], fps=4).clip(folder)
    assert (clip.taken, clip.rate) == (tuple(range(7)), 4)
    clip = Encoder(checkpoints["qwen2_vl"], max_frames=3).clip(folder)
    assert (clip.taken, clip.rate, clip.total) == ((0, 2, 4), 2, 7)
    inputs = Encoder(checkpoints["qwen2_vl"])(None, PROMPT, clips=[clip])
    assert inputs["video_grid_thw"][0, 0] == 2, "the last frame is repeated"


def test_rate_and_cap(checkpoints, videos):
    """20 frames, 10 a second."""
    for family, choices, taken in (
        ("qwen2_vl", {}, [0, 5, 10, 15]),
        ("qwen2_vl", {"fps": 5}, list(range(0, 20, 2))),
        ("qwen2_vl", {"fps": 5, "max_frames": 4}, [0, 5, 10, 15]),
        ("qwen3_vl", {"fps": 5, "max_frames": 3}, [0, 10, 19]),
        ("internvl", {"max_frames": 2}, [5, 15]),
        ("internvl", {"fps": 2}, [2, 7, 12, 17]),
    ):
        if family in checkpoints:
            encoder = Encoder(checkpoints[family], **choices)
            assert encoder.clip(videos[0]).taken == tuple(taken), (family, choices)
            described = encoder.describe()
            assert described["max_frames"] == choices.get("max_frames", 8 if family == "internvl" else 768)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 17, 100, 5000])
@pytest.mark.parametrize("most", [1, 2, 7, 32, 768])
def test_what_is_sampled_is_there(total, most):
    """In order, within the video, as many as may be; also of videos shorter than their processors' least number."""
    for sample in (sample_starts, sample_ends, sample_middles):
        for rate, fps in ((25.0, 2.0), (25.0, None), (0.5, 2.0), (1000.0, 0.01)):
            taken = sample(total, rate, fps, most)
            assert taken and taken == sorted(taken) and 0 <= taken[0] and taken[-1] < total
            assert len(taken) <= max(min(most, total), 1)
            assert all(type(number) is int for number in taken)


def test_sizes_are_within_their_limits():
    """Of each frame, or of all; multiples of 28; proportions kept as far as these allow."""
    for height, width in ((480, 640), (1080, 1920), (30, 2000), (100, 90)):
        for frames in (1, 4, 33, 768):
            rows, columns = size_of_each(frames, height, width, 28, (100_000, 600_000), False)
            assert rows % 28 == columns % 28 == 0 and 100_000 <= rows * columns <= 600_000
            low, high = 4 * 28 * 28 * 768, 40_000_000
            rows, columns = size_of_all(frames, height, width, 28, (low, high), False)
            assert rows % 28 == columns % 28 == 0 and low <= 2 * math.ceil(frames / 2) * rows * columns
            assert 2 * round(frames / 2) * rows * columns <= high
    assert size_of_each(768, 2000, 2000, 28, (100_000, 10**8), True) == (476, 476)  # 0.9 x 128000 tokens / 384 patches
    assert size_of_all(4, 2000, 2000, 32, (4096, 10**9), True) == (864, 864)  # 768 tokens a frame


def test_max_pixels_is_of_a_frame(checkpoints, videos):
    for family in ("qwen2_vl", "qwen3_vl"):
        clip = Encoder(checkpoints[family], max_pixels=64 * 64 + 1000).clip(videos[1])
        assert clip.frames.shape[2] * clip.frames.shape[3] <= 64 * 64 + 1000


def test_one_frame_at_full_size_is_in_memory(checkpoints, monkeypatch, tmp_path):
    alive, most = [], []

    def frames(path, choose):
        def made():
            for _ in range(32):
                frame = np.zeros((480, 640, 3), np.uint8)
                alive.append(weakref.ref(frame))
                yield frame
                del frame
                most.append(sum(each() is not None for each in alive))

        taken = tuple(range(32))
        return video_processor.video.Header(32, 2.0, taken, 480, 640), made()

    monkeypatch.setattr(video_processor.video, "frames", frames)
    clip = Encoder(checkpoints["qwen2_vl"]).clip(tmp_path / "any.mp4")
    assert clip.frames.shape[0] == 32 and clip.frames.dtype == torch.uint8
    assert max(most) <= 2, "the one at hand, and the one before, until its name is given to the next"


# ---- faults, each in one line


def test_a_video_that_would_become_too_large(checkpoints, videos, monkeypatch):
    encoder = Encoder(checkpoints["qwen2_vl"])
    monkeypatch.setattr(video_processor.processor_files, "MAX_AREA", 10_000)
    refused(
        "0.mp4: 4 frames of 64x96: the processor makes them 56x84, 18816 pixels, at most 10000 are taken",
        QuantError, encoder.clip, videos[0],
    )  # fmt: skip


def test_a_family_that_takes_no_video(tmp_path, videos):
    directory = tiny.make(tmp_path / "src", "llava")
    encoder = Encoder(directory)
    assert encoder.video_token_id is None
    refused("LLaVA-1.5 takes no video", QuantError, encoder.clip, videos[0])


def test_a_template_without_a_place_for_a_video(checkpoints, tmp_path, videos):
    directory = Path(shutil.copytree(checkpoints["qwen2_vl"], tmp_path / "src"))
    template = "{% for c in messages[0].content %}{{ '<|image_pad|>' if c.type == 'image' else c.text }}{% endfor %}"
    edit(directory / "chat_template.json", chat_template=template)
    encoder = Encoder(directory)
    refused("makes 0 places for 1 videos", QuantError, encoder, None, PROMPT, clips=[encoder.clip(videos[0])])
    (directory / "chat_template.json").unlink()
    edit(directory / "tokenizer_config.json", chat_template=None)
    built_in, other = Encoder(directory), Encoder(checkpoints["qwen2_vl"])
    assert built_in.describe()["chat_template"] == "built in"
    clip, picture = built_in.clip(videos[0]), Image.new("RGB", (60, 60))
    ours, theirs = (encoder(picture, PROMPT, clips=[clip]) for encoder in (built_in, other))
    assert torch.equal(ours["input_ids"], theirs["input_ids"])


def test_frames_that_a_model_takes_as_one_tensor(checkpoints, tmp_path):
    """InternVL's processor stacks the videos of a prompt."""
    encoder = Encoder(checkpoints["internvl"])
    shown = [encoder.clip(clips.make_folder(tmp_path / str(count), clips.pictures(count))) for count in (3, 4)]
    refused("as many frames each, and have 3 3, 4 4; see --max_frames", QuantError, encoder, None, PROMPT, clips=shown)


@pytest.mark.parametrize(
    "values, text",
    [
        ({"fps": "fast"}, "fps is 'fast', a number from"),
        ({"fps": 0}, "fps is 0, a number from"),
        ({"max_frames": 10**9}, "max_frames is 1000000000, a whole number from 1 to 16384"),
        ({"size": {"shortest_edge": -1, "longest_edge": 5}}, "shortest_edge is -1"),
        ({"image_std": [0, 0, 0]}, "image_std is"),
        ({"temporal_patch_size": 3}, "temporal_patch_size is 3, config.json's"),
    ],
)
def test_settings_that_cannot_be(checkpoints, tmp_path, values, text):
    directory = Path(shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "src"))
    kept = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "video_preprocessor_config.json").write_text(json.dumps({**kept, **values}))
    refused(f"video_preprocessor_config.json: {text}", QuantError, Encoder, directory)
