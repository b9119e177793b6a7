"""python -m quant serve as its clients meet it: the openai package over a real socket, against what the runtime answers
itself.
"""

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
import uvicorn
from exports import edit_json

from quant import Calibrator, QuantConfig
from quant.commands.cli import main
from quant.inputs.images import open_image
from quant.serve.app import Service, make_app
from quant.serve.engine import Engine, Text
from quant.serve.request import Defaults, Refused, parse
from quant.verify import generation, runtime

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "examples" / "tiny-qwen2vl"
PROMPT = "What is written?"
LIMIT = 2**20


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Drawn text, as the model was trained on."""
    folder = tmp_path_factory.mktemp("photos")
    words = [sys.executable, str(ROOT / "examples" / "data.py"), str(folder), "--count", "6", "--seed", "77"]
    subprocess.run(words, check=True, capture_output=True)
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def export(tmp_path_factory, photos) -> Path:
    out = tmp_path_factory.mktemp("export") / "tiny"
    Calibrator(SOURCE, QuantConfig(anti_method="m2"), photos[0].parent, quiet=True).run().save(out)
    return out


@pytest.fixture(scope="module")
def loaded(export):
    return runtime.load(export)


class Held:
    """A model whose answers wait for `go`, and that tells how many tokens it began."""

    def __init__(self, model):
        self.model, self.go, self.asked, self.tokens = model, threading.Event(), threading.Event(), 0
        self.device, self.generation_config = model.device, model.generation_config

    def generate(self, stopping_criteria=(), **inputs):
        def wait(ids, scores):
            self.tokens += 1
            self.asked.set()
            self.go.wait(20)
            return torch.zeros(len(ids), dtype=torch.bool)

        return self.model.generate(stopping_criteria=[wait, *stopping_criteria], **inputs)


class Running:
    """The application on a free port of this machine, in a thread."""

    def __init__(self, model, encoder, **changes):
        self.lines: list[str] = []
        line = changes.pop("line", 8)
        self.engine = Engine(model, encoder, longest=changes.pop("longest", 2048), line=line)
        settings = dict(defaults=Defaults(), image_root=None, largest=LIMIT, seconds=30.0, key=None)
        service = Service("tiny", self.engine, report=self.lines.append, **{**settings, **changes})
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.engine.close()
        self.thread.join(10)
        self.socket.close()

    def client(self, key="none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=30)

    def raw(self, body: bytes, **headers) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def wait_until(self, what, seconds=10):
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture(scope="module")
def running(loaded, photos):
    with Running(*loaded, image_root=photos[0].parent.resolve()) as server:
        yield server


def url_of(photo: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(photo.read_bytes()).decode()}"


def messages(*photos: Path, prompt=PROMPT, url=url_of) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": url(photo)}} for photo in photos]
    return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]


def ask(client, *photos, **settings):
    settings = {"messages": messages(*photos), "model": "tiny", "temperature": 0, "max_tokens": 8, **settings}
    return client.chat.completions.create(**settings)


def alone(loaded, photo: Path, tokens=8, prompt=PROMPT, **settings) -> str:
    model, encoder = loaded
    return encoder.decode(generation.generate(model, encoder(open_image(photo), prompt), tokens, **settings))


# -- answers


def test_answers_are_the_runtimes(running, loaded, photos):
    client = running.client()
    for photo in photos:
        answer = ask(client, photo)
        assert answer.choices[0].message.content == alone(loaded, photo) != ""
        assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    tokens = loaded[1](open_image(photos[-1]), PROMPT)["input_ids"].shape[1]
    assert answer.usage.prompt_tokens == tokens
    assert answer.usage.total_tokens == tokens + answer.usage.completion_tokens


def test_the_model_is_named(running):
    client = running.client()
    (model,) = client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("tiny", "model", 2048)
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here, 'tiny' is"):
        client.models.retrieve("other")


def test_streamed_pieces_make_the_whole(running, loaded, photos):
    stream = ask(running.client(), photos[0], stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == alone(loaded, photos[0]) and sum(map(bool, pieces)) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == ask(running.client(), photos[0]).usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_max_tokens_cuts(running, loaded, photos):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(running.client(), photos[0], **{"max_tokens": openai.NOT_GIVEN, name: 1})
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 1
        assert answer.choices[0].message.content == alone(loaded, photos[0], 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_not_in_it(running, loaded, photos, stream):
    whole = alone(loaded, photos[0])
    stop = whole[1:2]
    answer = ask(running.client(), photos[0], stop=[stop, "never said"], stream=stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if stream else None
    said = said if stream else answer.choices[0].message.content
    assert said == whole[: whole.find(stop)]


def test_sampling_repeats_with_its_seed(running, loaded, photos):
    client, hot = running.client(), dict(temperature=4.0, top_p=0.99)
    first, again = (ask(client, photos[0], seed=5, **hot).choices[0].message.content for _ in range(2))
    assert first == again == alone(loaded, photos[0], sampling=generation.Sampling(4.0, 0.99, 0, 5))
    others = {ask(client, photos[0], seed=seed, **hot).choices[0].message.content for seed in range(6)}
    assert len(others) > 1
    # So little of the probability that one token has it all.
    assert ask(client, photos[0], temperature=1.0, top_p=1e-6).choices[0].message.content == alone(loaded, photos[0])
    one = ask(client, photos[0], temperature=4.0, extra_body={"top_k": 1})
    assert one.choices[0].message.content == alone(loaded, photos[0])


def test_chats_go_through_the_checkpoints_template(loaded, photos):
    """Order of the parts, several turns, a system message, two images: token for token what the template makes."""
    encoder = loaded[1]
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "X"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]},
    ]
    inputs = encoder.chat(chat, [open_image(photos[0]), open_image(photos[1])])
    text = encoder.tokenizer.decode(inputs["input_ids"][0]).replace("<|image_pad|>", "")
    image = "<|vision_start|><|vision_end|>"
    user = "<|im_start|>user\n"
    assert text == (
        f"<|im_start|>system\nX<|im_end|>\n{user}a{image}<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        f"{user}{image}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(inputs["image_grid_thw"]) == 2


def test_a_chat_over_http(running, loaded, photos):
    chat = [{"role": "system", "content": "X"}, *messages(photos[0]), {"role": "assistant", "content": "b"}]
    answer = ask(running.client(), messages=[*chat, *messages(photos[1])])
    one = loaded[1](open_image(photos[0]), PROMPT)["input_ids"].shape[1]
    assert answer.usage.prompt_tokens > 2 * one


def test_file_urls_below_the_root(running, loaded, photos, tmp_path):
    as_file = lambda photo: photo.resolve().as_uri()
    answer = ask(running.client(), messages=messages(photos[0], url=as_file))
    assert answer.choices[0].message.content == alone(loaded, photos[0])
    shutil.copy(photos[0], tmp_path / "outside.png")
    link = photos[0].parent / "link.png"
    link.symlink_to(tmp_path / "outside.png")
    (photos[0].parent / "large.png").write_bytes(bytes(LIMIT + 1))
    for path, why in (
        (tmp_path / "outside.png", "not below --image_root"),
        (link, "not below --image_root"),
        (photos[0].parent / ".." / "x.png", "not below --image_root"),
        (photos[0].parent / "gone.png", "no such file"),
        (photos[0].parent / "large.png", f"{LIMIT + 1} bytes, at most {LIMIT}"),
    ):
        with pytest.raises(openai.BadRequestError, match=why):
            ask(running.client(), messages=messages(path, url=lambda path: f"file://{path}"))


# -- refusals


@pytest.mark.parametrize(
    "change, status, param, message",
    [
        ({"model": "other"}, 404, "model", "'other' is not served here, 'tiny' is"),
        ({"n": 2}, 400, "n", "n: is not done by this server"),
        ({"logprobs": True}, 400, "logprobs", "is not done"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "is not done"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "is not done"),
        ({"temprature": 1}, 400, "temprature", "is not known here"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 2048}, 400, "messages", "tokens and max_tokens 2048; the model takes 2048 in all"),
        ({"seed": 2**64}, 400, "seed", "less than"),
        ({"stop": [""]}, 400, "stop", "not empty"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "the last one must be the user's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "Input should be"),
        ({"messages": [{"role": "user", "content": "<|image_pad|>"}]}, 400, "messages", "contains <|image_pad|>"),
    ],
)
def test_refused_in_openais_form(running, change, status, param, message):
    request = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4} | change
    code, answer = running.raw(json.dumps(request).encode())
    assert code == status and set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param and message in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "part, message",
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "this server fetches nothing"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,???"}}, "not base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "a data URL of an image is"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}, "image 1: not a PNG"),
        ({"type": "image_url"}, "has an image_url"),
        ({"type": "text"}, "has a text"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "Input should be 'text' or 'image_url'"),
    ],
)
def test_parts_that_are_refused(running, part, message):
    request = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    code, answer = running.raw(json.dumps(request).encode())
    assert code == 400 and message in answer["error"]["message"]


def test_bodies_that_are_refused(running):
    code, answer = running.raw(b"{")
    assert code == 400 and "Invalid JSON" in answer["error"]["message"]
    code, answer = running.raw(b"[" * 10**5)
    assert code == 400
    code, answer = running.raw(b"{}", Content_Type="text/plain")
    assert code == 415 and "application/json is expected" in answer["error"]["message"]
    code, answer = running.raw(b" " * (LIMIT + 1))
    assert code == 413 and str(LIMIT) in answer["error"]["message"]
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("GET", "/v1/completions")
    answer = connection.getresponse()
    assert answer.status == 404 and "/v1/completions" in json.loads(answer.read())["error"]["message"]
    assert running.engine._taken == 0


def test_a_body_without_a_length_has_the_same_limit(running):
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    parts = (b" " * 2**18 for _ in range(5))
    connection.request("POST", "/v1/chat/completions", parts, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_the_key(loaded, photos):
    with Running(*loaded, key="secret") as server:
        assert ask(server.client("secret"), photos[0]).choices[0].message.content == alone(loaded, photos[0])
        for call in (lambda client: client.models.list(), lambda client: ask(client, photos[0])):
            with pytest.raises(openai.AuthenticationError, match="wants its key"):
                call(server.client("wrong"))
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200


# -- several at a time


def test_many_at_once_get_their_own_answers(running, loaded, photos):
    wanted = [alone(loaded, photo) for photo in photos]
    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(lambda photo: ask(running.client(), photo).choices[0].message.content, photos))
    assert said == wanted and len(set(wanted)) > 3
    assert running.engine._taken == 0


def test_beyond_the_line_is_429(loaded, photos):
    held = Held(loaded[0])
    with Running(held, loaded[1], line=1) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server.client(), photos[0])
        assert held.asked.wait(10)
        second = pool.submit(ask, server.client(), photos[1])
        server.wait_until(lambda: server.engine._taken == 2)
        with pytest.raises(openai.RateLimitError, match="2 requests are waiting or being answered") as error:
            ask(server.client(), photos[2])
        assert error.value.response.headers["retry-after"] == "1" and error.value.code == "queue_full"
        held.go.set()
        assert first.result().choices[0].message.content == alone(loaded, photos[0])
        assert second.result().choices[0].message.content == alone(loaded, photos[1])
        assert ask(server.client(), photos[2]).choices


@pytest.mark.parametrize("stream", [False, True])
def test_time_is_limited_and_the_model_stops(loaded, photos, stream):
    held = Held(loaded[0])
    with Running(held, loaded[1], seconds=0.5) as server:
        with pytest.raises(openai.APIStatusError, match="no whole answer within 0.5 s") as error:
            ask(server.client(), photos[0], stream=stream)
        assert error.value.status_code == 504
        assert server.engine._taken == 0
        held.go.set()
        server.wait_until(lambda: not server.engine._line)
    assert held.tokens == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_the_model(loaded, photos, stream):
    held = Held(loaded[0])
    with Running(held, loaded[1], line=0) as server:
        body = {"model": "tiny", "messages": messages(photos[0]), "max_tokens": 1000, "stream": stream}
        body |= {"temperature": 8.0, "seed": 1}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        assert held.asked.wait(10)
        connection.close()
        server.wait_until(lambda: server.engine._taken == 0)
        held.go.set()
        assert ask(server.client(), photos[1]).choices[0].message.content == alone(loaded, photos[1])


def test_a_model_that_fails_fails_one_request(loaded, photos, capsys):
    class Failing(Held):
        def generate(self, **inputs):
            if not self.go.is_set():
                raise ZeroDivisionError("secret detail")
            return self.model.generate(**inputs)

    failing = Failing(loaded[0])
    with Running(failing, loaded[1]) as server:
        with pytest.raises(openai.InternalServerError, match="ZeroDivisionError") as error:
            ask(server.client(), photos[0])
        assert "secret detail" not in str(error.value) and "secret detail" in capsys.readouterr().err
        failing.go.set()
        assert ask(server.client(), photos[0]).choices[0].message.content == alone(loaded, photos[0])


# -- parts


def test_text_is_told_when_it_is_certain():
    pieces = ["a", "ab", "ab\ufffd", "ab\u00e9", "ab\u00e9E", "ab\u00e9EN", "ab\u00e9ENx", "ab\u00e9ENxEND!"]
    text = Text(lambda ids: pieces[int(ids) - 1], ("END",))
    told = [text.add(torch.tensor(number)) for number in range(1, len(pieces) + 1)]
    assert told == ["a", "b", "", "\u00e9", "", "", "ENx", ""] and text.ended
    assert text.finish(torch.tensor(len(pieces))) == ("ab\u00e9ENx", "")


def test_what_generation_config_says_counts_where_a_request_says_nothing():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    read = lambda settings, **more: parse(json.dumps(body | more).encode(), "m", Defaults.of(settings), None, 9)
    qwen = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.05}
    assert read(qwen).sampling == generation.Sampling(0.01, 0.001, 1)
    assert read(qwen, temperature=0, top_p=0.5, top_k=-1, seed=3).sampling == generation.Sampling(0, 0.5, 0, 3)
    assert read({}).sampling == generation.Sampling(1.0) and read({}).default_tokens is None
    assert read({"max_new_tokens": 7}).default_tokens == 7
    assert read({"temperature": "hot", "top_k": -3, "max_new_tokens": 1.5}) == read({})


def test_messages_without_a_template(photos, tmp_path):
    source = tmp_path / "llava"
    shutil.copytree(ROOT / "examples" / "tiny-llava", source)
    (source / "chat_template.json").unlink()
    edit_json(source / "tokenizer_config.json", lambda config: config.pop("chat_template", None))
    _, encoder = runtime.load_float(source)
    image, turn = open_image(photos[0]), {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}
    assert torch.equal(encoder.chat([turn], [image])["input_ids"], encoder(image, "a")["input_ids"])
    asked = json.dumps({"model": "m", "messages": [{"role": "system", "content": "s"}, *messages(photos[0])]})
    request = parse(asked.encode(), "m", Defaults(), None, 9)
    engine = Engine(None, encoder, longest=9, line=0)
    with pytest.raises(Refused, match="has no chat template to use"):
        engine._encode(request)
    engine.close()


# -- the command


def test_the_command(export, photos, tmp_path):
    """Started, asked by openai and by evaluate, and stopped with Ctrl-C."""
    words = [sys.executable, "-m", "quant", "serve", str(export), "--port", "0", "--device_type", "cpu"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        lines = iter(process.stdout.readline, "")
        line = next(line for line in lines if line.startswith("serving"))
        assert line.split()[1] == "tiny"
        base = line.split()[3].rstrip(",")
        client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
        assert ask(client, photos[0]).choices[0].message.content
        rows = [json.loads(row) for row in (photos[0].parent / "questions.jsonl").read_text().splitlines()]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = ["evaluate", "--data", str(tmp_path / "q.jsonl"), "--image_folder", str(photos[0].parent), "--quiet"]
        common += ["--quantized", str(export), "--device_type", "cpu", "--endpoint", base, "--batch_size", "3"]
        results, said = tmp_path / "r.jsonl", tmp_path / "e.json"
        assert main([*common, "--results", str(results), "--json", str(said)]) == 0
        summary = json.loads(said.read_text())
        assert summary["flips"] == [] and summary["sides"][0]["table"] == summary["sides"][1]["table"]
        assert all(one == two for one, two in (example["predictions"] for example in summary["examples"]))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read().rstrip().endswith("stopped")


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "0 models are given; OUT, or --float SRC"),
        (["x", "--float", "y"], "2 models are given; one model is in memory"),
        (["nowhere", "--port", "0"], "nowhere"),
        (["--float", "nowhere", "--port", "0"], "nowhere: no such directory"),
        (["x", "--queue", "-1"], "--queue -1: must be at least 0"),
        (["x", "--time_limit", "0"], "--time_limit 0: must be above 0"),
        (["x", "--image_root", "nowhere"], "--image_root nowhere: no such folder"),
        (["--float", str(SOURCE), "--port", "0", "--max_model_len", "4096"], "has 2048 positions"),
    ],
)
def test_flags_that_are_refused(words, message, capsys):
    assert main(["serve", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--float", str(SOURCE), "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use; choose another" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else there(name))
    assert main(["serve", str(SOURCE)]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: serve needs fastapi, not installed: pip install fastapi uvicorn, or this package with [serve]\n"
    )
