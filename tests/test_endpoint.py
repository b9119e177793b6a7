"""The client against a server on this machine that misbehaves on command."""

import base64
import io
import time
from collections import Counter

import numpy as np
import pytest
from chat_server import Server, completion
from PIL import Image

from quant.base.errors import QuantError, UsageError
from quant.evaluate.endpoint import Endpoint, Unanswered, data_url
from quant.evaluate.questions import Question


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def picture(kind="PNG", mode="RGB", exif=None) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **({"exif": exif} if exif else {}))
    return buffer.getvalue()


def question(data=None) -> Question:
    return Question("key", "data.tsv:2", (data or picture(),), "What is written?", ("x",), None, False)


def client(server, **changes) -> Endpoint:
    return Endpoint(server.url, **{"max_new_tokens": 16, "timeout": 0.3, "retries": 3, "pause": 0.01} | changes)


def test_what_is_asked(server):
    endpoint = client(server)
    assert endpoint.answer(question()) == "fine"
    path, request = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (request["model"], request["temperature"], request["max_tokens"], request["stream"]) == (
        "served",
        0,
        16,
        False,
    )
    image, text = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is written?"}
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(picture()).decode()
    assert not endpoint.troubles


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_ways_to_write_the_url(server, suffix):
    endpoint = Endpoint(server.url + suffix, max_new_tokens=16, timeout=5)
    assert endpoint.url == server.url + "/v1" and endpoint.answer(question()) == "fine"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "file:///etc/hosts", "http://", ""])
def test_urls_that_are_none(url):
    with pytest.raises(UsageError, match="--endpoint"):
        Endpoint(url, "model", max_new_tokens=16)


NONSENSE = [
    b"",
    b"<html>busy</html>",
    b"[]",
    b"null",
    b"{}",
    b'{"choices": []}',
    b'{"choices": [{"message": {"content": null}}]}',
    b"\xff\xfe",
    completion(5),
    b"[" * 100_000,
]


@pytest.mark.parametrize(
    "step, kind",
    [
        ("hang", "timeout"),
        ("trickle", "timeout"),
        ("hang up", "connection"),
        ("cut", "connection"),
        ((500, b"oh"), "status 500"),
        ((503, b""), "status 503"),
        ((429, b"slow down"), "status 429"),
        *(((200, body), "nonsense") for body in NONSENSE),
    ],
)
def test_trouble_is_counted_and_tried_again(server, step, kind):
    server.plan = [step, step]
    endpoint = client(server)
    assert endpoint.answer(question()) == "fine"
    assert endpoint.troubles == Counter({kind: 2}) and len(server.requests) == 3


def test_troubles_of_several_kinds(server):
    server.plan = [(500, b""), "hang up", (200, b"no")]
    endpoint = client(server)
    assert endpoint.answer(question()) == "fine"
    assert endpoint.troubles == Counter({"status 500": 1, "connection": 1, "nonsense": 1})


def test_pauses_double(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.plan = [(500, b"")] * 8
    client(server, retries=8, pause=1.0).answer(question())
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_giving_up_says_why(server):
    server.plan = [(500, b"out of memory")] * 9
    with pytest.raises(Unanswered, match=r"no answer in 4 tries, the last: status 500 with 'out of memory'") as caught:
        client(server).answer(question())
    assert len(server.requests) == 4 and "\n" not in str(caught.value)


def test_a_refused_question_is_not_asked_again(server):
    server.plan = [(400, b"image too large")]
    endpoint = client(server)
    with pytest.raises(Unanswered, match="status 400 with 'image too large'"):
        endpoint.answer(question())
    assert len(server.requests) == 1 and endpoint.troubles == Counter({"status 400": 1})
    assert endpoint.answer(question()) == "fine"


def test_a_wrong_address_ends_the_run(server):
    server.plan = [(404, b"no such model")]
    with pytest.raises(QuantError, match="status 404 with 'no such model'.*every question") as caught:
        client(server).answer(question())
    assert not isinstance(caught.value, Unanswered)


def test_nobody_there():
    with pytest.raises(QuantError, match="no answer in 2 tries.*refused.*--served_model"):
        Endpoint("http://127.0.0.1:9", max_new_tokens=16, timeout=1, retries=1, pause=0.01)


def test_half_a_surrogate_pair_can_be_written(server):
    server.plan = [(200, b'{"choices": [{"message": {"content": "a\\ud83d"}}]}')]
    assert client(server).answer(question()).encode()


def test_images_that_readers_disagree_on_go_as_png():
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for data, size in (
        (picture("JPEG", exif=rotated), (20, 30)),
        (picture("JPEG", "CMYK"), (30, 20)),
        (picture("PNG", "RGBA"), (30, 20)),
        (picture("BMP"), (30, 20)),
    ):
        head, _, body = data_url(data, "x").partition(",")
        with Image.open(io.BytesIO(base64.b64decode(body))) as image:
            assert (
                head == "data:image/png;base64" and image.format == "PNG" and image.mode == "RGB" and image.size == size
            )
    assert data_url(picture("JPEG"), "x") == "data:image/jpeg;base64," + base64.b64encode(picture("JPEG")).decode()
