"""What an export says of text, against the float model: perplexity, KL divergence, same token first."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Passage:
    """One passage of `tokens` predicted tokens. Sums over them: nll_float, nll, the negative log-likelihoods in nats;
    kl, the divergence of the export's next-token distribution from the float model's; same, the positions at which
    both rank the same token first.
    """

    tokens: int
    nll_float: float
    nll: float
    kl: float
    same: int


@torch.inference_mode()
def log_probabilities(model, ids: list[int]) -> Tensor:
    """float32 [T, vocabulary], of the token behind each of the T."""
    text = torch.tensor([ids], device=model.device)
    logits = model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits
    return logits[0].float().log_softmax(-1)


class Reference:
    """What the float model says of passages, computed once: a file for each in `folder`, float32 [T, vocabulary]."""

    def __init__(self, model, folder: Path):
        self.model, self.folder = model, folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, ids: list[int]) -> Tensor:
        """As log_probabilities."""
        file = self.folder / f"{hashlib.sha256(repr(ids).encode()).hexdigest()[:16]}.safetensors"
        if not file.is_file():
            save_file({"said": log_probabilities(self.model, ids).cpu()}, file)
        return load_file(file)["said"].to(self.model.device)


def compare(reference: Reference, model, passages: Iterable[list[int]]) -> list[Passage]:
    """A model beside the float one on the same passages, token ids each."""
    rows = []
    for ids in passages:
        wanted, got = reference(ids)[:-1], log_probabilities(model, ids)[:-1]
        following = torch.tensor(ids[1:], device=wanted.device)[:, None]
        rows.append(
            Passage(
                tokens=len(following),
                nll_float=-wanted.gather(1, following).double().sum().item(),
                nll=-got.gather(1, following).double().sum().item(),
                kl=(wanted.exp() * (wanted - got)).double().sum().item(),
                same=int((wanted.argmax(-1) == got.argmax(-1)).sum()),
            )
        )
    return rows


@dataclass(frozen=True)
class Score:
    """Over several passages; each value with the half-width of its 95 % interval, from the spread between passages.

    perplexity: of the float model; change: of perplexity, as a share; kl: mean nats a token; same: share of positions.
    """

    perplexity: float
    change: tuple[float, float]
    kl: tuple[float, float]
    same: tuple[float, float]


T95 = {
    2: 12.71,
    3: 4.30,
    4: 3.18,
    5: 2.78,
    6: 2.57,
    7: 2.45,
    8: 2.36,
    9: 2.31,
    10: 2.26,
    12: 2.20,
    16: 2.13,
    32: 2.04,
    40: 2.02,
}


def mean(values: list[float]) -> tuple[float, float]:
    """The mean of independent values with the half-width of its 95 % interval; of one value, not a number."""
    count, middle = len(values), sum(values) / len(values)
    if count < 2:
        return middle, math.nan
    spread = math.sqrt(sum((value - middle) ** 2 for value in values) / (count - 1) / count)
    return middle, T95[max(known for known in T95 if known <= count)] * spread


def score(rows: list[Passage]) -> Score:
    """Means over the tokens of all passages, which are of equal length."""
    change, half = mean([(row.nll - row.nll_float) / row.tokens for row in rows])
    perplexity = math.exp(sum(row.nll_float for row in rows) / sum(row.tokens for row in rows))
    return Score(
        perplexity,
        (math.expm1(change), half * math.exp(change)),
        mean([row.kl / row.tokens for row in rows]),
        mean([row.same / row.tokens for row in rows]),
    )
