"""The body of a POST to /v1/chat/completions -> what is asked for, or why it is refused, in OpenAI's form.

    {"model", "messages": [{"role", "content"}], "max_tokens", "temperature", "top_p", "seed", "stop", "stream", ...}

content is a text, or a list of {"type": "text", "text"} and {"type": "image_url", "image_url": {"url"}}; a url is
data:image/...;base64, or file:///... below a folder that the server was given. The server fetches nothing. What would
change the answer and is not done here (tools, logprobs, n above 1, penalties) is refused by its name instead of being
overlooked; what cannot change it (user, metadata) is passed over.

What a request leaves open is as vLLM has it: the checkpoint's generation_config.json, and where that is silent
temperature 1, top_p 1, no limit to the answer but the model's own.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..base.errors import QuantError
from ..inputs.images import read_bytes
from ..verify.generation import Sampling

PASSED_OVER = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
PASSED_OVER |= {"skip_special_tokens", "add_generation_prompt", "parallel_tool_calls", "top_logprobs"}
NOT_DONE: dict[str, tuple] = {  # what is refused, and the values of it that ask for nothing
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "min_p": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "ignore_eos": (None, False),
    "min_tokens": (None, 0),
    "stop_token_ids": (None, []),
    "use_beam_search": (None, False),
    "include_stop_str_in_output": (None, False),
}
MOST_STOPS = 16
BRANCHES = ("str", "list[_Part]", "_Url")  # as pydantic names them where it says what failed


class Refused(Exception):
    """A request that gets an error for an answer: HTTP status, one line, and OpenAI's type, code and parameter."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type_: str = "invalid_request_error",
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.type = status, code, param, type_

    def body(self) -> dict:
        """{"error": ...}, as OpenAI's clients read it."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


class _Url(BaseModel):
    url: str


class _Part(BaseModel):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: _Url | str | None = None


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=10, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


@dataclass(frozen=True)
class Defaults:
    """What counts where a request says nothing: of generation_config.json. max_tokens None: no limit."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None

    @classmethod
    def of(cls, settings: dict) -> "Defaults":
        """settings: generation_config.json, empty where there is none. Its do_sample counts as little as for vLLM."""
        pick = lambda key, low, kind: value if isinstance(value := settings.get(key), kind) and value > low else None
        found = {
            "temperature": pick("temperature", -1e-9, int | float),
            "top_p": pick("top_p", 0, int | float),
            "top_k": pick("top_k", -1, int),
            "max_tokens": pick("max_new_tokens", 0, int),
        }
        return cls(**{key: value for key, value in found.items() if value is not None})


@dataclass(frozen=True)
class Asked:
    """A request as the engine takes it.

    messages: as chat templates take them (inputs/templates.py); images: the files' bytes, in the order of their
    places; max_tokens: as asked for; default_tokens: where nothing was asked for, None for as many as there is room.
    """

    messages: list[dict]
    images: list[bytes]
    max_tokens: int | None
    default_tokens: int | None
    sampling: Sampling
    repetition_penalty: float | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse(body: bytes, name: str, defaults: Defaults, image_root: Path | None, largest: int) -> Asked:
    """name: the served model's; image_root: the folder below which file URLs may point, None for none; largest: bytes
    of an image file. Raises Refused.
    """
    try:
        asked = _Body.model_validate_json(body)
    except ValidationError as error:
        # Of a choice between types every branch complains; the one that came furthest was meant.
        deepest = max(error.errors(include_url=False, include_context=False), key=lambda one: len(one["loc"]))
        where = ".".join(str(step) for step in deepest["loc"] if step not in BRANCHES)
        raise Refused(400, f"{where or 'the body'}: {deepest['msg']}"[:300], param=where or None) from None
    if asked.model != name:
        message = f"the model {asked.model[:100]!r} is not served here, {name!r} is"
        raise Refused(404, message, code="model_not_found", param="model")
    _refuse_not_done(asked.model_extra or {})
    images: list[bytes] = []
    messages = [_message(message, number, images, image_root, largest) for number, message in enumerate(asked.messages)]
    if messages[-1]["role"] != "user":
        raise Refused(400, "messages: the last one must be the user's", param="messages")
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if len(stop) > MOST_STOPS or not all(stop):
        raise Refused(400, f"stop: up to {MOST_STOPS} texts that are not empty", param="stop")
    pick = lambda value, default: default if value is None else value
    return Asked(
        messages,
        images,
        asked.max_completion_tokens or asked.max_tokens,
        defaults.max_tokens,
        Sampling(
            pick(asked.temperature, defaults.temperature),
            pick(asked.top_p, defaults.top_p),
            max(0, pick(asked.top_k, defaults.top_k)),  # -1 is vLLM's word for all
            asked.seed,
        ),
        asked.repetition_penalty,
        stop,
        bool(asked.stream),
        bool(asked.stream_options and asked.stream_options.include_usage),
    )


def _refuse_not_done(extra: dict[str, Any]) -> None:
    for key, value in extra.items():
        if key in NOT_DONE and value not in NOT_DONE[key]:
            raise Refused(400, f"{key}: is not done by this server, leave it out", code="unsupported", param=key)
        if key not in NOT_DONE and key not in PASSED_OVER and value is not None:
            raise Refused(
                400, f"{key[:100]}: is not known here, leave it out", code="unknown_parameter", param=key[:100]
            )


def _message(message: _Message, number: int, images: list[bytes], root: Path | None, largest: int) -> dict:
    """As a template takes it; the images' bytes are appended to `images`."""
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": [{"type": "text", "text": message.content}]}
    content: list[dict] = []
    for position, part in enumerate(message.content):
        where = f"messages.{number}.content.{position}"
        if part.type == "text":
            if part.text is None:
                raise Refused(400, f"{where}: a part of type text has a text", param=where)
            content.append({"type": "text", "text": part.text})
            continue
        if part.image_url is None:
            raise Refused(400, f"{where}: a part of type image_url has an image_url", param=where)
        if role != "user":
            raise Refused(400, f"{where}: images stand in messages of the user alone", param=where)
        url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
        images.append(_image(url, where, root, largest))
        content.append({"type": "image"})
    return {"role": role, "content": content}


def _image(url: str, where: str, root: Path | None, largest: int) -> bytes:
    """The bytes of an image file. Raises Refused."""

    def refuse(why: str) -> Refused:
        return Refused(400, f"{where}: {why}", code="invalid_image_url", param=where)

    if url.startswith("data:"):
        head, comma, data = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise refuse("a data URL of an image is data:image/png;base64,... or the like")
        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:
            raise refuse(f"not base64: {error}") from None
    if not url.startswith("file:"):
        raise refuse(f"{url[:40]!r}: this server fetches nothing; send the image in a data URL")
    if root is None:
        raise refuse("file URLs are for servers started with --image_root DIR; send a data URL")
    try:
        path = Path(unquote(urlsplit(url).path)).resolve()
    except (OSError, RuntimeError, ValueError):
        raise refuse("no path of a file") from None
    if urlsplit(url).netloc not in ("", "localhost") or not path.is_relative_to(root):
        raise refuse("is not below --image_root")
    try:
        if path.is_file() and path.stat().st_size > largest:
            raise refuse(f"the file has {path.stat().st_size} bytes, at most {largest} are taken")
        return read_bytes(path)
    except (QuantError, OSError) as error:
        raise refuse(str(error)) from None
