"""samples: what a process keeps of the calibration inputs, alone and as one of several."""

import weakref

import pytest
import tiny
import torch

from quant import Calibrator, QuantConfig
from quant.calibrate.ranks import Ranks
from quant.inputs import samples
from quant.inputs.encoder import Encoder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    return tiny.make(root / "src", "qwen2_vl"), tiny.make_images(root / "images", 5)


@pytest.fixture
def held(monkeypatch):
    """held.before: how many samples' pixels are in memory when the next sample is encoded, call by call; held.now():
    how many are now.
    """

    class Held:
        before, pixels = [], []

        def now(self):
            return sum(reference() is not None for reference in self.pixels)

    watch, original = Held(), Encoder.encode_sample

    def encode_sample(self, sample):
        watch.before.append(watch.now())
        inputs = original(self, sample)
        watch.pixels.append(weakref.ref(inputs["pixel_values"]))
        return inputs

    monkeypatch.setattr(Encoder, "encode_sample", encode_sample)
    monkeypatch.setattr(samples, "held_out", lambda encoder, seed: [])  # a few more, on the first rank alone
    return watch


def entered(world, ranks):
    """The Calibrator of a process, and the samples that it runs through the model."""
    calibrator = Calibrator(world[0], QuantConfig(calib_text="none", dev_type="cpu"), world[1])
    calibrator.ranks = ranks
    calibrator.prepare()
    return calibrator, calibrator.own_samples()


def test_a_rank_of_several_holds_its_own_pixels_only(world, held):
    _calibrator, own = entered(world, Ranks(1, 2))
    assert 0 < len(own) < 5
    assert held.now() == len(own)
    assert held.before == [0] * 5 + list(range(len(own))), "its share, and the one that is being encoded"


def test_the_ranks_together_have_what_one_has(world, held):
    alone = Calibrator(world[0], QuantConfig(calib_text="none", dev_type="cpu"), world[1])
    alone.prepare()
    assert len(held.before) == 5, "one process encodes every sample once"
    shares = [entered(world, Ranks(rank, 3)) for rank in (1, 2)]
    costs = [inputs["image_grid_thw"].prod() + inputs["input_ids"].numel() for inputs in alone.samples.inputs]
    for rank, (calibrator, own) in zip((1, 2), shares):
        assert list(own) == Ranks(rank, 3).share([int(cost) for cost in costs])
        assert calibrator.samples.keys == alone.samples.keys
        for number, inputs in own.items():
            assert inputs.keys() == alone.samples.inputs[number].keys()
            assert all(torch.equal(tensor, alone.samples.inputs[number][name]) for name, tensor in inputs.items())


def test_held_out_samples_are_on_the_first_rank_alone(world):
    for rank in (0, 1):
        calibrator, own = entered(world, Ranks(rank, 2))
        fitted = [number for number in own if number < 5]
        assert fitted == [number for number in own if number < len(calibrator.samples.keys)] and fitted
        assert len(own) - len(fitted) == len(calibrator.samples.held_out)
        assert bool(calibrator.samples.held_out) == (rank == 0)
        pictures = ["pixel_values" in inputs for inputs in calibrator.samples.held_out]
        assert sum(pictures) == (rank == 0) and len(pictures) > 2 or rank
