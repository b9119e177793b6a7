"""Encoder: inputs as the checkpoint's own processor makes them, in every transformers version; faults in one line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from quant.base.errors import QuantError, UsageError
from quant.inputs.encoder import Encoder
from quant.inputs.sources import load_samples

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "llava"]  # of the others tests/test_family_proofs.py shows what is different
QWEN = [family for family in FAMILIES if family.startswith("qwen")]
PROMPT = "What is this? 图"
TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])  # CLIP's


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: tiny.make(root / family, family) for family in FAMILIES}


@pytest.fixture
def copy(checkpoints, tmp_path):
    """copy(family) -> that checkpoint's directory, free to be changed."""
    return lambda family: shutil.copytree(checkpoints[family], tmp_path / family)


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def edit(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def image_tokens(encoder, inputs):
    return int((inputs["input_ids"] == encoder.image_token_id).sum())


# ---- the inputs


@pytest.mark.parametrize("family", QWEN)
def test_qwen_text_is_chatml_with_one_token_for_four_patches(checkpoints, family):
    encoder = Encoder(checkpoints[family])
    inputs = encoder(picture(150, 90), PROMPT)
    grid = inputs["image_grid_thw"]
    count = int(grid.prod()) // 4
    assert inputs["pixel_values"].shape == (4 * count, 1176) and inputs["pixel_values"].dtype == torch.float32
    assert image_tokens(encoder, inputs) == count
    text = CHATML.format(image="<|image_pad|>" * count, prompt=PROMPT)
    assert inputs["input_ids"].tolist() == [encoder.tokenizer(text)["input_ids"]]
    assert bool(inputs["attention_mask"].all())
    if "mm_token_type_ids" in inputs:  # transformers 5.x
        assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == encoder.image_token_id).long())


def test_qwen_pixels_patch_by_patch(checkpoints):
    """An image that needs no resizing: patches in 2x2 squares, each channel, twice in time, rows, columns."""
    image = picture(112, 84)
    inputs = Encoder(checkpoints["qwen2_vl"])(image, PROMPT)
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 8]]
    normal = (np.asarray(image) / 255 - MEAN) / STD  # [H,W,3]
    expected = [
        np.repeat(normal[14 * y : 14 * y + 14, 14 * x : 14 * x + 14].transpose(2, 0, 1)[:, None], 2, axis=1).reshape(-1)
        for top in range(0, 6, 2) for left in range(0, 8, 2)
        for y in (top, top + 1) for x in (left, left + 1)
    ]  # fmt: skip
    assert np.allclose(inputs["pixel_values"], np.array(expected), atol=1e-5)


@pytest.mark.parametrize("size", [(100, 3), (3, 100), (100, 1)])
def test_thin_images_are_not_taken_for_channels_first(checkpoints, size):
    inputs = Encoder(checkpoints["qwen2_vl"])(picture(*size), PROMPT)
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    assert (rows < columns) == (size[0] > size[1])
    white = Encoder(checkpoints["llava"])(Image.new("RGB", size, (255, 0, 0)), PROMPT)["pixel_values"][0]  # [3,H,W]
    middle = white[:, 28, 28].numpy()
    assert np.allclose(middle, (np.array([1, 0, 0]) - MEAN) / STD, atol=1e-5)


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize("max_pixels, grid", [(937664, [1, 52, 92]), (921600, [1, 50, 90])])  # 728x1288, 700x1260
def test_max_pixels(checkpoints, family, max_pixels, grid):
    encoder = Encoder(checkpoints[family], max_pixels=max_pixels)
    inputs = encoder(picture(1280, 720), PROMPT)
    assert inputs["image_grid_thw"].tolist() == [grid]
    assert image_tokens(encoder, inputs) == grid[1] * grid[2] // 4
    assert (encoder.describe()["min_pixels"], encoder.describe()["max_pixels"]) == (3136, max_pixels)


@pytest.mark.parametrize("family", QWEN)
def test_min_pixels_and_the_checkpoints_own_limits(checkpoints, family):
    small = picture(56, 56)
    assert Encoder(checkpoints[family], min_pixels=112 * 112)(small, PROMPT)["image_grid_thw"].tolist() == [[1, 8, 8]]
    own = Encoder(checkpoints[family])
    assert own(small, PROMPT)["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert (
        own.describe()["max_pixels"]
        == json.loads((checkpoints[family] / "preprocessor_config.json").read_text())["max_pixels"]
    )
    assert int(own(picture(500, 500), PROMPT)["image_grid_thw"].prod()) * 196 <= own.describe()["max_pixels"]


EDGES = {"shortest_edge": 3136, "longest_edge": 12544}


@pytest.mark.parametrize(
    "written",
    [
        {"min_pixels": 3136, "max_pixels": 12544},  # the hub's
        {"min_pixels": 3136, "max_pixels": 12544, "size": {"min_pixels": 3136, "max_pixels": 12544}},  # 4.46's
        {"min_pixels": 3136, "max_pixels": 12544, "size": EDGES},  # 4.57's
        {"size": EDGES},  # 5.x's
        {"size": {"min_pixels": 3136, "max_pixels": 12544}},
        {"max_pixels": 12544, "image_processor_type": "Qwen2VLImageProcessorFast"},
    ],
)
def test_limits_count_wherever_a_version_wrote_them(copy, written):
    directory = copy("qwen2_vl")
    edit(directory / "preprocessor_config.json", **{"min_pixels": None, "max_pixels": None, **written})
    encoder = Encoder(directory)
    assert (encoder.describe()["min_pixels"], encoder.describe()["max_pixels"]) == (3136, 12544)
    assert encoder(picture(640, 427), PROMPT)["image_grid_thw"].tolist() == [[1, 6, 8]]
    assert encoder(picture(28, 28), PROMPT)["image_grid_thw"].tolist() == [[1, 4, 4]]
    larger = Encoder(directory, max_pixels=50176)
    assert larger(picture(640, 427), PROMPT)["image_grid_thw"].tolist() == [[1, 12, 18]]


def test_llava_equals_transformers_own_processor(checkpoints):
    """LLaVA's whole processor needs no torchvision, so it can be the oracle: template, expansion, pixels."""
    from transformers import AutoProcessor

    image = picture(90, 70)
    turn = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]}
    processor = AutoProcessor.from_pretrained(checkpoints["llava"])
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    expected = processor(images=image, text=text, return_tensors="pt")
    inputs = Encoder(checkpoints["llava"])(image, PROMPT)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(inputs[name], expected[name]), name


@pytest.mark.parametrize("family, old", [*((family, False) for family in FAMILIES), ("llava", True)])
def test_the_model_takes_the_inputs(checkpoints, tmp_path, family, old):
    """Also with a LLaVA revision whose processor_config.json lacks what the processor needs."""
    from transformers import AutoModelForImageTextToText

    directory = tiny.make(tmp_path / "old", family, old_llava=True) if old else checkpoints[family]
    encoder = Encoder(directory)
    filled = ["num_additional_image_tokens", "patch_size", "vision_feature_select_strategy"] if old else []
    assert encoder.describe()["filled_from_config"] == filled
    inputs = encoder(picture(80, 120), PROMPT)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[:2] == inputs["input_ids"].shape and bool(logits.isfinite().all())


def test_processor_config_goes_before_what_config_says(copy):
    directory = copy("llava")
    for stored, count, filled in [
        (3, 18, []),
        (None, 16, ["num_additional_image_tokens"]),
    ]:  # 16 patches, one class token
        edit(directory / "processor_config.json", num_additional_image_tokens=stored)
        encoder = Encoder(directory)
        assert image_tokens(encoder, encoder(picture(56, 56), PROMPT)) == count
        assert encoder.describe()["filled_from_config"] == filled


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_without_an_image(copy, family):
    """The turn without the image's place: by the checkpoint's template, and the same by the family's own format."""
    from transformers import AutoModelForImageTextToText

    directory = copy(family)
    encoder = Encoder(directory)
    inputs = encoder(None, PROMPT)
    assert not [name for name in inputs if "pixel" in name or "grid" in name]
    assert image_tokens(encoder, inputs) == 0
    text = f"USER: {PROMPT} ASSISTANT:"
    if family != "llava":
        text = CHATML.replace("<|vision_start|>{image}<|vision_end|>", "").format(prompt=PROMPT)
    assert inputs["input_ids"].tolist() == [encoder.tokenizer(text)["input_ids"]]
    with_image = encoder(picture(56, 56), PROMPT)  # the one text does not stand for the other
    assert image_tokens(encoder, with_image) > 0
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        assert bool(model(**inputs).logits.isfinite().all())
    (directory / "chat_template.json").unlink()
    edit(directory / "tokenizer_config.json", chat_template=None)
    built_in = Encoder(directory)
    assert built_in.describe()["chat_template"] == "built in"
    assert torch.equal(built_in(None, PROMPT)["input_ids"], inputs["input_ids"])
    refused("the prompt contains", QuantError, encoder, None, encoder.family.processing.image_token)


def test_describe_and_decode(checkpoints):
    for family in FAMILIES:
        encoder = Encoder(checkpoints[family])
        described = encoder.describe()
        assert json.loads(json.dumps(described)) == described
        assert described["chat_template"] == "chat_template.json" and described["image_backend"] == "pil"
        assert "Fast" not in described["image_processor"]
        ids = encoder(picture(56, 56), PROMPT)["input_ids"][0]
        assert (
            PROMPT in encoder.decode(ids) and "pad" not in encoder.decode(ids) and "<image>" not in encoder.decode(ids)
        )


# ---- chat templates


def render(encoder):
    """Text of the input with the image's tokens as one."""
    tokens = encoder.tokenizer.convert_ids_to_tokens(encoder(picture(56, 56), "hi")["input_ids"][0].tolist())
    image = encoder.tokenizer.convert_ids_to_tokens(encoder.image_token_id)
    kept = [t for i, t in enumerate(tokens) if t != image or tokens[i - 1] != image]
    return encoder.tokenizer.decode(encoder.tokenizer.convert_tokens_to_ids(kept))


TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{{ IMAGE if c.type == 'image' else c.text }}{% endfor %}"
    "{% endfor %}FROM"
)


@pytest.mark.parametrize("family, token", [("qwen2_vl", "<|image_pad|>"), ("llava", "<image>")])
def test_template_sources_in_order(copy, family, token):
    directory = copy(family)
    template = TEMPLATE.replace("IMAGE", f"'{token}'")
    edit(directory / "tokenizer_config.json", chat_template=template + "c")
    edit(directory / "chat_template.json", chat_template=template + "b")
    (directory / "chat_template.jinja").write_text(template + "a")
    seen = []
    for file in ("chat_template.jinja", "chat_template.json", None):
        encoder = Encoder(directory)
        seen.append((encoder.describe()["chat_template"], render(encoder)[-1]))
        if file:
            (directory / file).unlink()
    assert seen == [("chat_template.jinja", "a"), ("chat_template.json", "b"), ("tokenizer_config.json", "c")]


@pytest.mark.parametrize("left_over", [None, "{% for m in messages %}{{ m.role + m.content + '</s>' }}{% endfor %}"])
def test_built_in_format_without_a_template_that_has_an_image(copy, left_over):
    for family in FAMILIES:
        directory = copy(family)
        shipped = Encoder(directory)(picture(56, 56), PROMPT)["input_ids"]
        (directory / "chat_template.json").unlink()
        edit(directory / "tokenizer_config.json", chat_template=left_over)
        encoder = Encoder(directory)
        source = encoder.describe()["chat_template"]
        assert source.startswith("built in") and ("tokenizer_config.json" in source) == bool(left_over)
        if family != "llava":
            assert torch.equal(encoder(picture(56, 56), PROMPT)["input_ids"], shipped)
        else:
            expected = encoder.tokenizer(f"USER: {'<image>' * 16}\n{PROMPT} ASSISTANT:")["input_ids"]
            assert encoder(picture(56, 56), PROMPT)["input_ids"].tolist() == [expected]


def test_bos_is_not_doubled(copy):
    directory = copy("llava")
    edit(directory / "chat_template.json", chat_template="{{ bos_token }}" + TEMPLATE.replace("IMAGE", "'<image>'"))
    encoder = Encoder(directory)
    ids = encoder(picture(56, 56), PROMPT)["input_ids"][0]
    assert int((ids == encoder.tokenizer.bos_token_id).sum()) == 1


# ---- faults, each in one line


def refused(match, kind, call, *args, **kwargs):
    with pytest.raises(kind, match=match) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_and_damaged_files(copy, family):
    directory = copy(family)
    (directory / "chat_template.json").write_text("{")
    refused("chat_template.json", QuantError, Encoder, directory)
    (directory / "chat_template.json").unlink()
    for name in ("tokenizer.json", "vocab.json", "tokenizer.model"):
        (directory / name).unlink(missing_ok=True)
    refused("no tokenizer.json", QuantError, Encoder, directory)
    (directory / "tokenizer.json").write_text("{}")
    refused("cannot be built", QuantError, Encoder, directory)
    (directory / "preprocessor_config.json").unlink()
    refused("preprocessor_config.json is missing", QuantError, Encoder, directory)
    edit(directory / "config.json", architectures=["BertModel"])
    refused("BertModel is not supported.*LLaVA-1.5", UsageError, Encoder, directory)
    (directory / "config.json").write_text("[]")
    refused("config.json: holds a JSON list, an object was expected", QuantError, Encoder, directory)
    (directory / "config.json").unlink()
    refused("config.json: No such file", QuantError, Encoder, directory)


def test_config_at_odds_with_the_files(copy):
    directory = copy("llava")
    config = json.loads((directory / "config.json").read_text())
    edit(directory / "config.json", image_token_index=7)
    refused(f"{config['image_token_index']} for the tokenizer and 7", QuantError, Encoder, directory)
    edit(directory / "config.json", vision_config={"model_type": "clip_vision_model"})
    refused("the processor needs 'patch_size'", QuantError, Encoder, directory)


def test_limits_that_make_no_sense(checkpoints):
    refused("max_pixels", UsageError, Encoder, checkpoints["llava"], max_pixels=100_000)
    refused("min_pixels 3136, max_pixels 784", UsageError, Encoder, checkpoints["qwen2_vl"], max_pixels=784)


def test_limits_that_are_no_numbers(copy):
    directory = copy("qwen2_vl")
    edit(directory / "preprocessor_config.json", max_pixels="many")
    refused("must be integers, are .3136, 'many'", QuantError, Encoder, directory)


def test_remote_code_is_not_run_unasked(copy):
    directory = copy("qwen2_vl")
    edit(directory / "preprocessor_config.json", image_processor_type="Own", auto_map={"AutoImageProcessor": "own.Own"})
    (directory / "own.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
        "from transformers import CLIPImageProcessor\nclass Own(CLIPImageProcessor):\n    pass\n"
    )
    refused("trust_remote_code", QuantError, Encoder, directory)
    assert not list(directory.glob("**/ran"))


def test_prompts_and_images_that_cannot_be_encoded(checkpoints, tmp_path):
    encoder = Encoder(checkpoints["qwen2_vl"])
    refused("contains <|video_pad|>".replace("|", r"\|"), QuantError, encoder, picture(56, 56), "a <|video_pad|>")
    refused("contains <image>", QuantError, Encoder(checkpoints["llava"]), picture(56, 56), "<image>\nWhat?")
    refused("1000x2.*200", QuantError, encoder, picture(1000, 2), PROMPT)
    picture(1000, 2).save(tmp_path / "thin.png")
    (sample,) = load_samples(tmp_path, PROMPT, None, 0).samples
    refused("thin.png: .*1000x2", QuantError, encoder.encode_sample, sample)


def test_import_is_light():
    heavy = "[m for m in ('torch', 'transformers') if m in sys.modules]"
    code = f"import sys, quant.inputs.encoder, quant.inputs.images; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- several images, answers, passages


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_the_server_would_have_generated(checkpoints, family):
    """The prompt's tokens as they were, the answer's behind them, then the end of the turn; the model takes them."""
    encoder = Encoder(checkpoints[family])
    asked, inputs = (encoder(picture(60, 60), PROMPT, answer) for answer in ("", "A cat. 猫"))
    length, ids = asked["input_ids"].shape[1], encoder.tokenizer("A cat. 猫", add_special_tokens=False)["input_ids"]
    assert inputs["input_ids"][0, :length].tolist() == asked["input_ids"][0].tolist()
    assert inputs["input_ids"][0, length:].tolist() == [*ids, encoder.tokenizer.eos_token_id]
    assert all(inputs[name].shape == inputs["input_ids"].shape for name in inputs if name in TEXT)
    assert bool(inputs["attention_mask"].all())
    if "mm_token_type_ids" in inputs:
        assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == encoder.image_token_id).long())
    given = encoder(picture(60, 60), PROMPT, (5, 6, 7))
    assert given["input_ids"][0, length:].tolist() == [5, 6, 7], "a model's own tokens, and nothing behind them"
    refused("placeholder", QuantError, encoder, picture(60, 60), PROMPT, (5, encoder.image_token_id))
    refused("the answer contains", QuantError, encoder, None, PROMPT, encoder.family.processing.image_token)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_passage_has_no_template(checkpoints, family):
    encoder = Encoder(checkpoints[family])
    inputs = encoder(None, None, "Сорок тысяч. ไทย")
    assert inputs["input_ids"][0].tolist() == encoder.tokenizer("Сорок тысяч. ไทย")["input_ids"]
    front = encoder.tokenizer("")["input_ids"]
    assert front == ([encoder.tokenizer.bos_token_id] if family == "llava" else [])
    written = encoder(None, None, (5, 6, 7))
    assert written["input_ids"][0].tolist() == [*front, 5, 6, 7]
    assert written.keys() == inputs.keys() and all(written[name].dtype == inputs[name].dtype for name in inputs)
    refused("text alone", QuantError, encoder, None, None, "")
    refused("text alone", QuantError, encoder, picture(60, 60), None, "x")
    refused("the answer contains", QuantError, encoder, None, None, encoder.family.processing.image_token)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_images_in_one_prompt(checkpoints, family):
    """In their order, each in its place, and the model takes them."""
    from transformers import AutoModelForImageTextToText

    encoder = Encoder(checkpoints[family])
    pictures = [picture(60, 60, 1), picture(90, 56, 2), picture(56, 112, 3)]
    inputs = encoder(pictures, PROMPT)
    single = [encoder(each, PROMPT) for each in pictures]
    assert image_tokens(encoder, inputs) == sum(image_tokens(encoder, each) for each in single)
    for name in (name for name in inputs if name not in TEXT):
        assert torch.equal(inputs[name], torch.cat([each[name] for each in single])), name
    model = AutoModelForImageTextToText.from_pretrained(checkpoints[family], dtype=torch.float32).eval()
    with torch.no_grad():
        assert bool(model(**inputs).logits.isfinite().all())
