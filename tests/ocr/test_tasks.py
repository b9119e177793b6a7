"""What images become, what outputs mean, how answers are scored: by hand, and against the published decoders."""

import importlib.util

import cv2
import numpy as np
import pytest

from quant.base.errors import UsageError
from quant.onnx.scores import Reader
from quant.onnx.tasks import TASKS, Signature, task_of
from quant.onnx.tasks.layout import Layout
from quant.onnx.tasks.table import plain, teds, vocabulary
from quant.onnx.tasks.task import Prepared

IMAGE = {"x": (0, 3, 0, 0)}
SHAPES = {
    "det": {"y": (0, 1, 0, 0)},
    "rec": {"y": (0, 0, 7)},
    "cls": {"y": (0, 2)},
    "table": {"loc": (0, 501, 4), "words": (0, 501, 30)},
}


def oracle(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SHAPES)
def test_the_task_is_seen_from_the_outputs(name):
    assert task_of(Signature(IMAGE, SHAPES[name]), None, "m").name == name


def test_a_task_that_does_not_fit():
    with pytest.raises(UsageError, match=r"--task rec: one output .*; --task det fits"):
        task_of(Signature(IMAGE, SHAPES["det"]), "rec", "m")
    with pytest.raises(UsageError, match="are of no known task"):
        task_of(Signature(IMAGE, {"y": (1, 2, 3, 4, 5)}), None, "m")
    with pytest.raises(UsageError, match="7 classes, the list of 9 characters makes 11"):
        task_of(Signature(IMAGE, SHAPES["rec"], tuple("abcdefghi")), "rec", "m")


def blobs(seed):
    """A map of probabilities with lines in it, some thin, some pale, some turned."""
    random, image = np.random.default_rng(seed), np.zeros((160, 224), np.float32)
    for number in range(8):
        centre = (float(random.uniform(20, 200)), float(10 + 18 * number))
        box = cv2.boxPoints(
            (centre, (float(random.uniform(8, 90)), float(random.uniform(2, 12))), float(random.uniform(-8, 8)))
        )
        cv2.fillPoly(image, [box.astype(np.int32)], float(random.uniform(0.4, 1)))
    return cv2.GaussianBlur(image, (3, 3), 0)


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_those_of_the_published_decoder(published, seed):
    theirs = oracle(published["rapidocr_det.py"]).DBPostProcess(thresh=0.3, box_thresh=0.6, unclip_ratio=1.5)
    chances = blobs(seed)
    expected, _ = theirs(chances[None, None], (320, 448))
    given = TASKS["det"].answer([chances[None, None]], Prepared({}, 320, 448), Signature(IMAGE, {}))
    np.testing.assert_array_equal(np.array(given), expected)


def test_text_is_that_of_the_published_decoder(published):
    words = list("天地玄黄宇宙洪荒abc")
    theirs = oracle(published["rapidocr_rec.py"]).CTCLabelDecode(character=list(words))
    chances = np.random.default_rng(0).random((1, 60, len(words) + 2)).astype(np.float32)
    chances[0, ::2, 0] += 1
    expected = theirs(chances)[0][0]
    assert TASKS["rec"].answer([chances], Prepared({}, 1, 1), Signature(IMAGE, {}, tuple(words))) == expected


def test_tables_are_those_of_the_published_decoder(published):
    words = ["<thead>", "<tr>", "<td>", "</td>", "</tr>", "</thead>", "<td", ">", ' colspan="2"']
    theirs = oracle(published["rapid_table.py"]).TableLabelDecode(list(words))
    chances = np.random.default_rng(1).random((1, 40, len(vocabulary(tuple(words))))).astype(np.float32)
    expected = theirs({"structure_probs": chances, "loc_preds": np.zeros((1, 40, 4))}, [np.ones((1, 6))])
    given = TASKS["table"].answer(
        [np.zeros((1, 40, 4)), chances], Prepared({}, 1, 1), Signature(IMAGE, {}, tuple(words))
    )
    assert given == expected["structure_batch_list"][0][0]


def test_detection_is_scored_one_to_one():
    box = lambda x, y, text="a": {"points": [[x, y], [x + 10, y], [x + 10, y + 4], [x, y + 4]], "transcription": text}
    corners = lambda x, y: np.array(box(x, y)["points"])
    tally = TASKS["det"].tally
    labels = [box(0, 0), box(20, 0), box(0, 20, "###")]
    # right; twice the same; shifted by half, IoU 1/3; in what is to be ignored
    answers = [corners(0, 0), corners(0, 0), corners(25, 0), corners(0, 20)]
    np.testing.assert_array_equal(tally(answers, labels), [1, 3, 2])
    np.testing.assert_allclose(TASKS["det"].points(np.array([1, 3, 2]))["hmean"], 40)
    assert TASKS["det"].points(tally([], []))["hmean"] == 0


def test_text_is_scored_without_spaces():
    np.testing.assert_allclose(TASKS["rec"].tally("a bcd", "ab cd"), [1, 1, 1])
    np.testing.assert_allclose(TASKS["rec"].tally("abxd", "abcd"), [0, 0.75, 1])


def test_tables_are_scored_by_edits_of_trees():
    row = lambda cells: ["<tr>", *["<td>", "</td>"] * cells, "</tr>"]
    table = lambda *rows: ["<tbody>", *(token for cells in rows for token in row(cells)), "</tbody>"]
    assert teds(plain(table(2, 2)), plain(table(2, 2))) == 1
    # table, tbody, 2 tr, 4 td: one cell less is one edit of 8
    assert teds(plain(table(2, 2)), plain(table(2, 1))) == pytest.approx(1 - 1 / 8)
    wide = ["<tbody>", "<tr>", "<td", ' colspan="2"', ">", "</td>", "</tr>", "</tbody>"]
    assert plain(wide) == ("<tbody>", "<tr>", "td 2 1") and plain(["<td></td>"]) == ("td 1 1",)
    assert teds(plain(wide), plain(table(1))) == pytest.approx(1 - 1 / 4)
    assert teds((), plain(table(1))) == pytest.approx(1 / 4)


def test_layout_is_coco_s_mean_average_precision():
    box = lambda x, score=1.0: {"bbox": [x, 0, 50, 40], "class": 1, "score": score}
    task = Layout()
    perfect = [task.tally([box(0), box(100)], [box(0), box(100)])]
    assert task.score(perfect)["mAP"] == pytest.approx(100)
    # one of two found: precision 1 up to recall 0.5, of 101 points 51
    assert task.score([task.tally([box(0)], [box(0), box(100)])])["mAP"] == pytest.approx(100 * 51 / 101)
    # IoU 40 / 60 = 2/3 passes 4 of 10 thresholds
    assert task.score([task.tally([box(10)], [box(0)])])["mAP"] == pytest.approx(40)
    assert task.score([task.tally([], [box(0)])])["mAP"] == 0
    reader = Reader(task, Signature({}, {}))
    assert reader.interval(np.array(perfect), np.array(perfect)) == (0, 0)


def test_formulas():
    task, words = TASKS["formula"], ("<s>", "</s>", "<pad>", "\\frac", "\u0120x", "2")
    said = task.answer([np.array([[0, 3, 4, 5, 1, 5]])], Prepared({}, 1, 1), Signature(IMAGE, {}, words))
    assert said == "\\frac x2"
    np.testing.assert_allclose(task.tally("a b", "ab"), [1, 1, 1])
    image = np.full((60, 200, 3), 255, np.uint8)
    image[20:30, 50:150] = 0
    feeds = task.prepare(image, Signature({"x": (1, 1, 384, 384)}, {})).feeds
    assert feeds["x"].shape == (1, 1, 384, 384) and feeds["x"][0, 0, 192].min() < -4


def test_images_become_inputs():
    image = np.random.default_rng(0).integers(0, 255, (50, 130, 3), np.uint8)
    shape = lambda name, size=IMAGE: TASKS[name].prepare(image, Signature(size, {})).feeds["x"].shape
    assert shape("det") == (1, 3, 64, 128) and shape("rec") == (1, 3, 48, 320) and shape("cls") == (1, 3, 48, 192)
    assert shape("table") == (1, 3, 488, 488) and shape("cls", {"x": (0, 3, 224, 224)}) == (1, 3, 224, 224)
    assert shape("rec", {"x": (1, 3, 32, 100)}) == (1, 3, 32, 100) and shape("det", {"x": (1, 3, 96, 96)}) == (
        1,
        3,
        96,
        96,
    )
    wide = np.zeros((20, 300, 3), np.uint8)
    line = TASKS["rec"].prepare(wide, Signature(IMAGE, {})).feeds["x"]
    assert line.shape == (1, 3, 48, 720) and (line == -1).all()
    padded = TASKS["rec"].prepare(image, Signature(IMAGE, {})).feeds["x"]
    assert (padded[..., 125:] == 0).all() and abs(padded[..., :125].mean()) < 0.2


def test_the_interval_is_paired():
    reader = Reader(TASKS["cls"], Signature({}, {}))
    one = np.array([[number % 2, 1] for number in range(400)], float)
    assert reader.interval(one, one) == (0, 0)
    other = one.copy()
    other[:20, 0] = 0
    low, high = reader.interval(one, other)
    assert low < -2.5 < high < 0 and high - low < 3.5
