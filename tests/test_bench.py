"""What bench/ measures with: the operations it counts, the processes it times, the inputs it makes, the table it
writes.
"""

import json
import resource
import sys

import pytest
import tiny
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bench import bench, tables
from bench.machine import Machine, forward_operations
from bench.processes import measure
from bench.work import checkpoint, photographs
from quant.base.config import QuantConfig
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.inputs.samples import prepare


def test_operations_are_those_that_torch_counts(tmp_path):
    source, images = tiny.make(tmp_path / "src", "qwen2_vl", dtype="float32"), tiny.make_images(tmp_path / "images", 2)
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()  # it does not count sdpa's
    found = Checkpoint(source)
    inputs = prepare(images, found, family_of(found.config, source), QuantConfig(calib_text="none")).inputs
    towers = (model.model.visual.blocks, model.model.language_model.layers)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        for sample in inputs:
            model(**sample)
    counts = counter.get_flop_counts()
    names = {module: name for name, module in model.named_modules()}
    blocks = [f"{type(model).__name__}.{names[block]}" for tower in towers for block in tower]
    expected = sum(sum(counts[name].values()) for name in blocks)
    assert forward_operations(source, images) == pytest.approx(expected, rel=1e-6)


def test_the_bound_is_the_slowest_of_three_and_the_imports():
    machine = Machine("x", 2, matmul=1e12, matmul_int8=2e12, read=1e9, write=1e8, imports=3.0)
    assert machine.bound(operations=5e12, read=1e9, written=1e8) == 8.0
    assert machine.bound(operations=5e12, read=9e9, written=1e8) == 12.0
    assert machine.bound(operations=5e12, read=1e9, written=2e9) == 23.0


def test_a_process_is_measured(tmp_path):
    took = measure([sys.executable, "-c", "import time; x = bytearray(200_000_000); time.sleep(0.3)"], tmp_path / "log")
    # Linux counts the peak of the process that starts another as the other's, too; and here that has run other tests.
    most = max(2e9, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert 0.3 < took.seconds < 20 and 200e6 < took.peak <= most and 0 < took.cpu < 20
    with pytest.raises(SystemExit, match="exit 3 of .*\nno such thing"):
        measure([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"], tmp_path / "log")


def test_photographs_are_of_one_size_and_no_two_alike(tmp_path):
    from PIL import Image

    folder = photographs(tmp_path, 30)
    pictures = [Image.open(file) for file in sorted(folder.iterdir())]
    assert {picture.size for picture in pictures} == {(640, 480)} and len(
        {picture.tobytes() for picture in pictures}
    ) == 30
    with pytest.raises(ValueError, match="1000 photographs were asked for, 52 can be made"):
        photographs(tmp_path, 1000)


def test_checkpoints_are_made_once(tmp_path):
    made = checkpoint(tmp_path, "qwen2vl-tiny", 1)
    stamps = {file: file.stat().st_mtime_ns for file in made.iterdir()}
    assert checkpoint(tmp_path, "qwen2vl-tiny", 1) == made and stamps == {
        file: file.stat().st_mtime_ns for file in made.iterdir()
    }
    assert Checkpoint(made).config["num_hidden_layers"] == 1


def test_table_and_plots_of_a_run_on_a_tiny_model(tmp_path, monkeypatch):
    """The parts that need no peer, on a tiny model in place of the 2B."""
    monkeypatch.setattr(
        bench, "checkpoint", lambda directory, size, blocks=None: checkpoint(directory, "qwen2vl-tiny", blocks)
    )
    plan = {
        "blocks": 1,
        "images": 2,
        "rounds": 1,
        "scale_images": (2, 3),
        "scale_blocks": (1, 2),
        "memory": (("qwen2vl-2b", 1), ("qwen2vl-7b", None)),
    }
    machine = Machine("a processor", 2, 1e12, 2e12, 1e9, 1e8, 3.0)
    runs = bench.Bench(tmp_path, plan, "cpu", machine)
    results = {
        "machine": vars(machine),
        "full qwen2vl-2b": runs.whole("qwen2vl-2b", 2),
        "scaling": runs.scaling(),
        "memory": runs.memory(),
    }
    times = zip(("ours m2", "ours m4", *bench.PEERS), (2.0, 1.0, 60.0, 8.0, 12.0))
    results["peers"] = {
        "programs": {name: {"seconds": seconds, "peak": 10**9, "rounds": [seconds]} for name, seconds in times},
        "bound": 0.5,
    }
    json.dumps(results)
    table = tables.markdown(results)
    for line in (
        "| msmodelslim m2 / ours m2 | 30.0 | 120.0 |",
        "| msmodelslim m4 / ours m4 | 8.0 | 16.0 |",
        "| llm-compressor / ours m2 | 6.0 | 24.0 |",
        "| the machine's bound for ours | 0.5 s | | |",
        "| photographs | 2 | 3 |",
        "| qwen2vl-2b, 1 + 1 blocks |",
        "| qwen2vl-7b, all blocks |",
    ):
        assert line in table
    assert results["full qwen2vl-2b"]["steps"].keys() == {"observe", "smooth", "round", "measure"}
    assert "on the card" not in table
    results["full qwen2vl-2b"] |= {"card": 7_000_000_000, "peak": 2_000_000_000}
    assert "| peak memory | 2.00 GB, on the card 7.00 GB |" in tables.markdown(results)
    tables.plots(results, tmp_path)
    assert (tmp_path / "time.png").read_bytes()[:4] == (tmp_path / "memory.png").read_bytes()[:4] == b"\x89PNG"
