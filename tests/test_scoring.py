"""OCRBench's rule against a plain transcription of the published one, the data files, and the bootstrap against
resampled pairs.
"""

import base64
import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quant.base.errors import UsageError
from quant.evaluate.questions import TYPES, Question, QuestionSet, load_questions
from quant.evaluate.scoring import compare, is_right, published, table

TEXT, MATH = TYPES[0], TYPES[-1]


def question(*answers, math=False, category=None):
    return Question("key", "file:1", (b"",), "What is written?", answers, category, math)


def png(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


# ---- the rule


@pytest.mark.parametrize(
    "answer, prediction, right",
    [
        ("CENTRE", "centre", True),  # case
        ("centre", "It says CENTRE.", True),
        ("two words", "two\nwords", True),  # a newline is a space
        ("two\nwords", "Two Words!", True),
        ("  padded \n", "padded", True),
        ("padded", "\n padded\t", True),
        ("two words", "two  words", False),  # inner spaces count
        ("two words", "twowords", False),
        ("two words", "two\n words", False),
        ("12", "3125", True),  # containment, as published
        ("", "", True),  # never read from a file: refused there
        ("abc", "", False),
    ],
)
def test_text(answer, prediction, right):
    assert is_right(question(answer), prediction) is right


@pytest.mark.parametrize(
    "answer, prediction, right",
    [
        (r"\frac { a } { b }", r"\frac{a}{b}", True),  # spaces are nothing
        (r"\frac{a}{b}", "$\\frac {a}\n{b}$", True),  # nor are newlines
        ("X + Y", "x+y", False),  # case counts
        ("x + y", "z=x+y", True),
        ("x\t+y", "x+y", False),  # a tab inside is neither space nor newline
    ],
)
def test_handwritten_math(answer, prediction, right):
    assert is_right(question(answer, math=True), prediction) is right


def test_any_answer_will_do_and_no_answer_is_wrong():
    assert is_right(question("one", "two"), "TWO") and not is_right(question("one", "two"), "three")
    assert not is_right(question("one"), None)
    assert not is_right(question("none"), None)


def test_exact_wants_nothing_else():
    assert is_right(question("A"), " a\n", exact=True)
    assert not is_right(question("A"), "banana", exact=True)
    assert is_right(question("A"), "banana")


letters = st.text(alphabet="aAbB \n\t1+", max_size=6)


@given(answers=st.lists(letters, min_size=1, max_size=3), prediction=letters, math=st.booleans())
def test_agrees_with_the_rule_spelled_out(answers, prediction, math):
    right = False
    for answer in answers:
        a, p = (answer, prediction) if math else (answer.lower(), prediction.lower())
        a, p = a.strip(), p.strip()
        unwanted = {"\n": "" if math else " ", " ": "" if math else " "}
        a, p = ("".join(unwanted.get(c, c) for c in s) for s in (a, p))
        right = right or p.find(a) >= 0
    assert is_right(question(*answers, math=math), prediction) is right


# ---- the table


def test_published_table():
    questions = [question("x", category=category) for category in TYPES for _ in range(2)]
    data = QuestionSet(None, True, tuple(questions))
    rows = table(data, [True, False] * 10)
    assert rows["Text Recognition"] == {"right": 6, "of": 12}
    assert rows["Final Score"] == {"right": 10, "of": 20}
    assert list(published(rows)) == [
        "Text Recognition",
        "Scene Text-centric VQA",
        "Doc-oriented VQA",
        "Key Information Extraction",
        "Handwritten Mathematical Expression Recognition",
        "Final Score",
        "Final Score Norm",
    ]
    assert published(rows)["Final Score Norm"] == 1.0


def test_keys_without_questions_stay_in_the_table():
    rows = table(QuestionSet(None, True, (question("x", category=MATH, math=True),)), [True])
    assert rows["Doc-oriented VQA"] == {"right": 0, "of": 0} and rows["Final Score"] == {"right": 1, "of": 1}


def test_other_data_is_counted_by_category():
    data = QuestionSet(None, False, (question("x", category="b"), question("y"), question("z", category="a")))
    assert table(data, [True, True, False]) == {
        "b": {"right": 1, "of": 1},
        "a": {"right": 0, "of": 1},
        "Right": {"right": 2, "of": 3},
    }


# ---- the difference of two models


def test_flips_and_difference():
    difference = compare([True, True, False, False], [True, False, True, False])
    assert difference.lost == [1] and difference.gained == [2] and difference.points == 0
    assert difference.low < 0 < difference.high


def test_interval_is_that_of_resampled_questions():
    rng = np.random.default_rng(1)
    first = rng.random(300) < 0.85
    second = np.where(rng.random(300) < 0.06, ~first, first)
    difference = compare(first.tolist(), second.tolist(), seed=3)
    steps = second.astype(int) - first.astype(int)
    means = [100 * steps[rng.integers(0, 300, 300)].mean() for _ in range(20_000)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert difference.points == pytest.approx(100 * steps.mean())
    assert difference.low == pytest.approx(low, abs=0.4) and difference.high == pytest.approx(high, abs=0.4)
    assert compare(first.tolist(), second.tolist(), seed=3) == difference


def test_max_drop_counts_whole_answers():
    first, second = [True] * 1000, [True] * 990 + [False] * 10
    assert not compare(first, second).exceeds(1)  # exactly 1 %
    assert compare(first, second[1:] + [False]).exceeds(1)
    assert not compare(second, first).exceeds(0)
    assert not compare([True] * 10, [True] * 3 + [False] * 7).exceeds(0.7 * 100)


def test_nothing_flips():
    difference = compare([True, False], [True, False])
    assert difference.points == 0 and not difference.lost and not difference.gained
    assert difference.low == -difference.high and round(difference.high, 1) == 84.2, "two questions say little"


def test_unlike_or_empty_lists_are_refused():
    with pytest.raises(ValueError):
        compare([True], [True, False])
    with pytest.raises(ValueError, match="no questions"):
        compare([], [])


# ---- the data files


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(png("red" if name == "a" else "blue"))
    return tmp_path


def ocrbench_row(**changes) -> dict:
    return {
        "dataset_name": "IIIT5K",
        "type": TEXT,
        "question": "What?",
        "answers": ["x"],
        "image_path": "a.png",
    } | changes


def write_json(folder, *rows):
    (folder / "data.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return folder / "data.json"


def write_tsv(folder, *rows, columns=("index", "image", "question", "answer", "category")):
    with open(folder / "data.tsv", "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([columns, *rows])
    return folder / "data.tsv"


def write_jsonl(folder, *rows):
    (folder / "data.jsonl").write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return folder / "data.jsonl"


def test_json(folder):
    data = load_questions(
        write_json(
            folder, ocrbench_row(answers="one"), ocrbench_row(dataset_name="HME100k", type=MATH, answers=["x^2", "y"])
        )
    )
    first, second = data.questions
    assert data.ocrbench and first.answers == ("one",) and second.answers == ("x^2", "y")
    assert (
        (first.math, second.math) == (False, True)
        and first.where.endswith("data.json:2")
        and second.where.endswith("data.json:3")
    )
    assert first.data() == [png("red")] and first.open()[0].size == (40, 30)


def test_json_images_elsewhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = write_json(elsewhere, ocrbench_row())
    assert load_questions(file, folder).questions[0].data() == [png("red")]
    with pytest.raises(UsageError, match=r"data.json:2: .*a.png: no such file"):
        load_questions(file)


def test_tsv(folder):
    encoded = base64.b64encode(png()).decode()
    data = load_questions(
        write_tsv(
            folder,
            ["0", encoded, "What?", "['a', \"b's\"]", TEXT],
            ["7", "0", "And\nhere?", "['x']", MATH],
            ["8", encoded, "What?", "plain", TEXT],
        )
    )
    first, second, third = data.questions
    assert first.answers == ("a", "b's") and third.answers == ("plain",)
    assert second.data() == first.data() == [png()] and second.math and not first.math
    assert [question.where.rpartition(":")[2] for question in data.questions] == [
        "2",
        "3",
        "5",
    ]  # the second holds a newline
    assert first.key == third.key != second.key


def test_tsv_answers_are_read_not_run(folder):
    row = ["0", base64.b64encode(png()).decode(), "What?", "[__import__('os').getcwd()]", TEXT]
    with pytest.raises(UsageError, match=r"data.tsv:2: answer is not a list of texts"):
        load_questions(write_tsv(folder, row))


def test_jsonl_and_what_the_digest_depends_on(folder):
    rows = [
        {"image": "a.png", "prompt": "p", "answers": ["x"], "category": "c"},
        {"image": "b.png", "prompt": "p", "answers": "y"},
    ]
    data = load_questions(write_jsonl(folder, rows[0], "", rows[1]))
    assert not data.ocrbench and [question.category for question in data.questions] == ["c", None]
    assert data.questions[1].where.endswith(":3")
    keys = [question.key for question in data.questions]
    changed = load_questions(write_jsonl(folder, rows[0], rows[1] | {"answers": "z"}))
    assert [question.key for question in changed.questions] == keys and changed.digest != data.digest


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", r"not JSON"),
        ("[1]", r"expected an object"),
        ({"image": "a.png", "prompt": "p"}, r'"answers" is missing'),
        ({"image": "a.png", "prompt": "p", "answers": []}, r"the answers must be"),
        ({"image": "a.png", "prompt": "p", "answers": [1]}, r"the answers must be"),
        ({"image": "a.png", "prompt": "p", "answers": ["x", " "]}, r"an answer is empty"),
        ({"image": "a.png", "prompt": "", "answers": "x"}, r"the question must be text"),
        ({"image": "a.png", "prompt": 5, "answers": "x"}, r"the question must be text"),
        ({"image": 5, "prompt": "p", "answers": "x"}, r'"image" must be the path of an image, found 5'),
        ({"image": "a.png", "prompt": "p", "answers": "x", "split": 1}, r'unknown key "split"'),
        ({"image": "c.png", "prompt": "p", "answers": "x"}, r"c.png: no such file"),
        ({"image": "../c.png", "prompt": "p", "answers": "x"}, r"leaves the folder"),
        ({"image": "data.jsonl", "prompt": "p", "answers": "x"}, r"not a PNG, JPEG, WebP or BMP"),
    ],
)
def test_bad_jsonl_lines(folder, row, message):
    good = {"image": "a.png", "prompt": "p", "answers": "x"}
    with pytest.raises(UsageError, match=r"^\S*data\.jsonl:2: .*" + message) as caught:
        load_questions(write_jsonl(folder, good, row, good))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row, message",
    [
        (5, r"expected an object"),
        ({"type": TEXT}, r'"dataset_name" is missing'),
        (ocrbench_row(type="Poetry"), r"'Poetry' is none of OCRBench's types"),
        (ocrbench_row(image_path=5), r'"image_path" must be text'),
        (ocrbench_row(answers=None), r"the answers must be"),
    ],
)
def test_bad_json_rows(folder, row, message):
    with pytest.raises(UsageError, match=r"data\.json:3: .*" + message):
        load_questions(write_json(folder, ocrbench_row(), row))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"data\.json:1: a JSON array"),
        (b'\n{"a": 1}', r"a JSON array"),
        (b"[\n1,\n", r"data\.json:2"),
        (b"[]", r"holds no question"),
        (b"[\n{}\n{}]", r"data\.json:2: .*missing"),
        (b'[\n\n{"a": tru}]', r"data\.json:3: not JSON"),
        (b'[\n"\xff"]', r"data\.json:2: not UTF-8"),
        (b"[\n" + b"[" * 100_000, r"data\.json:2: not JSON"),
    ],
)
def test_broken_json(folder, content, message):
    (folder / "data.json").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_questions(folder / "data.json")


@pytest.mark.parametrize(
    "row, message",
    [
        (["0", "xyz", "q", "a", TEXT], r"neither base64 of an image nor the index"),
        (["0", "*" * 100, "q", "a", TEXT], r"not base64"),
        (["0", base64.b64encode(b"x" * 100).decode(), "q", "a", TEXT], r"not a PNG, JPEG, WebP or BMP"),
        (["0", base64.b64encode(png()).decode(), "q", "['a'", TEXT], r"answer is not a list"),
        (["0", base64.b64encode(png()).decode(), "q", "[]", TEXT], r"the answers must be"),
        (["0", base64.b64encode(png()).decode(), "q", "a", "Poetry"], r"'Poetry' is none of"),
        (["0", "q", "a"], r"3 fields, the first line has 5"),
    ],
)
def test_bad_tsv_rows(folder, row, message):
    with pytest.raises(UsageError, match=r"data\.tsv:2: .*" + message):
        load_questions(write_tsv(folder, row))


def test_tsv_without_a_column(folder):
    row = ["0", base64.b64encode(png()).decode(), "q", "a"]
    with pytest.raises(UsageError, match=r'data\.tsv:2: "category" is missing'):
        load_questions(write_tsv(folder, row, columns=("index", "image", "question", "answer")))


def test_files_that_are_no_data(folder):
    for name, message in (("no.json", "no such file"), ("a.png", "the data is a"), ("no.tsv", "no such file")):
        with pytest.raises(UsageError, match=message):
            load_questions(folder / name)
    with pytest.raises(UsageError, match="image_folder"):
        load_questions(write_json(folder, ocrbench_row()), folder / "nowhere")
