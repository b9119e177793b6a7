"""Calibration text that the float model writes itself: an answer to every picture, and free passages.

A passage begins with a token drawn from all ordinary ones (Liu et al., LLM-QAT, arXiv 2305.17888), behind what the
tokenizer itself puts in front of a text: so passages are prose, code, lists and whatever else the model knows. The next
token is drawn from the model's own distribution, p = softmax(logits), temperature 1, no cut at the top: in float32
on the host, by the inverse of its cumulative sum at a number u in [0, 1). Every answer and every passage has numbers of
its own, seeded by the picture's key or by its place, so what is written does not depend on what is written beside it,
but for the last bits of the logits.

Special tokens and placeholders are never drawn. One that ends an answer does, and stays out of it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base.errors import QuantError
from ..inputs.encoder import BY_TOKEN, Encoder
from ..model.whole import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AT_ONCE = 8  # answers or passages
ANSWER = 128  # tokens of an answer, at most
PASSAGE = 400  # tokens of a passage, at most
LEAST = 32  # tokens of a passage, before it may end

Advance = Callable[[], None]


class Writer:
    """model: of whole_model; seed: of every number drawn; at_once: how many are written together."""

    def __init__(self, model: "PreTrainedModel", encoder: Encoder, seed: int, at_once: int = AT_ONCE):
        import transformers

        self._model, self._encoder, self._seed, self._at_once = model, encoder, seed, at_once
        tokenizer, ends = encoder.tokenizer, model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        self._ends |= {tokenizer.eos_token_id} - {None}
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self._ends, default=0)
        words = model.get_output_embeddings().weight.shape[0]
        known = {token for token in tokenizer.get_vocab().values() if token < words}
        self.ordinary = sorted(known - special_tokens(encoder) - self._ends)
        # Nothing else of generation_config.json counts: a penalty for repetition would change the distribution.
        model.generation_config = transformers.GenerationConfig(
            do_sample=False, use_cache=True, eos_token_id=sorted(self._ends) or None, pad_token_id=self._pad
        )

    def answers(
        self, inputs: dict[str, Callable[[], dict[str, Tensor] | None]], advance: Advance
    ) -> dict[str, tuple[int, ...]]:
        """The token ids of an answer, at most ANSWER, to each of the inputs, [1, ...]; what has none is left out.

        inputs: by the key that seeds the answer, made when they are needed; None where they cannot be. advance: called
        ANSWER times for each. Raises QuantError for a model whose logits are not finite, and as the inputs do.
        """
        written: dict[str, tuple[int, ...]] = {}
        for keys in batched(inputs, 1 if self._encoder.family.processing.alone else self._at_once):
            made = {key: value for key in keys if (value := inputs[key]())}
            names, steps = [f"answer {key}" for key in made], len(keys) * ANSWER
            if made:
                answers = self._write(padded([*made.values()], self._pad), names, ANSWER, 0, advance)
                written |= {key: answer for key, answer in zip(made, answers) if answer}
                steps -= sum(map(len, answers))
            for _ in range(steps):
                advance()
        return written

    def passages(self, tokens: int, advance: Advance) -> list[tuple[int, ...]]:
        """The token ids of passages, `tokens` of them in all; the last passage is cut. advance: called for each token.
        Raises QuantError for a model whose logits are not finite.
        """
        done: list[tuple[int, ...]] = []
        first, left = 0, tokens
        while left > 0:
            count = min(self._at_once, -(-left // PASSAGE))
            for passage in self._passages([f"passage {first + number}" for number in range(count)]):
                if left > 0:
                    done.append(passage[:left])
                    left -= len(done[-1])
                    for _ in done[-1]:
                        advance()
            first += count
        return done

    def _passages(self, names: list[str]) -> Iterator[tuple[int, ...]]:
        first = [self._first_token(name) for name in names]
        batch = padded([self._encoder(None, None, (token,)) for token in first], self._pad)
        for token, rest in zip(first, self._write(batch, names, PASSAGE - 1, LEAST, lambda: None)):
            yield (token, *rest)

    def _first_token(self, name: str) -> int:
        return self.ordinary[int(torch.randint(len(self.ordinary), (), generator=self._numbers(f"start of {name}")))]

    def _numbers(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _write(
        self, batch: dict[str, Tensor], names: list[str], most: int, least: int, advance: Advance
    ) -> list[tuple[int, ...]]:
        """What the model puts behind each row of the batch, [B, ...], without what ends it: at most `most` tokens, and
        at least `least`.
        """
        draw = _Draw([self._numbers(name) for name in names], self.ordinary, self._ends, least, advance)
        rows = generate(self._model, batch, max_new_tokens=most, logits_processor=[draw]).tolist()
        return [tuple(row[: next((at for at, token in enumerate(row) if token in self._ends), most)]) for row in rows]


def batched(keys: Iterable[str], count: int) -> Iterator[list[str]]:
    """`count` keys at a time (itertools.batched, from Python 3.12 on)."""
    rest = iter(keys)
    while some := list(islice(rest, count)):
        yield some


class _Draw:
    """A logits processor of generate(), which is greedy: it leaves the token that was drawn as the only one."""

    def __init__(
        self, numbers: list[torch.Generator], ordinary: list[int], ends: set[int], least: int, advance: Advance
    ):
        self._numbers, self._least, self._advance, self._step = numbers, least, advance, 0
        self._ordinary, self._all, self._ends = torch.tensor(ordinary), torch.tensor(sorted({*ordinary, *ends})), ends
        self._running = [True] * len(numbers)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Token ids so far, int64 [B, T], and logits [B, vocabulary] -> the same with all but one at -inf a row."""
        allowed = self._all if self._step >= self._least else self._ordinary
        sums = scores.to("cpu", torch.float32)[:, allowed].softmax(-1).double().cumsum(-1)
        self._step += 1
        if not sums[:, -1].isfinite().all():
            raise QuantError(f"the float model's logits are not finite at token {self._step} of what it writes")
        u = torch.stack([torch.rand(1, generator=numbers, dtype=torch.float64) for numbers in self._numbers])
        drawn = torch.searchsorted(sums, u * sums[:, -1:], right=True).clamp(max=len(allowed) - 1)
        tokens = allowed[drawn]
        self._running = [going and int(token) not in self._ends for going, token in zip(self._running, tokens)]
        for _ in range(sum(self._running)):
            self._advance()
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.to(scores.device), 0.0)


def special_tokens(encoder: Encoder) -> set[int]:
    """Numbers of the tokens that are no text: special ones and placeholders."""
    tokenizer, family = encoder.tokenizer, encoder.family
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    places = set(tokenizer.convert_tokens_to_ids(list(family.processing.reserved)))
    return (special | places | set(tokenizer.all_special_ids) | {encoder.image_token_id}) - {None}


def padded(inputs: list[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Inputs of several samples, [1, ...] each, as one batch [B, ...]: what has a value for each token is filled up on
    the left, with `pad` where it holds tokens and else with 0; pixels and their sizes are joined as they are.
    """
    longest = max(each["input_ids"].shape[1] for each in inputs)
    batch = {}
    for name in dict.fromkeys(name for each in inputs for name in each):
        values = [each[name] for each in inputs if name in each]
        if name in BY_TOKEN:
            fill = pad if name == "input_ids" else 0
            values = [torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values]
        batch[name] = torch.cat(values)
    return batch
