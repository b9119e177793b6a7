"""Prompt -> the text of a chat, by the checkpoint's chat template or its family's documented format; and text ->
tokens.

A template is a program, in Jinja, that a stranger wrote. It runs, and the tokenizer first sees its text, in a child
process with limits (limited_process.py); only then is the text used here.

A chat is a list of messages as templates take them:
    {"role": "system", "user" or "assistant",
     "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "..."}, ...]}
The family's own format knows one turn of the user alone.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..base.errors import QuantError, one_line
from ..families.processing import Processing
from .limited_process import MAX_ANSWER, JobFailed, run_with_limits
from .processor_files import optional_json

MOST_TEXTS = 1024  # rendered ones that are kept


def user_turn(prompt: str, images: int, videos: int = 0) -> dict:
    """The message of a user who asks `prompt` about so many images and videos, which come first."""
    shown = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}


class ChatTemplate:
    """The chat template of the checkpoint in `directory`. source: the file that it is from, or "built in" for the
    family's own format, with the reason where a template is there but cannot be used.

    The first of chat_template.jinja, chat_template.json and tokenizer_config.json counts that makes one placeholder of
    one image: one that has no place for an image (a language model's, left over) is passed over.
    Raises QuantError for a file that cannot be read, and for a template that takes more than it may.
    """

    def __init__(self, directory: Path, tokenizer, processing: Processing):
        self._directory, self._tokenizer, self._processing = directory, tokenizer, processing
        self._texts: dict[tuple[str | None, str], str] = {}
        self._tokens: dict[tuple[str, bool], list[int]] = {}
        self._template, self.source = self._choose()

    def render(self, messages: list[dict]) -> str:
        """The chat up to where the answer begins.

        Raises QuantError when template or tokenizer fail, or take more than they may, and for a chat of more than one
        turn of the user where only the family's own format is there.
        """
        if self._template is None and [message["role"] for message in messages] != ["user"]:
            raise QuantError(
                f"{self._directory}: has no chat template to use, so that one user message can be put, no more"
            )
        try:
            return self._render(self._template, messages)
        except (JobFailed, QuantError) as error:
            raise QuantError(f"{self._directory}: chat template or tokenizer: {error}") from None

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer is to add what it puts before a text (<s>): a template may have written it itself."""
        bos = self._tokenizer.bos_token
        return not (bos and text.startswith(bos))

    def tokens(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of a text as it stands, [T]. Raises QuantError when the tokenizer fails, or takes more than it
        may.
        """
        key = text, add_special_tokens
        if key not in self._tokens:
            try:
                self._read([key])
            except (JobFailed, QuantError) as error:
                raise QuantError(f"{self._directory}: tokenizer: {error}") from None
        return list(self._tokens[key])

    def read(self, texts: Iterable[tuple[str, bool]]) -> None:
        """Many texts at once, each with whether special tokens are added: `tokens` then has them at hand. One that the
        tokenizer fails on is left to `tokens`.
        """
        keys = [key for key in dict.fromkeys(texts) if key not in self._tokens]
        with suppress(JobFailed, QuantError):
            self._read(keys)

    def _read(self, keys: list[tuple[str, bool]]) -> None:
        run_with_limits(lambda: str(sum(len(self._ids(*key)) for key in keys)))
        self._tokens |= {key: self._ids(*key) for key in keys}

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]

    def _choose(self) -> tuple[str | None, str]:
        """-> (template, its source); None stands for the family's own format."""
        passed_over = []
        for source, template in self._found():
            try:
                count = self._render(template, [user_turn("x", 1)]).count(self._processing.image_token)
            except JobFailed:  # Jinja errors: a language model's template fails on content that is a list
                count = 0
            except QuantError as error:
                raise QuantError(
                    f"{self._directory / source}: its chat template {error}; without it the family's own format is used"
                ) from None
            if count == 1:
                return template, source
            passed_over.append(source)
        return None, "built in" + (f" (no place for an image in {', '.join(passed_over)})" if passed_over else "")

    def _found(self) -> list[tuple[str, str]]:
        """(file, template) of each that there is."""
        jinja = self._directory / "chat_template.jinja"
        own = self._tokenizer.chat_template
        try:
            text = jinja.read_text(encoding="utf-8") if jinja.is_file() else None
        except (OSError, ValueError) as error:
            raise QuantError(f"{jinja}: {one_line(error)}") from None
        found = [
            (jinja.name, text),
            ("chat_template.json", optional_json(self._directory / "chat_template.json").get("chat_template")),
            ("tokenizer_config.json", own.get("default") if isinstance(own, dict) else own),
        ]
        return [(source, template) for source, template in found if template and isinstance(template, str)]

    def _render(self, template: str | None, messages: list[dict]) -> str:
        """Raises JobFailed when template or tokenizer do, QuantError when they take more than they may."""

        def job() -> str:
            text = self._fill(template, messages)
            if len(text) <= MAX_ANSWER:
                self._tokenizer(text, add_special_tokens=self.adds_special_tokens(text))
            return text

        key = template, json.dumps(messages)
        if key not in self._texts:
            if len(self._texts) >= MOST_TEXTS:
                self._texts.clear()
            self._texts[key] = run_with_limits(job)
        return self._texts[key]

    def _fill(self, template: str | None, messages: list[dict]) -> str:
        if template is None:
            parts = messages[0]["content"]
            places = {"image": self._processing.chat_image}
            if self._processing.video:
                places["video"] = self._processing.video.chat
            shown = "".join(places.get(part["type"], "") for part in parts)
            prompt = "\n".join(part["text"] for part in parts if part["type"] == "text")
            return self._processing.chat.replace("{images}", shown).replace("{prompt}", prompt)
        return self._tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
