"""TextVQA, DocVQA, MMMU and OCRBench as they are published: their files, and their rules on cases worked by hand."""

import base64
import io
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from quant.base.errors import UsageError
from quant.evaluate import metrics
from quant.evaluate.questions import Question, load_questions
from quant.evaluate.scoring import compare, points

TEN = ["nokia"] * 3 + ["Nokia!", "the nokia"] + ["samsung"] * 2 + ["phone"] + ["answering does not require reading"] * 2


def png(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


# -- the rules


@pytest.mark.parametrize(
    "prediction, answers, worth",
    [
        # 5 of 10 said it: leaving one of these out 4 agree, leaving another out 5; always 3 or more.
        ("nokia", TEN, 1.0),
        # 2 said it: (2 subsets with 1, 8 with 2 that agree) / 3 / 10.
        ("samsung", TEN, (2 * 1 + 8 * 2) / 3 / 10),
        # 1 said it: 9 subsets with 1.
        ("phone", TEN, 9 / 3 / 10),
        ("apple", TEN, 0.0),
        # 3 said it: 3 subsets with 2, 7 with 3.
        ("x", ["x"] * 3 + ["y"] * 7, (3 * 2 / 3 + 7) / 10),
        ("x", ["x"] * 4 + ["y"] * 6, 1.0),
    ],
)
def test_vqa_accuracy(prediction, answers, worth):
    assert metrics.vqa(prediction, answers) == pytest.approx(worth)


@pytest.mark.parametrize(
    "text, alike",
    [
        ("The Cat", "cat"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # two are missing: the script has no such word
        ("couldn'tve", "couldn't've"),
        ("red-ish", "red ish"),  # within a word a mark is a space
        ("red - ish", "red ish"),  # beside a space it is nothing
        ("1,000", "1000"),
        ("1.5", "1.5"),
        ("3.", "3"),
        ("U.S.A.", "usa"),
        (" a\nb\tc ", "b c"),
        ("$5", "$5"),
    ],
)
def test_vqa_alike(text, alike):
    assert metrics.vqa_alike(text) == alike


@pytest.mark.parametrize(
    "prediction, answers, worth",
    [
        ("Hello World", ["hello world"], 1.0),
        ("helo", ["hello"], 1 - 1 / 5),
        ("hell", ["hello", "shell"], 1 - 1 / 5),
        ("ab", ["abcd"], 0.5),  # half of it: the script's side of the threshold
        ("a", ["abcd"], 0.0),
        ("", ["abc"], 0.0),
        ("  two   words ", ["two words"], 1.0),
        ("kitten", ["sitting"], 1 - 3 / 7),
    ],
)
def test_anls(prediction, answers, worth):
    assert metrics.anls(prediction, answers) == pytest.approx(worth)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_levenshtein_is_the_recursion(first, second):
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    assert metrics.levenshtein(first[:4], second[:4]) == slow(first[:4], second[:4])


@pytest.mark.parametrize(
    "prediction, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("The answer is (B).", "B"),
        ("Not (A) but (C)", "C"),  # the last one
        ("A or B", "B"),
        ("Not A , it must be (B)", "B"),  # brackets count first
        ("b", None),
        ("Because", None),  # no letter by itself
        ("blue", None),  # a text counts in more than five words
        ("I would say that it is blue", "B"),
        ("it could be red or blue or red", "A"),
        ("", None),
    ],
)
def test_choice(prediction, letter):
    assert metrics.choice(prediction, ["red", "blue", "green"]) == letter


def test_points_by_rule():
    question = Question("k", "f:1", (b"",), "p", ("4",), None, False)
    assert [points(question, "It is 4.", rule) for rule in ("contains", "exact", "anls")] == [1, 0, 0]
    assert points(question, None, "contains") == 0
    chosen = Question("k", "f:1", (b"",), "p", ("B",), None, False, ("red", "blue"))
    assert [points(chosen, said, "contains") for said in ("B", "Blue Bird", "A B")] == [1, 0, 1]


def test_difference_of_parts_of_points():
    first, second = [1.0, 0.5, 0.9, 0.0], [1.0, 0.8, 0.3, 0.0]
    found = compare(first, second)
    assert found.points == pytest.approx(-7.5) and (found.lost, found.gained) == ([2], [1])
    assert found.low < -7.5 < found.high and found.low >= -60
    assert found.exceeds(7.4) and not found.exceeds(7.5)


# -- the files


def test_vlmevalkits_textvqa_and_docvqa(tmp_path):
    image = base64.b64encode(png()).decode()
    line = f"0\t{image}\twhat brand?\t{TEN!r}\n1\t0\tand now?\t{TEN!r}\n"
    (tmp_path / "TextVQA_VAL.tsv").write_text(f"index\timage\tquestion\tanswer\n{line}")
    data = load_questions(tmp_path / "TextVQA_VAL.tsv")
    assert (data.rule, data.ocrbench, len(data.questions)) == ("vqa", False, 2)
    assert data.questions[0].prompt == "what brand?\nAnswer the question using a single word or phrase."
    assert data.questions[0].answers == tuple(TEN) and data.questions[1].data() == [png()]
    (tmp_path / "DocVQA_VAL.tsv").write_text(f"index\timage\tquestion\tanswer\n0\t{image}\ttotal?\t['0.28', '.28']\n")
    data = load_questions(tmp_path / "DocVQA_VAL.tsv")
    assert data.rule == "anls" and data.questions[0].answers == ("0.28", ".28")


def test_vlmevalkits_mmmu(tmp_path):
    image = base64.b64encode(png()).decode()
    head = "index\timage\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\n"
    rows = f"0\t{image}\tWhich colour?\t\tred\tblue\t\t\tA\tArt\n1\t0\tAnd?\tLook.\ta\tb\tc\td\tD\tMath\n"
    several = f"2\t\"['{image}', '{image}']\"\tTwo?\t\ta\tb\t\t\tA\tArt\n"
    (tmp_path / "MMMU_DEV_VAL.tsv").write_text(head + rows + several)
    data = load_questions(tmp_path / "MMMU_DEV_VAL.tsv")
    first, second = data.questions
    assert first.choices == ("red", "blue") and first.answers == ("A",) and first.category == "Art"
    assert first.prompt == (
        "Which colour?\n(A) red\n(B) blue\n\nAnswer with the option's letter from the given choices directly."
    )
    assert second.prompt.startswith("Look.\nAnd?\n(A) a\n") and len(second.choices) == 4
    assert data.left_out == (("a question with several images", 1),)
    (tmp_path / "wrong.tsv").write_text(head + f"0\t{image}\tq?\t\tred\tblue\t\t\tC\tArt\n")
    with pytest.raises(UsageError, match="wrong.tsv:2: the answer must be one of the letters A to B, found 'C'"):
        load_questions(tmp_path / "wrong.tsv")


def test_the_published_json(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.png").write_bytes(png())
    item = {"questionId": 1, "question": "total?", "image": "documents/a.png", "docId": 2, "answers": ["0.28"]}
    whole = {"dataset_name": "docvqa", "dataset_split": "val", "data": [item]}
    (tmp_path / "docvqa_val_v1.0.json").write_text(json.dumps(whole, indent=1))
    data = load_questions(tmp_path / "docvqa_val_v1.0.json")
    assert data.rule == "anls" and data.questions[0].answers == ("0.28",)
    (tmp_path / "9a.jpg").write_bytes(png())
    item = {"question": "brand?", "image_id": "9a", "answers": TEN, "question_id": 5}
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"dataset_type": "val", "data": [item]}))
    data = load_questions(tmp_path / "TextVQA_0.5.1_val.json")
    assert data.rule == "vqa" and len(data.questions[0].answers) == 10
    (tmp_path / "test.json").write_text(json.dumps({"data": [{"question": "q", "image_id": "9a"}]}))
    with pytest.raises(UsageError, match='test.json:1: "answers" is missing; a test set without answers'):
        load_questions(tmp_path / "test.json")


def test_parquet_of_the_hub(tmp_path):
    image = {"bytes": png(), "path": "a.png"}
    write = lambda name, rows: parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    row = {
        "dataset": "HME100k",
        "question": "Write it.",
        "question_type": "Handwritten Mathematical Expression Recognition",
    }
    write("ocr.parquet", [{**row, "answer": ["x + y"], "image": image}] * 2)
    data = load_questions(tmp_path / "ocr.parquet")
    assert data.ocrbench and data.rule == "contains" and data.questions[0].math and data.questions[0].data() == [png()]
    assert data.questions[1].where.endswith("ocr.parquet:2")
    rows = [{"question": "brand?", "answers": TEN, "image": image, "image_id": "a", "image_classes": ["x"]}]
    write("validation-00000-of-00003.parquet", rows)
    assert load_questions(tmp_path / "validation-00000-of-00003.parquet").rule == "vqa"
    write("validation.parquet", [{"question": "total?", "answers": ["1"], "image": image, "docId": 3}])
    assert load_questions(tmp_path / "validation.parquet").rule == "anls"
    one = {"question": "Which?", "options": "['red', 'blue']", "answer": "B", "question_type": "multiple-choice"}
    one |= {"image_1": image, "image_2": None, "subfield": "Art"}
    write("mmmu.parquet", [one, one | {"image_2": image}, one | {"question_type": "open", "answer": "x"}])
    data = load_questions(tmp_path / "mmmu.parquet")
    assert data.rule == "contains" or data.questions[0].choices == ("red", "blue")
    assert [question.answers for question in data.questions] == [("B",)]
    assert dict(data.left_out) == {"a question with 2 images": 1, "an open question": 1}
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match="bad.parquet: not a parquet file"):
        load_questions(tmp_path / "bad.parquet")


def test_a_jsonl_of_choices(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    row = {"image": "a.png", "prompt": "Which?", "choices": ["red", "blue"], "answers": "B"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    (question,) = load_questions(tmp_path / "own.jsonl").questions
    assert question.choices == ("red", "blue") and points(question, "(B) blue", "contains") == 1


def test_fewer_people_than_the_rule_needs(tmp_path):
    image = base64.b64encode(png()).decode()
    (tmp_path / "TextVQA_own.tsv").write_text(f"index\timage\tquestion\tanswer\n0\t{image}\tq?\tone\n")
    assert load_questions(tmp_path / "TextVQA_own.tsv").rule == "contains"
