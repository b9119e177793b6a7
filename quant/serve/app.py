"""The HTTP side: /v1/models, /v1/chat/completions, /health. FastAPI; every error in OpenAI's form.

A request takes a place when it arrives and leaves it when it is answered, refused or gone, so that what waits, and the
memory that it takes, has a limit: places x --max_request. Its time runs from its arrival: sending the body, waiting
and computing count alike.
"""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from .engine import Delta, Done, Engine, Event, Job
from .request import Asked, Defaults, Refused, parse

POLL = 0.5  # seconds between two looks whether the client is still there


@dataclass(frozen=True)
class Service:
    """What is served, and how much of it. name: that requests call the model by; largest: bytes of a request, and of a
    file; seconds: that a request may take; key: that it must bring, None for none; report: gets a line for each.
    """

    name: str
    engine: Engine
    defaults: Defaults
    image_root: Path | None
    largest: int
    seconds: float
    key: str | None
    report: Callable[[str], None]


def make_app(service: Service) -> FastAPI:
    """The application, for uvicorn."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    started = int(time.time())

    @app.get("/health")
    async def health() -> dict:
        return {}

    @app.get("/v1/models")
    async def models(request: Request) -> dict:
        _check_key(request, service.key)
        return {"object": "list", "data": [_model(service, started)]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict:
        _check_key(request, service.key)
        if name != service.name:
            message = f"the model {name[:100]!r} is not served here, {service.name!r} is"
            raise Refused(404, message, code="model_not_found", param="model")
        return _model(service, started)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        _check_key(request, service.key)
        service.engine.take_place()
        answering = _Answering(service, request)
        try:
            return await answering.response()
        except BaseException as error:
            answering.leave()
            if isinstance(error, Refused):
                service.report(f"refused    {error.status} {error}")
            raise

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        headers = {"Retry-After": "1"} if error.status == 429 else {}
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return JSONResponse(Refused(error.status_code, message).body(), error.status_code)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:  # Starlette prints its traceback
        return JSONResponse(Refused(500, f"internal error ({type(error).__name__})", type_="server_error").body(), 500)

    return app


def _model(service: Service, started: int) -> dict:
    return {
        "id": service.name,
        "object": "model",
        "created": started,
        "owned_by": "quant",
        "max_model_len": service.engine.longest,
    }


def _check_key(request: Request, key: str | None) -> None:
    given = request.headers.get("authorization", "")
    if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        message = "this server wants its key: Authorization: Bearer KEY"
        raise Refused(401, message, code="invalid_api_key", type_="authentication_error")


class _Stream(StreamingResponse):
    """leave: called at the end, however it comes: where the client goes at once, the events are not even begun."""

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None], headers: dict[str, str]):
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.leave = leave

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.leave()


class _Answering:
    """One request: its place, its job, its events."""

    def __init__(self, service: Service, request: Request):
        self.service, self.request = service, request
        self.deadline = time.monotonic() + service.seconds
        self.job: Job | None = None
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.left = False
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def leave(self) -> None:
        """Give the place back, and end what is still computed; the second time nothing happens."""
        if not self.left:
            self.left = True
            if self.job is not None:
                self.service.engine.cancel(self.job)
            self.service.engine.leave_place()

    async def response(self) -> Response:
        service = self.service
        body = await self._in_time(self._body())
        asked: Asked = await asyncio.to_thread(
            parse, body, service.name, service.defaults, service.image_root, service.largest
        )
        del body
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        self.job = Job(asked, tell)
        service.engine.submit(self.job)
        first = await self._next(watch_client=True)
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return _Stream(self._stream(first, asked), self.leave, headers)
        assert isinstance(first, Done)  # deltas are for streams
        self._finished(first)
        message = {"role": "assistant", "content": first.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": first.reason}
        return JSONResponse({**self._head("chat.completion"), "choices": [choice], "usage": _usage(first)})

    async def _stream(self, first: Event, asked: Asked) -> AsyncIterator[str]:
        """Server-sent events. What goes wrong behind the first is an event, too: the status is already sent."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            event = first
            while isinstance(event, Delta):
                yield self._chunk({"content": event.text})
                event = await self._next()
            assert isinstance(event, Done)
            if event.rest:
                yield self._chunk({"content": event.rest})
            yield self._chunk({}, event.reason)
            if asked.include_usage:
                yield _event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(event)})
            yield "data: [DONE]\n\n"
            self._finished(event)
        except Refused as error:
            self.service.report(f"refused    {error.status} {error}")
            yield _event(error.body())

    async def _next(self, watch_client: bool = False) -> Event:
        """The job's next event. Raises Refused: the job's own, or when the time is over or the client is gone."""
        while True:
            try:
                event = await self._in_time(self.events.get(), POLL if watch_client else None)
            except TimeoutError:
                if await self.request.is_disconnected():
                    raise Refused(499, "the client is gone") from None
                continue
            if isinstance(event, Refused):
                raise event
            return event

    async def _in_time(self, what, at_most: float | None = None) -> Any:
        """Await it, until the request's time is over. Raises Refused (504), or TimeoutError after `at_most` s."""
        left = max(0.0, self.deadline - time.monotonic())
        try:
            return await asyncio.wait_for(what, left if at_most is None else min(left, at_most))
        except (asyncio.TimeoutError, TimeoutError):  # two classes until Python 3.11
            if time.monotonic() < self.deadline:
                raise TimeoutError from None
            message = f"no whole answer within {self.service.seconds:g} s (--time_limit); ask for fewer tokens"
            raise Refused(504, message, code="time_limit", type_="timeout_error") from None

    async def _body(self) -> bytes:
        """Raises Refused for one that is too large or not JSON by its header."""
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, f"Content-Type is {kind[:100]!r}, application/json is expected")
        most = self.service.largest
        too_large = Refused(413, f"the request has more than {most} bytes (--max_request)", code="request_too_large")
        length = self.request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        body = bytearray()
        async for part in self.request.stream():
            body += part
            if len(body) > most:
                raise too_large
        return bytes(body)

    def _finished(self, done: Done) -> None:
        self.leave()
        speed = f"{done.prompt_tokens} + {done.tokens} tokens in {done.seconds:.1f} s"
        self.service.report(f"answered   {speed}, waited {done.waited:.1f} s, {done.reason}")

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.service.name}

    def _chunk(self, delta: dict, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice]})


def _event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _usage(done: Done) -> dict:
    total = done.prompt_tokens + done.tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.tokens, "total_tokens": total}
