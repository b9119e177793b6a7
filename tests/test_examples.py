"""The example models: the drawn data comes from its seed, the files load whole, they read images they have not seen,
and their outlier channels do what they are for: int8 without suppression loses the text, m2 and m4 keep it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import data  # noqa: E402
import hub  # noqa: E402
import outliers  # noqa: E402
import train  # noqa: E402

from quant import Calibrator, QuantConfig  # noqa: E402
from quant.evaluate.local_model import LocalModel  # noqa: E402
from quant.evaluate.questions import load_questions  # noqa: E402
from quant.files.checkpoint import Checkpoint  # noqa: E402
from quant.inputs.encoder import Encoder  # noqa: E402
from quant.verify.runtime import load_float  # noqa: E402

FAMILIES = {"qwen2vl": EXAMPLES / "tiny-qwen2vl", "llava": EXAMPLES / "tiny-llava"}
SEED = 1  # training saw seed 0 only
both = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """60 questions on 60 images that no model was trained on."""
    return load_questions(data.write_set(tmp_path_factory.mktemp("unseen"), 60, SEED)).questions


def right(directory: Path, int8: bool, questions) -> float:
    """Percent of the questions answered to the letter, greedily, by the pipeline's own float or int8 runtime."""
    model = LocalModel(directory, int8, max_new_tokens=8)
    return 100 * np.mean([model.answer(question).strip() == question.answers[0] for question in questions])


# --- the drawn data


def test_a_sample_depends_on_seed_and_index_alone():
    first = data.draw(SEED, 7)
    data.draw(SEED, 8)
    again = data.draw(SEED, 7)
    assert first.image.tobytes() == again.image.tobytes() and (first.text, first.colour, first.spans) == (
        again.text,
        again.colour,
        again.spans,
    )
    assert first.image.tobytes() != data.draw(SEED, 8).image.tobytes()
    assert first.image.tobytes() != data.draw(SEED + 1, 7).image.tobytes()


def test_samples_cover_what_the_description_promises():
    samples = [data.draw(SEED, index) for index in range(300)]
    assert {sample.colour for sample in samples} == set(data.COLOURS)
    assert {len(sample.text) for sample in samples} == set(range(data.SHORTEST, data.LONGEST + 1))
    assert set("".join(sample.text for sample in samples)) == set(data.ALPHABET)
    for sample in samples:
        assert sample.image.size == (data.WIDTH, data.HEIGHT) and sample.image.mode == "RGB"
        assert all(0 <= left < right <= data.WIDTH for left, right in sample.spans)
        assert len(sample.spans) == len(sample.text)


def test_where_a_character_is_said_to_be_there_is_ink():
    """Column contrast inside a character's span is larger than in the margins."""
    for index in range(40):
        sample = data.draw(SEED, index)
        spread = np.asarray(sample.image, float).mean(2).std(0)  # [WIDTH] over the height
        inside = [spread[round(left) : round(right)].max() for left, right in sample.spans]
        outside = np.r_[spread[: max(0, round(sample.spans[0][0]) - 4)], spread[round(sample.spans[-1][1]) + 4 :]]
        assert not len(outside) or min(inside) > np.median(outside), f"image {index}: {sample.text}"


def test_the_evaluation_set_is_what_quant_reads_and_is_never_written_over(tmp_path):
    listing = data.write_set(tmp_path / "set", 6, SEED)
    rows = [json.loads(line) for line in listing.read_text().splitlines()]
    assert len(rows) == 6 and [row["prompt"] for row in rows[:5]] == [prompt for prompt, _ in data.QUESTIONS]
    sample = data.draw(SEED, 0)
    assert rows[0]["answers"] == [sample.text] and rows[4]["answers"] == [data.draw(SEED, 4).colour]
    assert np.array_equal(np.asarray(data.Image.open(listing.parent / rows[0]["image"])), np.asarray(sample.image))
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        data.write_set(tmp_path / "set", 6, SEED)


# --- the training script's shortcuts


def test_batched_qwen_tower_is_the_module_s_own_forward():
    model, pixels = load_float(FAMILIES["qwen2vl"], "cpu")[0].float(), torch.randn(3, 56, 112, 3)
    eyes = train.QwenEyes(model)
    frames = eyes.patches(pixels).view(96, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1).reshape(96, -1)
    with torch.no_grad():
        expected = model.model.visual(frames, torch.tensor([[1, 4, 8]] * 3))
        expected = getattr(expected, "pooler_output", expected)  # transformers 5 wraps it
        got = eyes(pixels).reshape(24, 256)
    assert (got - expected).norm() < 1e-4 * expected.norm()


@both
def test_prompts_of_training_are_the_processor_s(family):
    encoder, tokens = Encoder(FAMILIES[family]), {"qwen2vl": 8, "llava": 36}[family]
    writer = train.Writer(hub.KINDS[family], FAMILIES[family], tokens)
    for (prompt, _), ids in zip(data.QUESTIONS, writer.prompts):
        assert encoder(data.draw(SEED, 0).image, prompt)["input_ids"][0].tolist() == ids


@both
def test_every_character_of_an_answer_is_one_token(family):
    writer = train.Writer(hub.KINDS[family], FAMILIES[family], 1)
    assert len(writer.tokenizer(data.ALPHABET, add_special_tokens=False)["input_ids"]) == len(data.ALPHABET)
    assert all(len(writer.tokenizer(colour, add_special_tokens=False)["input_ids"]) == 1 for colour in data.COLOURS)


# --- the files


@both
def test_files_are_small_and_hold_exactly_the_model(family):
    folder = FAMILIES[family]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000
    model, report = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report  # missing, unexpected, misshapen
    assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{hub.KINDS[family].dtype}"}


@both
def test_side_files_are_what_the_script_writes(family, tmp_path):
    hub.write_side_files(hub.KINDS[family], tmp_path)
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    shipped = {file.name: file.read_text() for file in FAMILIES[family].iterdir() if file.name != "model.safetensors"}
    assert shipped == written


def test_qwen_has_the_head_sizes_that_servers_want():
    config = json.loads((FAMILIES["qwen2vl"] / "config.json").read_text())
    vision = config["vision_config"]
    assert (vision["embed_dim"], vision["num_heads"], config["hidden_size"]) == (160, 2, 256)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)


# --- what they can do, and what outlier channels do to them


@both
def test_reads_unseen_images_and_int8_needs_suppression(family, questions, tmp_path):
    """On 500 images the figures are in examples/README.md; 60 suffice to see which side of the limits they are on."""
    source = FAMILIES[family]
    reads = right(source, False, questions)
    assert reads >= 90
    data.write_set(tmp_path / "drawn", 16, SEED + 1)
    (tmp_path / "drawn" / "questions.jsonl").unlink()
    for method, largest_drop in (("m2", 5), ("m4", 5), ("none", None)):
        config = QuantConfig(anti_method=method, prompt="What is written?")
        Calibrator(source, config, tmp_path / "drawn").run(tmp_path).save(tmp_path / method, save_type=["ascendV1"])
        drop = reads - right(tmp_path / method, True, questions)
        assert drop >= 10 if largest_drop is None else drop <= largest_drop, f"{method}: {drop:.1f} points below float"


@both
def test_a_rescale_by_a_power_of_two_changes_no_bit_of_the_output(family):
    model, encoder = load_float(FAMILIES[family], "cpu")
    inputs = encoder(data.draw(SEED, 0).image, data.QUESTIONS[0][0])
    checkpoint = Checkpoint(FAMILIES[family])
    tensors = {name: checkpoint.load(name) for name in checkpoint.tensors}
    for norm, linears in outliers.groups(tensors, family):
        outliers.rescale(tensors, norm, linears, torch.arange(9), 0.5)
    with torch.no_grad():
        before = model(**inputs).logits
        changed = 0
        for name, parameter in model.named_parameters():
            tensor = tensors[hub.hub_name(hub.KINDS[family], name)].to(parameter.dtype)
            changed += not torch.equal(tensor, parameter)
            parameter.copy_(tensor)
        assert changed > 10 and torch.equal(model(**inputs).logits, before)


def test_a_factor_that_would_round_is_refused():
    with pytest.raises(ValueError, match="powers of two"):
        outliers.add_outliers({}, "qwen2vl", 3.0, 4)
