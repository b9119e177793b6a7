"""LLaVA-Video under its original names: the same tensors as LLaVA-OneVision's form, the features of frames by the
published formulas, exports that keep the names.
"""

import json
import shutil

import clips
import pytest
import tiny
import torch
import transformers
from exports import edit_json
from jobs import run_job
from PIL import Image
from safetensors.torch import load_file, save_file
from test_paused import stream

from quant import Calibrator, QuantConfig
from quant.base.errors import UsageError
from quant.commands.cli import main
from quant.export import reader
from quant.families import family_of, llava_video
from quant.families.llava_video import LLAVA_VIDEO
from quant.files.checkpoint import Checkpoint
from quant.inputs.encoder import Encoder
from quant.model.streamed import StreamedModel
from quant.servers.rules import check
from quant.verify import runtime
from quant.verify.verify import verify

SIZES = ((96, 64), (64, 200), (160, 150))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("source") / "src", "llava_video", dtype="float32", outliers=False)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return clips.make_file(tmp_path_factory.mktemp("video") / "clip.mp4", clips.pictures(12, 96, 64), 5)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """LLaVA-OneVision of transformers, of the same tensors under the names of its own form, read by its own reader."""
    other = tmp_path_factory.mktemp("other") / "hf"
    shutil.copytree(source, other)
    config = llava_video.nested(json.loads((source / "config.json").read_text()))
    (other / "config.json").write_text(json.dumps({**config, "architectures": [LLAVA_VIDEO.built_as]}))
    names = [
        ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
        ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
        ("model.image_newline", "image_newline"),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ]
    tensors = load_file(source / "model.safetensors")
    renamed = {next(new + name[len(old) :] for old, new in names if name.startswith(old)): name for name in tensors}
    save_file({new: tensors[name] for new, name in renamed.items()}, other / "model.safetensors", {"format": "pt"})
    model = getattr(transformers, LLAVA_VIDEO.built_as).from_pretrained(other).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def by_formula(features: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
    """llava_arch.py, written as sums: get_2dPool with stride 2, bilinear, of the projected patches
    [frames, side * side, width], then add_token_per_grid. Bilinear without aligned corners samples at
    (i + 1/2) side / out - 1/2.
    """
    frames, side = len(features), round(features.shape[1] ** 0.5)
    grid, out = features.view(frames, side, side, -1).double(), -(-side // 2)
    found = []
    for frame in range(frames):
        for row in range(out):
            for column in range(out):
                value = 0
                for y, by in weights(row, side, out):
                    for x, bx in weights(column, side, out):
                        value = value + by * bx * grid[frame, y, x]
                found.append(value)
            found.append(newline.double())
    return torch.stack(found)


def weights(index: int, side: int, out: int) -> list[tuple[int, float]]:
    at = max((index + 0.5) * side / out - 0.5, 0)
    low = int(at)
    return [(low, 1 - (at - low)), (min(low + 1, side - 1), at - low)]


@torch.inference_mode()
def test_frames_are_pooled_and_ended_by_the_published_formulas(source, whole, video):
    """Of 5 patches a side, an odd number as of the published 27, so that pooling rounds up and is no mean of four."""
    encoder = Encoder(source, max_frames=4)
    inputs = encoder(None, "What happens?", clips=[encoder.clip(video)])
    assert (inputs["input_ids"] == encoder.video_token_id).sum() == 4 * 3 * (3 + 1)
    model = runtime.load_float(source)[0]
    if transformers.__version__ < "5":  # its forward adds the last newline
        found = model.model.get_video_features(inputs["pixel_values_videos"], -1, "full")
        found = torch.cat([found, whole.model.image_newline.expand(1, 1, -1)], 1)
    else:
        found = model.model.get_video_features(inputs["pixel_values_videos"], return_dict=True).pooler_output
    seen = whole.model.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states[-1]
    wanted = by_formula(whole.model.multi_modal_projector(seen), whole.model.image_newline)
    assert found.shape == (1, *wanted.shape)
    torch.testing.assert_close(found[0].double(), wanted, rtol=1e-4, atol=1e-5)


def test_frames_are_taken_as_published(source, video):
    """force_sample: np.linspace(0, total - 1, n, dtype=int), 64 of them; here of 12."""
    assert list(Encoder(source, max_frames=4).clip(video).taken) == [0, 3, 7, 11]
    assert LLAVA_VIDEO.processing.video.most == 64
    assert LLAVA_VIDEO.processing.video.sample(1000, 30.0, None, 64)[:4] == [0, 15, 31, 47]


@torch.inference_mode()
def test_streamed_equals_the_other_form(source, whole, video):
    """Bit for bit, images of several sizes, several in one prompt, text; with a video equal to this class's own
    forward, whose frames the test above has checked.
    """
    encoder, checkpoint = Encoder(source, max_frames=4), Checkpoint(source)
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in SIZES]
    samples = [encoder(picture, "What is this?") for picture in pictures]
    samples += [encoder(pictures[:2], "Which is larger?"), encoder(None, "How are you?")]
    model = StreamedModel(checkpoint, family_of(checkpoint.config, source), torch.float32)
    blocks, ours = stream(model, samples, cut={"vision": 1, "language": 1})
    for inputs, logits in zip(samples, ours, strict=True):
        assert torch.equal(logits, whole(**inputs, use_cache=False).logits)
    tower = LLAVA_VIDEO.tower("vision")
    assert [tower.tokens(checkpoint.config, inputs) for inputs in samples] == [
        sum(blocks[tower.block(0)][key].shape[:-1].numel() for key in blocks[tower.block(0)] if key[0] == number)
        for number in range(len(samples))
    ]
    both = [encoder(pictures[0], "What happens?", clips=[encoder.clip(video)])]
    blocks, (logits,) = stream(model, both)
    assert torch.equal(logits, runtime.load_float(source)[0](**both[0], use_cache=False).logits)
    seen = blocks[tower.block(0)]
    assert seen.keys() == {(0, 0), (0, 1)} and seen[0, 1].shape == (4, 25, 128)
    assert tower.tokens(checkpoint.config, both[0]) == sum(each.shape[:-1].numel() for each in seen.values())


@pytest.mark.parametrize("vision", ["float", "int8"])
def test_an_export_keeps_the_names_and_no_server_is_promised(tmp_path, vision, capsys):
    source, images = tiny.make(tmp_path / "src", "llava_video"), tiny.make_images(tmp_path / "images", 2)
    out = tmp_path / "out"
    config = QuantConfig(dev_type="cpu", anti_method="m4", calib_text="none", vision=vision)
    run_job(Calibrator(source, config, str(images), quiet=True), out)
    before, after = Checkpoint(source), reader.read(out)
    assert before.tensors.keys() <= after.tensors.keys() | {f"{name}.bias" for name in after.words}
    assert after.config["architectures"] == ["LlavaQwenForCausalLM"] and "vision_config" not in after.config
    assert "model.layers.0.self_attn.q_proj" in after.words
    report = verify(
        out, source, QuantConfig(dev_type="cpu", num_samples=1), str(images), tokens=0, thresholds={"kl": 0.05}
    )
    assert report["findings"] == [] and report["passed"]
    refused = {server: [finding.rule for finding in check(out, [server])] for server in ("mindie", "vllm-ascend")}
    assert refused == {"mindie": ["served"], "vllm-ascend": ["served"]}
    assert main(["check", str(out)]) == 1
    assert "are not supported for now" in capsys.readouterr().out


def test_what_is_not_supported_is_named(tmp_path, source):
    for key, value in (("mm_vision_tower", "openai/clip"), ("add_faster_video", True), ("mm_spatial_pool_mode", "max")):
        broken = tmp_path / key
        shutil.copytree(source, broken)
        edit_json(broken / "config.json", lambda config: config.pop("mm_vision_config"))
        name = {"mm_vision_tower": next(iter(llava_video.TOWERS)), key: value}
        edit_json(broken / "config.json", lambda config, said=name: config.update(said))
        with pytest.raises(UsageError, match=f"{key} is {value!r}; supported is"):
            Encoder(broken)
