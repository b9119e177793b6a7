"""samples: what a process keeps of the calibration inputs, alone and as one of several."""

import weakref

import pytest
import tiny
import torch

from quant import Calibrator, QuantConfig
from quant.calibrate.loop import TowerRun
from quant.calibrate.ranks import Ranks
from quant.calibrate.resume import Work
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
    return watch


def entered(world, tmp_path, monkeypatch, ranks):
    """The Calibrator and the TowerRun of a process, ready to run."""
    runs = []
    monkeypatch.setattr(TowerRun, "run", lambda self: runs.append(self))
    calibrator = Calibrator(world[0], QuantConfig(dev_type="cpu"), world[1])
    calibrator.ranks = ranks
    calibrator.run(work=Work(tmp_path, keeps=True))
    return calibrator, runs[0]


def test_a_rank_of_several_holds_its_own_pixels_only(world, tmp_path, monkeypatch, held):
    _calibrator, run = entered(world, tmp_path, monkeypatch, Ranks(1, 2))
    assert 0 < len(run.inputs) < 5
    assert held.now() == len(run.inputs)
    assert held.before == [0] * 5 + list(range(len(run.inputs))), "its share, and the one that is being encoded"


def test_the_ranks_together_have_what_one_has(world, tmp_path, monkeypatch, held):
    alone = Calibrator(world[0], QuantConfig(dev_type="cpu"), world[1])
    alone.prepare()
    assert len(held.before) == 5, "one process encodes every sample once"
    shares = [entered(world, tmp_path / str(rank), monkeypatch, Ranks(rank, 3)) for rank in (1, 2)]
    costs = [inputs["image_grid_thw"].prod() + inputs["input_ids"].numel() for inputs in alone.samples.inputs]
    for rank, (_, run) in zip((1, 2), shares):
        assert list(run.inputs) == Ranks(rank, 3).share([int(cost) for cost in costs])
        assert run.keys == alone.samples.keys
        for number, inputs in run.inputs.items():
            assert inputs.keys() == alone.samples.inputs[number].keys()
            assert all(torch.equal(tensor, alone.samples.inputs[number][name]) for name, tensor in inputs.items())
