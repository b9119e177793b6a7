"""video_processor: inputs equal to those of transformers' own video processors, bit for bit; the formulas by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import clips
import pytest
import tiny
import torch
from PIL import Image
from test_encoder import edit

from quant.inputs.encoder import Encoder

HERE = Path(__file__).resolve().parent
PROMPT = "What happens?"
CLASSES = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "internvl": ("InternVLProcessor", "InternVLVideoProcessor"),
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
    """One family of each rule has its frames' area capped."""
    return family in ("qwen2_5_vl", "qwen3_5")


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
            if family == "internvl":
                case["image_seq_length"] = encoder._processor._processor.image_seq_length
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
