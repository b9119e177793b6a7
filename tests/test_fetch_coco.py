"""fetch-coco against a server on this machine: resume, every way a download can go wrong, and the attribution."""

import argparse
import http.server
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from quant.base.config import COCO_LIST
from quant.base.errors import QuantError, UsageError
from quant.commands import fetch_coco as command
from quant.inputs import fetch_coco as module
from quant.inputs.fetch_coco import fetch_coco
from quant.inputs.sources import load_samples

SIZES = [(64, 48), (40, 56), (32, 32)]


def jpeg(seed, width, height):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, start = self.server, 0
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        body = server.files.get(self.path.removeprefix("/photos/"))
        if body is None:
            return self.send_error(404)
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.announce:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:] if server.cut_at is None else body[start : start + server.cut_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {f"{i}.jpg": jpeg(i, *size) for i, size in enumerate(SIZES)}
    server.requests, server.ranges, server.announce, server.cut_at = [], True, True, None
    server.url = f"http://127.0.0.1:{server.server_port}/photos"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def rows():
    return [
        {
            "id": i,
            "file_name": f"{i}.jpg",
            "coco_url": f"http://127.0.0.1:9/{i}.jpg",
            "flickr_url": f"http://farm8.staticflickr.com/7434/913814760{i}_c6225224b8_z.jpg",
            "license": 4,
            "width": width,
            "height": height,
        }
        for i, (width, height) in enumerate(SIZES)
    ]


@pytest.fixture
def fetch(server, rows, tmp_path):
    """fetch() -> what was reported; rows and server.files may be changed before."""

    def call():
        (tmp_path / "list.json").write_text(json.dumps(rows))
        lines = []
        server.requests.clear()
        fetch_coco(tmp_path / "out", tmp_path / "list.json", server.url, lines.append)
        return lines

    return call


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []


def fails(call, match, kind=QuantError):
    with pytest.raises(kind, match=match) as caught:
        call()
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


ALL = ["0.jpg", "1.jpg", "2.jpg", "SOURCES.json"]


@pytest.mark.parametrize("announce", [True, False])
def test_fetches_all_and_a_second_run_asks_for_nothing(server, fetch, tmp_path, announce):
    server.announce = announce
    lines = fetch()
    assert names(tmp_path) == ALL
    assert all((tmp_path / "out" / name).read_bytes() == body for name, body in server.files.items())
    assert "3 photographs" in lines[-1] and "3 fetched" in lines[-1] and str(tmp_path / "out") in lines[-1]
    assert [path for path, _ in server.requests] == ["/photos/0.jpg", "/photos/1.jpg", "/photos/2.jpg"]
    again = fetch()
    assert server.requests == [] and len(again) == 1 and "0 fetched" in again[0]
    assert len(load_samples(tmp_path / "out", "p", None, 0).samples) == 3


def test_sources_hold_the_attribution(fetch, rows, tmp_path):
    fetch()
    sources = json.loads((tmp_path / "out" / "SOURCES.json").read_text())
    assert [source["file"] for source in sources] == [row["file_name"] for row in rows]
    for source, row in zip(sources, rows):
        assert source["flickr_url"] == row["flickr_url"] and source["flickr_page"].endswith(f"=913814760{row['id']}")
        assert source["licence"] == "CC BY 2.0" and source["licence_url"].endswith("/by/2.0/")


@pytest.mark.parametrize("announce", [True, False])
def test_broken_off_then_continued_by_range(server, fetch, tmp_path, announce):
    server.cut_at, server.announce = 300, announce
    body = server.files["0.jpg"]
    if announce:
        message = fails(fetch, f"after 300 of {len(body)} bytes")
        assert "0 of 3" in message and "run again" in message
        assert names(tmp_path) == ["0.jpg.part"]
    else:  # without a length only decoding shows that the end is missing; such a part is not kept
        fails(fetch, "not the photograph: cannot be decoded")
        assert names(tmp_path) == []
        (tmp_path / "out" / "0.jpg.part").write_bytes(body[:300])
    server.cut_at = None
    fetch()
    assert server.requests[0] == ("/photos/0.jpg", "bytes=300-")
    assert names(tmp_path) == ALL and (tmp_path / "out" / "0.jpg").read_bytes() == body


def test_server_without_range_starts_over(server, fetch, tmp_path):
    server.ranges = False
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.jpg.part").write_bytes(server.files["1.jpg"][:200])
    fetch()
    assert ("/photos/1.jpg", "bytes=200-") in server.requests
    assert names(tmp_path) == ALL and (tmp_path / "out" / "1.jpg").read_bytes() == server.files["1.jpg"]


@pytest.mark.parametrize("left", ["other", "whole", "longer"])
def test_part_of_something_else_is_not_trusted(server, fetch, tmp_path, left):
    body = server.files["0.jpg"]
    (tmp_path / "out").mkdir()
    part = {"other": b"<html>" * 20, "whole": body, "longer": b"x" * (len(body) + 5)}[left]
    (tmp_path / "out" / "0.jpg.part").write_bytes(part)
    fetch()
    assert names(tmp_path) == ALL and (tmp_path / "out" / "0.jpg").read_bytes() == body
    assert [path for path, _ in server.requests].count("/photos/0.jpg") == (1 if left == "whole" else 2)


def test_damaged_photograph_is_fetched_anew(server, fetch, tmp_path):
    fetch()
    (tmp_path / "out" / "1.jpg").write_bytes(server.files["1.jpg"][:100])
    (tmp_path / "out" / "2.jpg").write_bytes(server.files["0.jpg"])
    assert "2 fetched" in fetch()[-1]
    assert all((tmp_path / "out" / name).read_bytes() == body for name, body in server.files.items())


def test_wrong_size_and_no_image(server, fetch, tmp_path):
    server.files["1.jpg"] = jpeg(1, 40, 57)
    message = fails(fetch, "1.jpg: not the photograph: 40x57 pixels, the list says 40x56")
    assert "1 of 3" in message and names(tmp_path) == ["0.jpg", "SOURCES.json"]
    server.files["1.jpg"] = b"<html>please log in</html>"
    fails(fetch, "not the photograph: not a PNG")
    assert names(tmp_path) == ["0.jpg", "SOURCES.json"]
    assert [s["file"] for s in json.loads((tmp_path / "out" / "SOURCES.json").read_text())] == ["0.jpg"]


def test_http_errors(server, fetch, tmp_path):
    del server.files["2.jpg"]
    assert "2 of 3" in fails(fetch, "2.jpg: the server answered 404 Not Found")
    assert names(tmp_path) == ["0.jpg", "1.jpg", "SOURCES.json"]


def test_no_network_is_one_line_and_leaves_nothing(server, rows, tmp_path):
    file = tmp_path / "list.json"
    for url in ("http://127.0.0.1:9", "http://name.invalid/x", "http://[", "http://"):
        rows[0]["coco_url"] = url + "/0.jpg"
        file.write_text(json.dumps(rows))
        fails(lambda: fetch_coco(tmp_path / "out", file), "cannot be fetched")
        fails(lambda url=url: fetch_coco(tmp_path / "out", file, url), "cannot be fetched")
    assert not (tmp_path / "out").exists()


def test_silent_server_is_given_up(monkeypatch, rows, tmp_path):
    import socket

    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "list.json").write_text(json.dumps(rows))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        fails(lambda: fetch_coco(tmp_path / "out", tmp_path / "list.json", url), "cannot be fetched: .*timed out")


def test_target_that_cannot_be_written(server, fetch, tmp_path):
    (tmp_path / "out").write_text("a file")
    fails(fetch, "out: cannot be written: (File exists|Not a directory)")


@pytest.mark.parametrize(
    "change, match",
    [
        ({"file_name": "../x.jpg"}, "entry 2: '../x.jpg' is not a plain file name"),
        ({"file_name": ".hidden"}, "not a plain file name"),
        ({"coco_url": "file:///etc/passwd"}, "not an http address"),
        ({"license": 1}, "licence 1, only 4"),
        ({"width": "64"}, "no width"),
        ({"flickr_url": None}, "no flickr_url"),
    ],
)
def test_bad_lists(server, rows, fetch, tmp_path, change, match):
    rows[1].update(change)
    fails(fetch, match, UsageError)
    assert server.requests == [] and names(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{}", "[]", "[3]", None])
def test_no_list(tmp_path, content):
    file = tmp_path / "list.json"
    if content is not None:
        file.write_text(content)
    fails(lambda: fetch_coco(tmp_path / "out", file), "list.json: ", UsageError)
    fails(lambda: fetch_coco(tmp_path / "out", COCO_LIST, "ftp://x"), "http://", UsageError)


def test_command_line(server, rows, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    shipped = parser.parse_args(["--out", str(tmp_path / "none"), "--base_url", server.url])
    assert shipped.list == COCO_LIST
    fails(lambda: command.run(shipped), "404 .*0 of 30 photographs")
    (tmp_path / "list.json").write_text(json.dumps(rows))
    flags = ["--out", str(tmp_path / "out"), "--list", str(tmp_path / "list.json"), "--base_url", server.url + "/"]
    command.run(parser.parse_args(flags))
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 photographs in ")
