"""Answers kept, resumed and compared: with made-up models, with servers on this machine, and with a tiny export through
the int8 runtime.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chat_server import Server, completion
from PIL import Image
from tiny import make, make_images

from quant import Calibrator, QuantConfig, QuantError
from quant.base.console import SILENT
from quant.commands.cli import main
from quant.evaluate.endpoint import Unanswered
from quant.evaluate.evaluate import GIVE_UP, Results, ask, summarize
from quant.evaluate.local_model import LocalModel
from quant.evaluate.questions import load_questions
from quant.verify import generation
from quant.verify.runtime import load

ROOT = Path(__file__).resolve().parent.parent
COUNT = 20


@pytest.fixture
def data(tmp_path):
    """COUNT questions, number i answered by "answer i" in a full stop, so that no answer contains another."""
    rows = []
    for number in range(COUNT):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(
            {
                "image": f"{number}.png",
                "prompt": f"{number}?",
                "answers": [f"answer {number}."],
                "category": f"part {number % 2}",
            }
        )
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data.jsonl"


class Scripted:
    """Answers rightly but for the question numbers in `wrong`; raises what `raises` has for a number."""

    def __init__(self, name="a", wrong=(), raises=None):
        self.name, self.wrong, self.raises, self.asked = name, set(wrong), raises or {}, []

    def describe(self):
        return {"name": self.name}

    def answer(self, question):
        number = int(question.prompt[:-1])
        self.asked.append(number)
        if number in self.raises:
            raise self.raises[number]
        return "no idea" if number in self.wrong else f"It is ANSWER {number}."


def asked(model, data, file):
    return ask("model", model, load_questions(data), Results(file), SILENT)


def test_interrupted_and_resumed(data, tmp_path):
    whole = asked(Scripted(), data, tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        asked(Scripted(raises={7: KeyboardInterrupt()}), data, tmp_path / "log.jsonl")
    second = Scripted()
    resumed = asked(second, data, tmp_path / "log.jsonl")
    assert second.asked == list(range(7, COUNT))
    assert resumed.predictions == whole.predictions
    third = Scripted()
    assert asked(third, data, tmp_path / "log.jsonl").predictions == whole.predictions and third.asked == []


def test_a_line_that_a_crash_cut_off(data, tmp_path):
    asked(Scripted(), data, tmp_path / "log.jsonl")
    log = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(log[:-20])
    model = Scripted()
    asked(model, data, tmp_path / "log.jsonl")
    assert model.asked == [COUNT - 1]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len(lines) == 1 + COUNT and all(json.loads(line) for line in lines)


def test_what_is_asked_anew(data, tmp_path):
    asked(Scripted("a"), data, tmp_path / "log.jsonl")
    other = Scripted("b")
    asked(other, data, tmp_path / "log.jsonl")
    assert len(other.asked) == COUNT  # another model
    Image.new("RGB", (8, 8), "white").save(data.parent / "3.png")
    data.write_text(data.read_text().replace("9?", "9 ?").replace("answer 5.", "answer five."))
    model = Scripted("a")
    answers = asked(model, data, tmp_path / "log.jsonl")
    assert model.asked == [3, 9, 19]  # another image, two other prompts; another answer changes the score only
    assert answers.predictions[3:6] == ["It is ANSWER 3.", "It is ANSWER 4.", "It is ANSWER 5."]


def test_a_file_that_is_no_log(data, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"model": "x", "is": {}}\n{"other": 1}\n')
    with pytest.raises(QuantError, match=r"log.jsonl:2: is no line of an evaluation's results"):
        asked(Scripted(), data, tmp_path / "log.jsonl")
    assert '{"other": 1}' in (tmp_path / "log.jsonl").read_text()


def test_unanswered_is_reported_and_asked_again(data, tmp_path):
    first = asked(Scripted(raises={4: Unanswered("no such\nluck")}), data, tmp_path / "log.jsonl")
    assert first.predictions[4] is None and first.errors == {4: r"no such\nluck"}
    summary = summarize(load_questions(data), [first], rule="contains", max_drop=1, seed=0)
    side = summary["sides"][0]
    assert side["table"]["Right"] == {"right": COUNT - 1, "of": COUNT}
    assert (
        len(side["unanswered"]) == 1
        and side["unanswered"][0]["where"].endswith("data.jsonl:5")
        and side["unanswered"][0]["why"] == r"no such\nluck"
    )
    assert not summary["passed"]
    model = Scripted()
    second = asked(model, data, tmp_path / "log.jsonl")
    assert model.asked == [4] and not second.errors


def test_a_server_that_is_gone_ends_the_run(data, tmp_path):
    model = Scripted(raises={number: Unanswered("refused") for number in range(10, COUNT)} | {3: Unanswered("once")})
    with pytest.raises(
        QuantError, match=rf"{GIVE_UP} questions in a row without an answer.*log.jsonl.*run again.*refused"
    ):
        asked(model, data, tmp_path / "log.jsonl")
    assert len(model.asked) == 10 + GIVE_UP
    assert len(Results(tmp_path / "log.jsonl").known) == 9


def test_summary_of_two(data, tmp_path):
    questions = load_questions(data)
    sides = [
        asked(Scripted("a", wrong=[1, 2]), data, tmp_path / "log.jsonl"),
        asked(Scripted("b", wrong=[2, 4, 6]), data, tmp_path / "log.jsonl"),
    ]
    summary = summarize(questions, sides, rule="contains", max_drop=4.9, seed=0)
    assert [side["table"]["Right"]["right"] for side in summary["sides"]] == [COUNT - 2, COUNT - 3]
    assert summary["sides"][0]["table"]["part 0"] == {"right": 9, "of": 10}
    assert [(flip["where"].rpartition(":")[2], flip["lost"]) for flip in summary["flips"]] == [
        ("2", False),
        ("5", True),
        ("7", True),
    ]
    assert summary["flips"][1]["predictions"] == ["It is ANSWER 4.", "no idea"]
    assert summary["difference"]["points"] == -5 and (
        summary["difference"]["lost"],
        summary["difference"]["gained"],
    ) == (2, 1)
    assert summary["difference"]["exceeded"] and not summary["passed"]
    assert summarize(questions, sides, rule="contains", max_drop=5, seed=0)["passed"]
    assert summarize(questions, sides, rule="exact", max_drop=5, seed=0)["sides"][0]["table"]["Right"]["right"] == 0


# ---- the command, against servers


@pytest.fixture
def servers():
    pair = [Server(), Server()]
    for server, wrong in zip(pair, ((), (3, 11))):
        server.reply = lambda request, wrong=wrong: reply(request, wrong)
    yield pair
    for server in pair:
        server.close()


def reply(request, wrong):
    number = int(request["messages"][0]["content"][1]["text"][:-1])
    return completion("no idea" if number in wrong else f"answer {number}.")


def command(data, servers, *words):
    return [
        "evaluate",
        "--data",
        str(data),
        "--results",
        str(data.parent / "log.jsonl"),
        *(word for server in servers for word in ("--endpoint", server.url)),
        *words,
    ]


def test_two_servers(data, servers, capsys):
    assert main(command(data, servers, "--json", str(data.parent / "out.json"))) == 1
    printed = capsys.readouterr().out
    assert (
        "part 1" in printed
        and "Right" in printed
        and "2 lost, 0 gained" in printed
        and "a larger drop than --max_drop 1\n" in printed
    )
    assert "'3?'  wanted 'answer 3.':  'answer 3.' -> 'no idea'" in printed
    summary = json.loads((data.parent / "out.json").read_text())
    assert summary["difference"]["points"] == -10 and not summary["passed"]
    requests = [len(server.requests) for server in servers]
    assert main(command(data, servers, "--max_drop", "10")) == 0  # known answers, another verdict
    assert [len(server.requests) for server in servers] == requests == [COUNT, COUNT]


def test_answers_are_kept_in_the_users_cache(data, servers, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    words = ["evaluate", "--data", str(data), "--endpoint", servers[0].url]
    assert main(words) == main(words) == 0 and len(servers[0].requests) == COUNT
    assert list(Path.cwd().iterdir()) == []
    log = Path(os.environ["XDG_CACHE_HOME"]) / "ascend-vlm-quant" / f"{data.stem}.results.jsonl"
    assert log.is_file() and f"kept in {log}" in capsys.readouterr().out


def test_trouble_is_told_and_nothing_is_lost(data, servers, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    servers[0].plan = [(500, b""), (200, b"nonsense"), "hang up", "fine", (400, b"bad image")]
    assert main(command(data, servers[:1], "--retries", "3")) == 1
    printed = capsys.readouterr().out
    assert "1 x status 500, 1 x nonsense, 1 x connection, 1 x status 400" in printed
    assert (
        "1 questions have no answer and count as wrong" in printed
        and "data.jsonl:2: " in printed
        and "bad image" in printed
    )
    count = len(servers[0].requests)
    assert main(command(data, servers[:1])) == 0
    assert len(servers[0].requests) == count + 1
    assert "19 of them answered before" in capsys.readouterr().out


def test_ocrbench_prints_the_published_keys(tmp_path, servers, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {
        "dataset_name": "x",
        "type": "Digit String Recognition",
        "question": "1?",
        "answers": ["Answer 1"],
        "image_path": "a.png",
    }
    (tmp_path / "ocr.json").write_text(json.dumps([row]))
    assert main(command(tmp_path / "ocr.json", servers)) == 0
    printed = capsys.readouterr().out
    for key in (
        "Text Recognition",
        "Scene Text-centric VQA",
        "Doc-oriented VQA",
        "Key Information Extraction",
        "Handwritten Mathematical Expression Recognition",
        "Final Score",
        "Final Score Norm",
    ):
        assert f"\n{key}  " in printed
    assert "defined for OCRBench's 1000 items, this file has 1" in printed


def test_some_of_the_questions(data):
    questions = load_questions(data)
    some = [question.where for question in questions.some(5, 0).questions]
    assert len(some) == 5 and some == sorted(some, key=lambda where: int(where.rpartition(":")[2]))
    assert (
        some
        == [question.where for question in questions.some(5, 0).questions]
        != [question.where for question in questions.some(5, 1).questions]
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "0 models are given"),
        (["--endpoint", "http://x", "--endpoint", "http://y", "--model_path", "z"], "3 models are given"),
        (["--endpoint", "x"], "expected http://host:port"),
        (["--model_path", "nowhere"], "nowhere: no such directory"),
        (["--quantized", "nowhere"], "nowhere"),
        (
            ["--endpoint", "http://x", "--served_model", "a", "--served_model", "b"],
            "--served_model is given 2 times for 1",
        ),
        (["--model_path", "x", "--max_new_tokens", "0"], "--max_new_tokens 0: must be at least 1"),
        (["--model_path", "x", "--batch_size", "0"], "--batch_size 0: must be at least 1"),
        (["--model_path", "x", "--max_drop", "nan"], "--max_drop nan"),
        (["--model_path", "x", "--timeout", "0"], "--timeout 0"),
    ],
)
def test_requests_that_cannot_be_met(data, words, message, capsys):
    assert main(["evaluate", "--data", str(data), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ---- local models


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("local")
    source = make(root / "src", "qwen2_vl")
    images = make_images(root / "images", 3)
    Calibrator(source, QuantConfig(anti_method="m4"), images).run().save(root / "out")
    rows = [
        {"image": f"images/{file.name}", "prompt": "What is it?", "answers": ["?"]} for file in sorted(images.iterdir())
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_local_models_side_by_side(exported, tmp_path, capsys):
    """The float model's own answers become the known ones, so that it must score all of them, and int8 what the runtime
    says.
    """
    common = [
        "evaluate",
        "--data",
        str(exported / "data.jsonl"),
        "--results",
        str(tmp_path / "log.jsonl"),
        "--device_type",
        "cpu",
        "--max_new_tokens",
        "6",
    ]
    assert main([*common, "--model_path", str(exported / "src")]) == 0
    said = [
        entry["prediction"]
        for entry in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
        if "prediction" in entry
    ]
    assert len(said) == 3 and all(text.strip() for text in said)
    rows = [
        json.loads(line) | {"answers": [text]}
        for line, text in zip((exported / "data.jsonl").read_text().splitlines(), said)
    ]
    (exported / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    code = main(
        [
            *common,
            "--model_path",
            str(exported / "src"),
            "--quantized",
            str(exported / "out"),
            "--match",
            "exact",
            "--json",
            str(tmp_path / "out.json"),
        ]
    )
    summary = json.loads((tmp_path / "out.json").read_text())
    model, encoder = load(exported / "out")
    questions = load_questions(exported / "data.jsonl")
    inputs = [encoder(question.open(), question.prompt) for question in questions.questions]
    int8 = [
        encoder.decode(model.generate(**one, max_new_tokens=6, do_sample=False)[0, one["input_ids"].shape[1] :])
        for one in inputs
    ]
    same = sum(a.lower().strip() == b.lower().strip() for a, b in zip(said, int8))
    assert [side["table"]["Right"]["right"] for side in summary["sides"]] == [3, same]
    assert code == (0 if same == 3 else 1)
    assert [side["model"]["arithmetic"] for side in summary["sides"]] == ["float", "int8"]


def test_batches_give_the_answers_of_one_at_a_time(tmp_path_factory):
    """Trained models of both families, with prompts of different lengths, int8 and float: to the letter."""
    root = tmp_path_factory.mktemp("batches")
    words = [sys.executable, str(ROOT / "examples" / "data.py"), str(root), "--count", "5", "--seed", "3"]
    subprocess.run(words, check=True, capture_output=True)
    questions = list(load_questions(root / "questions.jsonl").questions)
    for name in ("tiny-qwen2vl", "tiny-llava"):
        source = ROOT / "examples" / name
        Calibrator(source, QuantConfig(anti_method="m2", num_samples=2), root, quiet=True).run().save(root / name)
        for directory, int8 in ((source, False), (root / name, True)):
            one = LocalModel(directory, int8, max_new_tokens=8, device="cpu")
            many = LocalModel(directory, int8, max_new_tokens=8, device="cpu", batch_size=5)
            wanted = [one.answer(question) for question in questions]
            assert many.answers(questions) == wanted and len(set(wanted)) > 2


def test_a_batch_that_does_not_fit_is_halved(exported, monkeypatch):
    sizes, whole = [], generation.greedy_batch

    def greedy_batch(model, inputs, *rest):
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, inputs, *rest)

    monkeypatch.setattr(generation, "greedy_batch", greedy_batch)
    questions = list(load_questions(exported / "data.jsonl").questions)
    model = LocalModel(exported / "src", False, max_new_tokens=3, device="cpu", batch_size=3)
    one = LocalModel(exported / "src", False, max_new_tokens=3, device="cpu")
    assert model.answers(questions) == [one.answer(question) for question in questions]
    assert sizes == [3, 2]


def test_batches_are_resumed_and_a_broken_image_is_one_question(data, tmp_path):
    class Batched(Scripted):
        batch_size = 6

        def answers(self, questions):
            return [self.one(question) for question in questions]

        def one(self, question):
            try:
                return self.answer(question)
            except Unanswered as error:
                return error

    model = Batched(raises={4: Unanswered("broken"), 13: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        asked(model, data, tmp_path / "log.jsonl")
    assert len(Results(tmp_path / "log.jsonl").known) == 11
    second = Batched()
    answers = asked(second, data, tmp_path / "log.jsonl")
    assert second.asked == [4, *range(12, COUNT)] and None not in answers.predictions


def test_several_requests_at_once(data, servers):
    servers[0].plan = ["fine", (400, b"bad image"), "fine"]
    assert main(command(data, servers[:1], "--batch_size", "5")) == 1
    assert main(command(data, servers[:1], "--batch_size", "5", "--json", str(data.parent / "out.json"))) == 0
    assert len(servers[0].requests) == COUNT + 1
    summary = json.loads((data.parent / "out.json").read_text())
    assert summary["sides"][0]["table"]["Right"] == {"right": COUNT, "of": COUNT}
    assert len(summary["examples"]) == COUNT and summary["examples"][0]["image"].startswith("data:image/jpeg;base64,")


def test_examples_show_what_flipped_first(data, tmp_path):
    questions = load_questions(data)
    sides = [
        asked(Scripted("a", wrong=[1]), data, tmp_path / "l"),
        asked(Scripted("b", wrong=[2]), data, tmp_path / "l"),
    ]
    shown = summarize(questions, sides, rule="contains", max_drop=5, seed=0)["examples"]
    assert {example["prompt"] for example in shown[:2]} == {"1?", "2?"}
    assert [sorted(example["points"]) for example in shown] == [[0, 1]] * 2 + [[1, 1]] * (COUNT - 2)


def test_description_of_a_local_model(exported):
    model = LocalModel(exported / "out", True, max_new_tokens=6, device="cpu")
    before = model.describe()
    assert before == LocalModel(exported / "out", True, max_new_tokens=6, device="cpu").describe()
    assert before != LocalModel(exported / "out", True, max_new_tokens=7, device="cpu").describe()
    file = exported / "out" / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")
    assert model.describe() != before


def test_an_image_that_the_processor_refuses(exported, tmp_path):
    Image.new("RGB", (4000, 4)).save(tmp_path / "wide.png")
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": "wide.png", "prompt": "p", "answers": "x"}) + "\n")
    answers = asked(
        LocalModel(exported / "src", False, max_new_tokens=2, device="cpu"),
        tmp_path / "data.jsonl",
        tmp_path / "log.jsonl",
    )
    assert answers.predictions == [None] and "4000x4" in answers.errors[0]
