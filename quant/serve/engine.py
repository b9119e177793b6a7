"""One model, one thread that computes, and a line of requests before it.

A request that was let in is a Job: it waits in the line, is computed, and tells its events (Delta, Done or a Refused)
to whoever asked, from the engine's thread. Whoever asked may cancel it at any time: in the line it is taken out, in
the model it ends behind the next token. One request is computed at a time; a model that answers one at a time gives
every one the same answer, whoever else asks.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base.errors import QuantError
from ..inputs.images import decode_image
from ..model.device import is_out_of_memory
from ..verify import generation
from .request import Asked, Refused

if TYPE_CHECKING:
    from ..inputs.encoder import Encoder


@dataclass(frozen=True)
class Delta:
    """A further piece of the answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer. text: the whole of it; rest: what no Delta held yet; reason: "stop" or "length"; tokens of
    prompt and answer; seconds in the line and in the model.
    """

    text: str
    rest: str
    reason: str
    prompt_tokens: int
    tokens: int
    waited: float
    seconds: float


Event = Delta | Done | Refused


@dataclass(eq=False)
class Job:
    """A request on its way. tell: gets its events, in the engine's thread."""

    asked: Asked
    tell: Callable[[Event], None]
    began: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine:
    """model, encoder: of runtime.load() or load_float(). longest: tokens of prompt and answer. line: requests that may
    wait while one is computed.
    """

    def __init__(self, model: Any, encoder: "Encoder", *, longest: int, line: int):
        self.model, self.encoder, self.longest, self.places = model, encoder, longest, line + 1
        self._taken = 0
        self._line: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # -- places: one for each request from its arrival to its end

    def take_place(self) -> None:
        """Raises Refused (429) when all are taken."""
        with self._changed:
            if self._taken >= self.places:
                message = f"{self.places} requests are waiting or being answered (--queue); try again later"
                raise Refused(429, message, code="queue_full", type_="rate_limit_error")
            self._taken += 1

    def leave_place(self) -> None:
        """Once for each take_place."""
        with self._changed:
            self._taken -= 1

    def submit(self, job: Job) -> None:
        """Put a request at the end of the line."""
        with self._changed:
            self._line.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more. Nothing happens to one that is done."""
        job.cancelled.set()
        with self._changed:
            if job in self._line:
                self._line.remove(job)

    def close(self) -> None:
        """Compute nothing further; what is computed ends behind its next token."""
        with self._changed:
            self._ends = True
            for job in self._line:
                job.cancelled.set()
            self._changed.notify()
        self._thread.join(timeout=5)

    # -- the engine's thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._ends)
                if self._ends:
                    return
                job = self._line.popleft()
            try:
                event: Event = self._answer(job)
            except Refused as refused:
                event = refused
            except Exception as error:  # of the model or of torch: the next request may fare better
                event = self._failed(error)
            job.tell(event)

    def _failed(self, error: Exception) -> Refused:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            message = "the device's memory does not suffice for this request: send a smaller image or a shorter prompt"
            return Refused(500, message, code="out_of_memory", type_="server_error")
        traceback.print_exception(error, file=sys.stderr)
        return Refused(
            500, f"internal error ({type(error).__name__}); the server's log says more", type_="server_error"
        )

    def _answer(self, job: Job) -> Done:
        asked, began = job.asked, time.monotonic()
        inputs = self._encode(asked)
        prompt = inputs["input_ids"].shape[1]
        room = self.longest - prompt
        if room < (asked.max_tokens or 1):
            wanted = f" and max_tokens {asked.max_tokens}" if asked.max_tokens else ""
            message = f"the prompt has {prompt} tokens{wanted}; the model takes {self.longest} in all"
            raise Refused(400, message, code="context_length_exceeded", param="messages")
        limit = asked.max_tokens or min(room, asked.default_tokens or room)
        text = Text(self.encoder.decode, asked.stop)

        def watch(ids: Tensor) -> bool:
            if asked.stream or asked.stop:
                delta = text.add(ids)
                if asked.stream and delta:
                    job.tell(Delta(delta))
            return text.ended or job.cancelled.is_set() or self._ends

        ids = generation.generate(
            self.model,
            inputs,
            limit,
            sampling=asked.sampling,
            repetition_penalty=asked.repetition_penalty,
            watch=watch,
        )
        whole, rest = text.finish(ids)
        cut = len(ids) == limit and not text.ended and not self._is_end(ids)
        now = time.monotonic()
        return Done(whole, rest, "length" if cut else "stop", prompt, len(ids), began - job.began, now - began)

    def _encode(self, asked: Asked) -> dict[str, Tensor]:
        try:
            images = [decode_image(data, f"image {number}") for number, data in enumerate(asked.images, 1)]
            return self.encoder.chat(asked.messages, images)
        except QuantError as error:
            raise Refused(400, str(error), code="invalid_input", param="messages") from None

    def _is_end(self, ids: Tensor) -> bool:
        """Whether the model itself ended the answer, int64 [N]."""
        ends = self.model.generation_config.eos_token_id
        return bool(torch.isin(ids[-1:], torch.tensor([] if ends is None else ends)).any())


class Text:
    """An answer's text while it grows: what of it is certain, and where a stop text ends it.

    decode: token ids [N] -> text. Held back is what further tokens may change: half a character (decoded as U+FFFD),
    and what may be the beginning of a stop text. ended: whether a stop text was found.
    """

    def __init__(self, decode: Callable[[Tensor], str], stop: tuple[str, ...]):
        self.decode, self.stop, self.ended, self._sent = decode, stop, False, 0

    def add(self, ids: Tensor) -> str:
        """All tokens so far, int64 [N] -> the text that is newly certain; "" for none."""
        text = self.decode(ids).rstrip("\ufffd")
        text, self.ended = self._cut(text)
        certain = len(text) if self.ended else len(text) - self._may_be_stop(text)
        new = text[self._sent : certain]
        self._sent = max(self._sent, certain)
        return new

    def finish(self, ids: Tensor) -> tuple[str, str]:
        """All tokens, int64 [N] -> (the whole text, what add() did not give of it)."""
        text, _ = self._cut(self.decode(ids))
        return text, text[self._sent :]

    def _cut(self, text: str) -> tuple[str, bool]:
        """Up to the first stop text, and whether there is one."""
        found = [place for place in map(text.find, self.stop) if place >= 0]
        return (text[: min(found)], True) if found else (text, False)

    def _may_be_stop(self, text: str) -> int:
        """How many of the last characters may begin a stop text."""
        lengths = [length for stop in self.stop for length in range(1, len(stop)) if text.endswith(stop[:length])]
        return max(lengths, default=0)
