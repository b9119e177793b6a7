"""NPUs, by a stand-in for torch_npu: there is none here. What it is asked for is what torch_npu documents."""

import json
import os
import sys
import types

import pytest
import tiny
import torch
from jobs import run_job

from quant import Calibrator, QuantConfig, UsageError
from quant.base.console import Reporter
from quant.calibrate.summary import summary
from quant.model.device import compute_dtype, distributed_backend, peak_on_card, pick_device, use_card, workers_of


@pytest.fixture
def npus(monkeypatch):
    """Four NPUs of the 910 series."""
    stand_in = types.SimpleNamespace(
        name="Ascend910B3",
        chosen=[],
        is_available=lambda: True,
        device_count=lambda: 4,
        get_device_name=lambda number: stand_in.name,
    )
    stand_in.set_device = stand_in.chosen.append
    monkeypatch.setitem(sys.modules, "torch_npu", types.ModuleType("torch_npu"))
    monkeypatch.setattr(torch, "npu", stand_in, raising=False)
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("PYTORCH_NPU_ALLOC_CONF", raising=False)
    return stand_in


def test_the_npu_is_taken_where_there_is_one(npus):
    assert pick_device(None) == pick_device("npu") == "npu"
    assert compute_dtype(torch.float16, "npu") == torch.float16
    assert [distributed_backend(device) for device in ("npu", "cuda", "cpu")] == ["hccl", "nccl", "gloo"]


def test_a_worker_for_each_card_that_was_named(npus, monkeypatch):
    assert workers_of("npu", None) == 1, "others may use the host's other cards"
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1,5")
    assert workers_of("npu", None) == 3 and workers_of("npu", 2) == 2 and workers_of("npu", 1) == 1
    assert os.environ["PYTORCH_NPU_ALLOC_CONF"] == "expandable_segments:False"
    with pytest.raises(
        UsageError, match=r"5 workers were asked for, 4 npu cards are visible; set ASCEND_RT_VISIBLE_DEVICES"
    ):
        workers_of("npu", 5)
    use_card("npu", 2)
    assert npus.chosen == [2]


def test_an_allocator_that_the_vendor_advises_against_is_refused(npus, monkeypatch):
    monkeypatch.setenv("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True")
    assert workers_of("npu", 1) == 1
    with pytest.raises(
        UsageError,
        match=(
            r"PYTORCH_NPU_ALLOC_CONF is expandable_segments:True: on several NPUs it must be expandable_segments:False"
        ),
    ):
        workers_of("npu", 2)


def test_several_cards_of_a_300i_duo_are_refused_and_one_is_not(npus):
    npus.name = "Ascend310P3"
    with pytest.raises(
        UsageError,
        match=(
            r"Ascend310P3: several of these cards cannot quantize together, only one can; set ASCEND_RT_VISIBLE_DEVICES"
            r" to one card"
        ),
    ):
        workers_of("npu", 2)
    assert workers_of("npu", None) == 1


def test_cpu_workers_are_asked_for():
    assert workers_of("cpu", None) == 1 and workers_of("cpu", 3) == 3


def test_what_tensors_took_on_the_card(npus):
    npus.max_memory_allocated = lambda: 3_210_000_000
    assert (peak_on_card("npu"), peak_on_card("cpu")) == (3_210_000_000, None)


@pytest.mark.parametrize("card", [3_210_000_000, None])
def test_what_tensors_took_on_the_card_is_recorded_and_said(monkeypatch, tmp_path, capsys, card):
    """On a CPU, told that there was a card: a run cannot go on a stand-in."""
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 2)
    monkeypatch.setattr("quant.calibrate.record.peak_on_card", lambda device: card)
    monkeypatch.setattr("quant.calibrate.summary.peak_on_card", lambda device: card)
    calibrator = Calibrator(source, QuantConfig(anti_method="none", dev_type="cpu"), images, Reporter())
    target = run_job(calibrator, tmp_path / "out")
    summary(calibrator, target)
    assert json.loads((target / "quant_run.json").read_text())["peak_card_bytes"] == card
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("time "))
    assert line.endswith(", on the card 3.21 GB") == bool(card) and len(line) <= 80
