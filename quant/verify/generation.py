"""Answers of a model of runtime.load() or load_float(): greedy or sampled, one sample or several at a time, watched
token by token.

Several samples are one batch: token ids padded on the left, so that every answer begins behind its own prompt; a mask
keeps the padding from being attended to, and positions count from each prompt's own beginning. Every row of an int8
linear is computed by itself, so it gives what it gives alone; in attention the padding changes the order in which
floats are added up, and with it a last bit. Two tokens that are equally likely to that bit may change places.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PER_TOKEN = {"input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0}
"""Inputs [1, T] that are padded, and with what; None: with the padding token. Any other input has a row or several for
each image: [N, ...], one sample's after the other's.
"""
GREEDY_BELOW = 1e-5  # temperatures; vLLM's bound


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: at a temperature, from the most likely tokens that hold top_p of the probability,
    and of these the top_k first (0: all). seed: the same draws again, on the same machine; None for others each time.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


def greedy(model: Any, inputs: dict[str, Tensor], tokens: int) -> Tensor:
    """The next `tokens` greedy tokens after one sample's inputs, int64 [<= tokens]; fewer where the model ends its
    answer. model: of load() or load_float(), whose settings are greedy.
    """
    return generate(model, inputs, tokens)


def generate(
    model: Any,
    inputs: dict[str, Tensor],
    tokens: int,
    *,
    sampling: Sampling | None = None,
    repetition_penalty: float | None = None,
    watch: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """The next `tokens` tokens after one sample's inputs, int64 [<= tokens]: greedy, or drawn by `sampling`.

    repetition_penalty: instead of the checkpoint's. watch: called behind every token with the answer so far, int64 [N]
    on the CPU; True ends it there. Neither torch's generators nor the model's settings are changed.
    """
    settings: dict[str, Any] = {"max_new_tokens": tokens}
    if repetition_penalty is not None:
        settings["repetition_penalty"] = repetition_penalty
    length = inputs["input_ids"].shape[1]
    if watch is not None:
        settings["stopping_criteria"] = [lambda ids, scores: _all_done(ids, watch(ids[0, length:].cpu()))]
    drawn: AbstractContextManager = nullcontext()
    if sampling is not None and sampling.temperature >= GREEDY_BELOW:
        settings.update(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
        drawn = torch.random.fork_rng()
    with drawn, torch.inference_mode():
        if sampling is not None:
            torch.seed() if sampling.seed is None else torch.manual_seed(sampling.seed)
        answer = model.generate(**{name: value.to(model.device) for name, value in inputs.items()}, **settings)
    return answer[0, length:].cpu()


def greedy_batch(model: Any, samples: list[dict[str, Tensor]], tokens: int, padding: int) -> list[Tensor]:
    """greedy() of several samples at once: int64 [<= tokens] for each. padding: the token to pad with, such as the
    tokenizer's own; it is masked.
    """
    joined = {name: value.to(model.device) for name, value in _join(samples, padding).items()}
    with torch.inference_mode():
        answers = model.generate(**joined, max_new_tokens=tokens, pad_token_id=padding)
    ends = model.generation_config.eos_token_id
    ends = torch.tensor([] if ends is None else ends).reshape(-1)
    return [_up_to(answer[joined["input_ids"].shape[1] :].cpu(), ends) for answer in answers]


def _join(samples: list[dict[str, Tensor]], padding: int) -> dict[str, Tensor]:
    """Inputs of batch 1 -> those of one batch. A sample without an image lacks what others have of theirs."""
    longest = max(sample["input_ids"].shape[1] for sample in samples)
    joined = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        parts = [sample[name] for sample in samples if name in sample]
        if name in PER_TOKEN:
            fill = PER_TOKEN[name]
            fill = padding if fill is None else fill
            parts = [torch.nn.functional.pad(part, (longest - part.shape[1], 0), value=fill) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def _up_to(answer: Tensor, ends: Tensor) -> Tensor:
    """An answer [N] with the first of the tokens `ends` [E] as its last; generate() pads it to the longest."""
    found = torch.isin(answer, ends).nonzero()
    return answer[: int(found[0]) + 1] if len(found) else answer


def _all_done(ids: Tensor, done: bool) -> Tensor:
    """What a stopping criterion answers for ids [1, T]: bool [1]."""
    return torch.full((len(ids),), done, device=ids.device, dtype=torch.bool)
