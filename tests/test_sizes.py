"""sizes: RolmOCR's published numbers, and agreement with transformers' resize and with what processors really make."""

import re

import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from quant.base.errors import QuantError, UsageError
from quant.commands.cli import main
from quant.families.areas import STEEPEST, resize
from quant.inputs.encoder import Encoder
from quant.inputs.sizes import Measure

try:  # transformers 5 has it beside the PIL backend
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
except ImportError:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

QWEN_LIMITS = (3136, 12845056)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Qwen's with the hub's own max_pixels."""
    folder = tmp_path_factory.mktemp("sources")
    limits = {"qwen2_vl": QWEN_LIMITS[1], "qwen2_5_vl": QWEN_LIMITS[1], "llava": None}
    return {family: tiny.make(folder / family, family, max_pixels=limit) for family, limit in limits.items()}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_rolmocrs_page(sources, family):
    page = Measure(sources[family], "Read this.")(720, 1280)
    assert (page.resized, page.patches, page.visual, page.pixel_values) == ((728, 1288), 4784, 1196, (4784, 1176))
    page = Measure(sources[family], "Read this.", max_pixels=921600)(720, 1280)
    assert (page.resized, page.patches, page.visual) == ((700, 1260), 4500, 1125)
    assert Measure(sources[family], "Read this.", max_pixels=937664)(720, 1280).visual == 1196
    assert Measure(sources[family], "Read this.", max_pixels=937663)(720, 1280).visual < 1196


sides = st.integers(1, 6000)


@settings(max_examples=2000, deadline=None)
@given(sides, sides, st.integers(1, 2_000_000), st.integers(0, 12_000_000))
@example(14, 14, 3136, 12845056 - 3136)  # half a multiple: rounded to even, that is to nothing, then enlarged
@example(42, 70, 1, 10**7)
@example(1, 200, 3136, 10**7)
@example(28, 5600, 1, 1000)  # shrunk to less than one multiple
@example(100, 100, 921600, 0)  # one size for all
def test_agrees_with_transformers(height, width, smallest, span):
    largest = smallest + span
    if max(height, width) > STEEPEST * min(height, width):
        with pytest.raises(ValueError, match="aspect ratio"):
            smart_resize(height, width, 28, smallest, largest)
        with pytest.raises(QuantError, match="over 200 times"):
            resize(height, width, 28, smallest, largest)
    else:
        assert resize(height, width, 28, smallest, largest) == smart_resize(height, width, 28, smallest, largest)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_agrees_with_what_the_processor_makes(sources, family):
    """Not the formula but the inputs themselves, for photographs, strips and specks."""
    limits = {} if family == "llava" else {"min_pixels": 56 * 56, "max_pixels": 200 * 200}
    prompt = "What does the photo show?"
    encoder, measure = Encoder(sources[family], **limits), Measure(sources[family], prompt, **limits)
    for height, width in [(30, 40), (333, 251), (28, 1400), (7, 5), (199, 201), (1000, 700)]:
        inputs, sizes = encoder(Image.new("RGB", (width, height)), prompt), measure(height, width)
        assert sizes.pixel_values == tuple(inputs["pixel_values"].shape)
        assert sizes.visual == (inputs["input_ids"] == encoder.image_token_id).sum()
        assert sizes.input == inputs["input_ids"].numel()
        if family != "llava":
            assert [1, sizes.resized[0] // 14, sizes.resized[1] // 14] == inputs["image_grid_thw"].tolist()[0]
            assert sizes.patches == inputs["image_grid_thw"].prod()


def test_llava_makes_every_image_one_size(sources):
    measure = Measure(sources["llava"], "What is it?")
    assert measure.limits is None
    small, large = measure(50, 70), measure(3000, 2000)
    assert small.resized == large.resized == (56, 56)
    assert small.patches == large.patches == small.visual == large.visual == 16  # 4 x 4, without the class token
    with pytest.raises(UsageError, match="max_pixels"):
        Measure(sources["llava"], "What is it?", max_pixels=921600)


def test_command(sources, capsys):
    source = str(sources["qwen2_5_vl"])
    assert (
        main(["sizes", source, "--image", "720x1280", "100x100", "--max_pixels", "921600", "--max_new_tokens", "1000"])
        == 0
    )
    printed = capsys.readouterr().out
    text = int(re.search(r"text +(\d+) tokens", printed)[1])
    row = re.search(r"720 x 1280 +700 x 1260 +4500 +1125 +(\d+) +(\d+) +\[4500, 1176\]", printed)
    assert (int(row[1]), int(row[2])) == (1125 + text, 2125 + text)
    assert "min_pixels 3136, max_pixels 921600" in printed and "100 x 100" in printed
    assert (
        f"maxInputTokenLen and maxPrefillTokens at least {1125 + text}; maxSeqLen (max_model_len) at least"
        f" {2125 + text}" in printed
    )


@pytest.mark.parametrize(
    "words,code,message",
    [
        (["--image", "720"], 2, "'720' is not HEIGHTxWIDTH"),
        (["--image", "0x5"], 2, "'0x5' is not HEIGHTxWIDTH"),
        (["--image", "7x10000"], 1, "an image of 7x10000: one side is over 200 times the other"),
        (["--image", "50x50", "--min_pixels", "4000", "--max_pixels", "3000"], 2, "min_pixels 4000, max_pixels 3000"),
    ],
)
def test_command_refuses_in_one_line(sources, capsys, words, code, message):
    try:
        assert main(["sizes", str(sources["qwen2_vl"]), *words]) == code
    except SystemExit as exit:  # argparse's own
        assert exit.code == code
    assert message in capsys.readouterr().err


def test_command_says_where_there_is_no_model(tmp_path, capsys):
    assert main(["sizes", str(tmp_path), "--image", "50x50"]) == 1
    assert "config.json: No such file" in capsys.readouterr().err
