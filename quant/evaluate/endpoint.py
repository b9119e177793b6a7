"""A model behind an OpenAI-compatible server (vLLM-Ascend, MindIE Service): one question, one POST to
/v1/chat/completions, greedy.

What a server does wrong is counted by kind and tried again, after a pause that doubles from try to try:
    timeout      no complete answer within `timeout` seconds
    connection   refused, reset, cut off within the answer
    status 5xx   and 408, 425, 429
    nonsense     status 200, but not the JSON of a chat completion with a text in it
What trying again cannot mend is not tried again: another status 4xx leaves the question Unanswered, one that concerns
every question (401, 403, 404, 405) ends the run. Nothing is invented: a question that stays without an answer is
reported as such.

An image goes as the file's own bytes where every reader sees the same pixels in them, else as a PNG of what the local
models see; a video as its file's bytes, of which the server takes what frames it will. Left out: API keys, client
certificates.
"""

import base64
import http.client
import io
import json
import mimetypes
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ..base.errors import QuantError, UsageError
from ..inputs.images import decode_image, one_line, read_bytes
from .questions import Question

PLAIN = {"PNG": "image/png", "JPEG": "image/jpeg"}
LARGEST_ANSWER = 16 * 2**20  # bytes; what is longer is no chat completion
RETRIED, FATAL = {408, 425, 429}, {401, 403, 404, 405}
LONGEST_PAUSE = 30.0


class Unanswered(QuantError):
    """A question got no answer; the message says why. Others may."""


class _Trouble(Exception):
    """One try failed and another may not. args: kind, detail."""


class Endpoint:
    """url: http(s)://host:port, with or without /v1 or /v1/chat/completions. model: the served name; None asks the
    server for its first.

    batch_size: requests at a time.

    retries: further tries of a failed request; pause: seconds before the first of them. troubles: what went wrong so
    far, by kind. Raises UsageError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        max_new_tokens: int,
        batch_size: int = 1,
        timeout: float = 120,
        retries: int = 4,
        pause: float = 1.0,
    ):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--endpoint {url}: expected http://host:port or https://host:port")
        base = parts._replace(query="", fragment="").geturl().rstrip("/")
        self.url = base.removesuffix("/chat/completions").removesuffix("/v1") + "/v1"
        self.max_new_tokens, self.timeout, self.retries, self.pause = max_new_tokens, timeout, retries, pause
        self.troubles: Counter[str] = Counter()
        self.batch_size, self._lock = batch_size, threading.Lock()
        self.model = model or self._first_model()

    def describe(self) -> dict:
        """What answers depend on, as far as it can be known from here: not what the server loaded under this name."""
        return {"endpoint": self.url, "model": self.model, "max_new_tokens": self.max_new_tokens}

    def answer(self, question: Question) -> str:
        """Raises Unanswered; QuantError when no question can be answered."""
        content: list[dict] = [
            *({"type": "image_url", "image_url": {"url": data_url(data, question.where)}} for data in question.data()),
            *({"type": "video_url", "video_url": {"url": video_url(path)}} for path in question.videos),
            {"type": "text", "text": question.prompt},
        ]
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_new_tokens,
            "stream": False,
        }
        return self._ask("/chat/completions", _completion, request)

    def answers(self, questions: list[Question]) -> list[str | Unanswered]:
        """As many requests at once; an Unanswered for one that got no answer. Raises QuantError as answer does."""

        def said(question: Question) -> str | Unanswered:
            try:
                return self.answer(question)
            except Unanswered as error:
                return error

        with ThreadPoolExecutor(len(questions)) as pool:
            return list(pool.map(said, questions))

    def _count(self, kind: str) -> None:
        with self._lock:
            self.troubles[kind] += 1

    def _first_model(self) -> str:
        try:
            return self._ask("/models", lambda answer: answer["data"][0]["id"])
        except QuantError as error:
            raise QuantError(f"{error}; --served_model NAME does without asking for the model's name") from None

    def _ask(self, path: str, read, request: dict | None = None) -> str:
        """POST `request`, or GET without one; read: the answer's JSON -> text. Tries again as said above."""
        detail = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.pause * 2 ** (attempt - 1), LONGEST_PAUSE))
            try:
                return self._try(self.url + path, read, request)
            except _Trouble as trouble:
                kind, detail = trouble.args
                self._count(kind)
        raise Unanswered(f"{self.url}{path}: no answer in {self.retries + 1} tries, the last: {detail}")

    def _try(self, url: str, read, request: dict | None) -> str:
        body = None if request is None else json.dumps(request).encode()
        sent = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(sent, timeout=self.timeout) as response:
                received = self._read(response)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(url, error)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Trouble("timeout", f"nothing within {self.timeout:g} s") from None
            raise _Trouble("connection", one_line(reason) if isinstance(reason, Exception) else str(reason)) from None
        try:
            text = read(json.loads(received))
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _Trouble("nonsense", f"status 200 with {_excerpt(received)}") from None
        return text

    def _read(self, response) -> bytes:
        """The whole body, within the time: the socket's own timeout begins anew with every byte."""
        deadline, received = time.monotonic() + self.timeout, b""
        while chunk := response.read1(65536):
            received += chunk
            if time.monotonic() > deadline:
                raise _Trouble("timeout", f"only {len(received)} bytes within {self.timeout:g} s")
            if len(received) > LARGEST_ANSWER:
                raise _Trouble("nonsense", f"more than {LARGEST_ANSWER} bytes")
        if response.length:  # promised, and the connection ended before it came
            raise _Trouble("connection", f"cut off {response.length} bytes before the end")
        return received

    def _refused(self, url: str, error: urllib.error.HTTPError) -> None:
        """Raises what the status calls for."""
        kind = f"status {error.code}"
        try:
            detail = f"{kind} with {_excerpt(error.read(4096))}"
        except (OSError, http.client.HTTPException):
            detail = kind
        if error.code >= 500 or error.code in RETRIED:
            raise _Trouble(kind, detail) from None
        self._count(kind)
        if error.code in FATAL:
            raise QuantError(f"{url}: {detail}; every question would be refused alike") from None
        raise Unanswered(f"{url}: {detail}") from None


def _completion(answer) -> str:
    text = answer["choices"][0]["message"]["content"]
    return (
        text.encode(errors="replace").decode() if isinstance(text, str) else text
    )  # JSON can hold half a surrogate pair


def _excerpt(body: bytes) -> str:
    text = " ".join(body.decode(errors="replace").split())
    return repr(text[:120] + ("..." if len(text) > 120 else "")) if text else "an empty body"


def video_url(path: Path) -> str:
    """A video file as a data: URL, as vLLM takes it. Raises Unanswered for a folder of frames."""
    if path.is_dir():
        raise Unanswered(f"{path}: a folder of frames cannot be sent to a server; make a file of it")
    kind = mimetypes.guess_type(path.name)[0] or ""
    kind = kind if kind.startswith("video/") else "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(read_bytes(path)).decode()}"


def data_url(data: bytes, where: str) -> str:
    """An image file's bytes as a data: URL. where: what messages call it."""
    with Image.open(io.BytesIO(data)) as image:
        plain = (
            image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1 and not image.has_transparency_data
        )  # 0x0112: the rotation
        kind = PLAIN.get(image.format or "") if plain else None
    if kind is None:
        buffer = io.BytesIO()
        decode_image(data, where).save(buffer, "PNG")
        kind, data = PLAIN["PNG"], buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
