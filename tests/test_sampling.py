"""Text that the float model writes: seeded, the same in any batch, free of special tokens, of its own distribution."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from quant.base.errors import QuantError, UsageError
from quant.calibrate import own_text, sampling
from quant.calibrate.sampling import Writer, padded, special_tokens
from quant.files.checkpoint import Checkpoint
from quant.inputs.encoder import Encoder
from quant.inputs.images import open_image
from quant.inputs.written import Written, is_written, read_written
from quant.model import whole
from quant.model.device import free_memory
from quant.model.whole import generate, room_for, whole_model

ROOT = Path(__file__).parent.parent
MODELS = ["tiny-qwen2vl", "tiny-llava"]  # small, trained to read: bfloat16, and float16 computed in float32
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "llava"]
TOKENS = 120


class Trained:
    """An example's model, and three pictures with questions of different lengths."""

    def __init__(self, name: str, images):
        self.checkpoint = Checkpoint(ROOT / "examples" / name)
        self.encoder = Encoder(self.checkpoint.dir)
        pictures = [open_image(path) for path in sorted(images.iterdir())]
        self.inputs = {
            f"{words:064x}": lambda picture=picture, words=words: self.encoder(picture, "What is it? " * words)
            for words, picture in enumerate(pictures, 1)
        }

    def writer(self, seed: int = 0, at_once: int = 4) -> Writer:
        return Writer(whole_model(self.checkpoint, "cpu").model, self.encoder, seed, at_once)

    @cached_property
    def written(self):
        """As write() with its defaults."""
        return self.write()

    def write(self, **how):
        """(answers, passages)"""
        writer = self.writer(**how)
        return writer.answers(self.inputs, lambda: None), writer.passages(TOKENS, lambda: None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("images") / "images", 3)


@pytest.fixture(scope="module", params=MODELS)
def trained(request, images):
    return Trained(request.param, images)


def test_seeded_and_the_same_in_any_batch(trained):
    answers, passages = trained.written
    assert (answers, passages) == trained.write()
    assert (answers, passages) == trained.write(at_once=1)
    others = trained.write(seed=1)
    assert others[1] != passages and others[0] != answers and all(answers.values())
    assert sum(map(len, passages)) == TOKENS and len({passage[0] for passage in passages}) > 2
    assert all(len(passage) > sampling.LEAST for passage in passages[:-1]), "none ends before that"


def test_no_special_token_is_written(trained):
    forbidden = special_tokens(trained.encoder)
    assert trained.encoder.image_token_id in forbidden and trained.encoder.tokenizer.eos_token_id in forbidden
    answers, passages = trained.written
    assert answers.keys() == trained.inputs.keys()
    assert not forbidden & {token for ids in (*answers.values(), *passages) for token in ids}


def test_progress_reaches_its_end(trained):
    steps = []
    trained.writer().answers({**trained.inputs, "one of no use": lambda: None}, lambda: steps.append(1))
    assert len(steps) == 4 * sampling.ANSWER
    trained.writer().passages(TOKENS, lambda: steps.append(1))
    assert len(steps) == 4 * sampling.ANSWER + TOKENS


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_have_the_logits_of_single_ones(tmp_path, images, family):
    """Positions, masks and pictures of a batch: against each sample alone, at the prompt's end and four tokens on."""
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", family, dtype="float32"))
    encoder, model = Encoder(checkpoint.dir), whole_model(checkpoint, "cpu").model
    made = [encoder(open_image(path), "word " * 7 * number) for number, path in enumerate(sorted(images.iterdir()), 1)]
    assert len({inputs["input_ids"].shape[1] for inputs in made}) == 3

    def logits(inputs):
        seen = []

        def processor(ids, scores):
            seen.append(scores.clone())
            only = torch.full_like(scores, -torch.inf)
            only[:, 5 + len(seen)] = 0.0
            return only

        class Processor:  # transformers looks at the signature of a class's __call__
            def __call__(self, ids, scores):
                return processor(ids, scores)

        generate(model, inputs, max_new_tokens=5, do_sample=False, logits_processor=[Processor()])
        return torch.stack(seen, 1)

    together, alone = logits(padded(made, 0)), torch.cat([logits(inputs) for inputs in made])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone[0], alone[1], rtol=1e-2, atol=1e-2), "or the comparison says nothing"


def test_tokens_are_drawn_from_the_softmax_of_the_logits():
    """40,000 draws against p; a token that is not allowed is never drawn, one that ends only behind the least."""
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 3.0, 0.5])
    ordinary, ends, count = [0, 2, 3, 5], {4}, 40000
    for least, allowed in ((0, [0, 2, 3, 4, 5]), (1, ordinary)):
        numbers = [torch.Generator().manual_seed(number) for number in range(count)]
        draw = sampling._Draw(numbers, ordinary, ends, least, lambda: None)
        drawn = draw(torch.zeros(count, 1), logits.expand(count, -1)).argmax(-1)
        wanted = torch.zeros(6)
        wanted[allowed] = logits[allowed].softmax(-1)
        found = torch.bincount(drawn, minlength=6) / count
        assert (found[wanted == 0] == 0).all()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.01)


def test_logits_that_are_not_finite_are_an_error():
    draw = sampling._Draw([torch.Generator()], [0, 1], set(), 0, lambda: None)
    with pytest.raises(QuantError, match="not finite at token 1"):
        draw(torch.zeros(1, 1), torch.tensor([[0.0, torch.nan]]))


def test_over_several_cards_the_model_writes_the_same(trained, monkeypatch):
    """accelerate's own split and hooks, with two names of the host as cards, of which one does not hold the model."""
    size = sum(info.nbytes for info in trained.checkpoint.tensors.values())
    moved = []
    place = whole.StreamedModel.set
    monkeypatch.setattr(
        whole.StreamedModel, "set", lambda self, name, value: (moved.append(str(self.device)), place(self, name, value))
    )
    # Of the host accelerate takes "cpu:1" for another place than "cpu".
    monkeypatch.setattr("accelerate.utils.modeling.check_device_same", lambda one, other: one.type == other.type)
    factor = 2 if trained.checkpoint.dtype == torch.float16 else 1
    spread = whole_model(trained.checkpoint, "cpu", cards={0: factor * size * 2 // 3, 1: factor * size}).model
    assert set(moved) == {"cpu:0", "cpu:1"} and any(hasattr(module, "_hf_hook") for module in spread.modules())
    assert Writer(spread, trained.encoder, 0).passages(TOKENS, lambda: None) == trained.written[1]
    with pytest.raises(QuantError, match="fit none of the 2 cards, which have 2 kB free"):
        whole_model(trained.checkpoint, "cpu", cards={0: 1000, 1: 1000})


def test_what_does_not_fit_says_both_numbers(trained, monkeypatch):
    assert room_for(trained.checkpoint, "cpu") is None and free_memory("cpu")[0] > 2**20
    monkeypatch.setattr(whole, "free_memory", lambda device: {1: 4_000_000, 0: 5_000_000})
    assert room_for(trained.checkpoint, "cpu", 2_500_000, spread=True).endswith("9 MB are available on 2 cards")
    needed = whole.needed_memory(trained.checkpoint, "cpu") / 1e6
    assert room_for(trained.checkpoint, "cpu") == f"the whole model takes {needed:.3g} MB, 4 MB are available"
    monkeypatch.setattr(whole, "free_memory", lambda device: {})
    assert room_for(trained.checkpoint, "cpu", 10**15) is None


def test_the_file_gives_back_what_was_written(trained, tmp_path):
    answers, passages = trained.written
    written = Written(answers, tuple(passages))
    file = tmp_path / "calibration_text.jsonl"
    file.write_bytes(written.lines(trained.encoder.raw))
    assert is_written(file) and read_written(file, trained.encoder.raw) == written
    assert written.tokens == sum(map(len, answers.values())) + TOKENS
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [len(row["ids"]) for row in rows if "answer_to" not in row] == [len(ids) for ids in passages]


@pytest.mark.parametrize(
    "line, error",
    [
        (
            '{"ids": [3, 4], "text": "something else"}',
            "and its text is 'something else'; it was written by another model",
        ),
        ('{"ids": [], "text": ""}', "ids must be numbers of tokens"),
        ('{"ids": [-1], "text": ""}', "ids must be numbers of tokens"),
        ('{"ids": [99999999999999999999], "text": ""}', "calibration_text.jsonl:1: "),
        ('{"text": "ids are missing"}', "is not a line of calibration_text.jsonl"),
        ("[1, 2]", "is not a line of calibration_text.jsonl"),
    ],
)
def test_a_line_that_is_none_is_refused_with_its_number(trained, tmp_path, line, error):
    file = tmp_path / "calibration_text.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(UsageError, match=error):
        read_written(file, trained.encoder.raw)


def test_what_the_keys_and_values_take_is_counted(trained):
    """Against the cache that the model itself makes."""
    model = whole_model(trained.checkpoint, "cpu").model
    inputs = trained.encoder(None, None, tuple(range(3, 12)))
    with torch.inference_mode():
        cache = model(**inputs, use_cache=True).past_key_values
    layers = cache.layers if hasattr(cache, "layers") else cache
    made = sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))
    tokens = inputs["input_ids"].shape[1]
    wanted = own_text._cache(trained.checkpoint, "cpu") * tokens / (own_text.TOKENS * sampling.AT_ONCE)
    assert made == pytest.approx(wanted) and np.isfinite(wanted)
