"""Videos through whole jobs, in every family that takes them: the paused forward equals the model's own, bit for bit;
quantize, verify and evaluate on rows of images, several images, files, GIFs and folders of frames.
"""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import clips
import pytest
import tiny
import torch
from chat_server import Server
from jobs import run_job
from PIL import Image
from test_paused import assert_equal_to_the_whole

from quant import Calibrator, QuantConfig
from quant.base.console import SILENT
from quant.base.errors import UsageError
from quant.commands.cli import main
from quant.evaluate.endpoint import Endpoint, Unanswered
from quant.evaluate.evaluate import Results, ask
from quant.evaluate.local_model import LocalModel
from quant.evaluate.questions import Question, load_questions
from quant.export.recipe import RECIPE
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.inputs.encoder import Encoder
from quant.inputs.samples import prepare
from quant.model.streamed import StreamedModel
from quant.verify.verify import verify

TAKE = [name for name in tiny.known() if tiny.family(name).processing.video]
ROWS = [
    {"images": ["a.png", "b.png"], "prompt": "several", "answer": "Two."},
    {"video": "clip.mp4", "prompt": "a file", "answer": "It moves."},
    {"videos": ["clip.gif", "frames"], "prompt": "two"},
    {"image": "b.png", "video": "clip.mp4", "answer": "Both."},
    {"text": "No picture."},
]
SMALL = {"dev_type": "cpu", "calib_text": "none", "max_frames": 4}


class World:
    def __init__(self, root):
        self.root, self.data, self.sources = root, root / "data", {}
        self.data.mkdir()
        for number, name in enumerate(("a.png", "b.png")):
            Image.fromarray(clips.pictures(1, 70 + 20 * number, 60, number)[0]).save(self.data / name)
        clips.make_file(self.data / "clip.mp4", clips.pictures(20))
        clips.make_gif(self.data / "clip.gif", clips.pictures(8))
        clips.make_folder(self.data / "frames", clips.pictures(5, 64, 64))
        self.rows = self.data / "rows.jsonl"
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def source(self, family, dtype="bfloat16"):
        place = self.root / f"{family}-{dtype}"
        return place if place.exists() else tiny.make(place, family, dtype=dtype)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("videos"))


@pytest.mark.parametrize(
    "family, dtype",
    # LLaVA-Video's whole model is put together in test_llava_video.py.
    [(family, "bfloat16") for family in TAKE if not family.endswith("moe") and family != "llava_video"]
    + [(family, dtype) for family in ("qwen2_5_vl", "qwen3_vl", "internvl") for dtype in ("float32", "float16")],
)
@torch.inference_mode()
def test_block_after_block_is_the_whole_model(world, family, dtype):
    """An image and a video in one sample, for which Qwen's vision tower runs twice, and a video alone."""
    source = world.source(family, dtype)
    encoder = Encoder(source, max_frames=4)
    clip, picture = encoder.clip(world.data / "clip.mp4"), Image.open(world.data / "a.png")
    samples = [encoder(picture, "both", clips=[clip]), encoder(None, "alone", "It moves.", clips=[clip])]
    checkpoint = Checkpoint(source)
    described = family_of(checkpoint.config, source)
    passes = [described.tower("vision").passes(inputs) for inputs in samples]
    assert passes == ([1, 1] if family == "internvl" else [2, 1])
    model = StreamedModel(checkpoint, described, getattr(torch, dtype))
    assert_equal_to_the_whole(model, source, getattr(torch, dtype), samples)


@pytest.mark.parametrize("family", TAKE)
def test_a_job(world, tmp_path, family):
    """Every row counts, verify finds no damage, and both models answer questions about videos."""
    source = world.source(family)
    calibrator = Calibrator(source, QuantConfig(**SMALL), world.rows)
    out = run_job(calibrator, tmp_path / "out")
    samples = calibrator.samples
    assert len(samples.inputs) == len(ROWS) and samples.skipped == 0 and samples.texts == 1
    recipe = json.loads((out / RECIPE).read_text())
    assert [sample["image"] for sample in recipe["samples"]] == [True] * 4 + [False]
    assert recipe["encoder"]["max_frames"] == 4

    report = verify(out, source, QuantConfig(**SMALL), world.rows, tokens=2)
    assert report["findings"] == []
    if family not in ("qwen3_vl", "internvl"):
        return
    file = world.data / "questions.jsonl"
    asked = [{**row, "prompt": f"{row.get('prompt', 'all')}?", "answers": ["x"]} for row in ROWS[:4]]
    for row in asked:
        row.pop("answer", None)
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    questions, results = load_questions(file), Results(tmp_path / "log.jsonl")
    for directory, int8 in ((source, False), (out, True)):
        model = LocalModel(directory, int8, max_new_tokens=2, max_frames=4, device="cpu")
        said = ask("model", model, questions, results, SILENT)
        assert said.errors == {} and len(said.predictions) == 4
    one = LocalModel(source, False, max_new_tokens=2, max_frames=4, device="cpu")
    many = LocalModel(source, False, max_new_tokens=2, max_frames=4, device="cpu", batch_size=4)
    assert many.answers(list(questions.questions)) == one.answers(list(questions.questions))


def test_the_example_of_the_docs(tmp_path):
    """examples/clip.py, and its rows by the model that ships with the project: every one is of use."""
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, str(root / "examples" / "clip.py"), str(tmp_path)], check=True)
    assert {path.name for path in tmp_path.iterdir()} >= {"disc.gif", "disc.mp4", "frames", "videos.jsonl"}
    source = Checkpoint(root / "examples" / "tiny-qwen2vl")
    config = QuantConfig(dev_type="cpu", calib_text="none", max_frames=8)
    found = prepare(tmp_path / "videos.jsonl", source, family_of(source.config, source.dir), config)
    assert len(found.inputs) == 4 and found.skipped == 0 and found.notices == []
    rows = sorted(tuple(inputs["video_grid_thw"][0].tolist()) for inputs in found.inputs if "video_grid_thw" in inputs)
    assert [grid[0] for grid in rows] == [2, 2, 2], "24 frames at 12 a second, sampled at 2; four in the folder"
    questions = load_questions(tmp_path / "questions.jsonl").questions
    names = [path.name for question in questions for path in question.videos]
    assert names == ["disc.gif", "frames", "disc.mp4"]


def test_sizes_of_a_video(world, capsys):
    """What the command says is what the encoder gives."""
    source = world.source("qwen3_vl")
    assert main(["sizes", str(source), "--video", "5x64x96", "--image", "64x96", "--prompt", "p"]) == 0
    encoder = Encoder(source)
    inputs = encoder(None, "p", clips=[encoder.blank_clip(5, 64, 96)])
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("5 x 64 x 96"))
    visual = int((inputs["input_ids"] == encoder.video_token_id).sum())
    rows, columns = (side * 16 for side in inputs["video_grid_thw"][0, 1:].tolist())
    expected = [rows, "x", columns, len(inputs["pixel_values_videos"]), visual, inputs["input_ids"].numel()]
    assert row.split()[5:11] == [str(value) for value in expected]
    with pytest.raises(SystemExit) as caught:
        main(["sizes", str(source), "--video", "64x96"])
    assert caught.value.code == 2 and "is not FRAMESxHEIGHTxWIDTH" in capsys.readouterr().err


def test_questions_with_videos_that_cannot_be_used(world, tmp_path):
    for row, reason in (
        ({"video": "../clip.mp4"}, 'video "../clip.mp4" leaves the folder'),
        ({"video": str(world.data / "clip.mp4")}, "is an absolute path"),
        ({"videos": "clip.mp4"}, '"videos" must be a list of paths'),
        ({"video": "rows.jsonl"}, "cannot be decoded"),
        ({}, '"image" is missing'),
    ):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text("no video")
        (folder / "x.jsonl").write_text(json.dumps({**row, "prompt": "p", "answers": "a"}))
        with pytest.raises(UsageError, match=re.escape(reason)):
            load_questions(folder / "x.jsonl")


def test_what_a_server_is_sent(world):
    """The file's own bytes; a folder of frames is refused for that question alone."""
    with_file, with_folder = (
        Question("k", "x:1", (), "p", ("a",), None, False, (), (world.data / name,)) for name in ("clip.mp4", "frames")
    )
    server = Server()
    try:
        endpoint = Endpoint(server.url, max_new_tokens=4)
        assert endpoint.answer(with_file) == "fine"
        with pytest.raises(Unanswered, match="frames: a folder of frames cannot be sent"):
            endpoint.answer(with_folder)
        content = server.requests[-1][1]["messages"][0]["content"]
        assert content[1] == {"type": "text", "text": "p"} and content[0]["type"] == "video_url"
        head, _, body = content[0]["video_url"]["url"].partition(",")
        assert head == "data:video/mp4;base64" and base64.b64decode(body) == (world.data / "clip.mp4").read_bytes()
    finally:
        server.close()
