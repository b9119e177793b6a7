"""The float pass over a block: the outputs of all samples, and what is remembered of what its groups read."""

import hashlib
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..arithmetic.prior import doubt
from ..arithmetic.stats import ROWS, Observer
from ..base.config import QuantConfig
from ..base.errors import SourceError, UsageError
from ..export.plan import Plan
from ..families.family import Family, Tower
from ..inputs.calibration_set import CalibrationSet
from ..model.parallel import in_parallel
from ..model.paused import Call, Key, first


class Rows:
    """Which rows of a group's input are kept for judging: about ROWS in all, drawn by seeds that depend on the samples'
    content alone.

    keys: the samples' identities; entering: how many of them enter the tower; kinds: of each sample what its tokens
    are, uint8 [T] of 0 to 2 (inputs.samples), where the tower's tokens are the language model's; mix: the shares that
    the kinds are to have among the rows. Without kinds each sample has as many rows as the others.
    """

    def __init__(
        self,
        keys: list[str],
        seed: int,
        entering: int,
        kinds: list[Tensor] | None = None,
        mix: tuple[float, ...] = (1, 1, 1),
    ):
        digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
        self.seeds = [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]
        self.each, self.kinds = -(-ROWS // max(entering, 1)), kinds
        having = [sum(bool((each == kind).any()) for each in kinds or []) for kind in range(len(mix))]
        whole = sum(share for share, samples in zip(mix, having) if samples) or 1
        self.of_kind = [-(-int(ROWS * share) // (whole * max(samples, 1))) for share, samples in zip(mix, having)]

    def pick(self, key: Key, tokens: int) -> Tensor:
        """The rows of a pass with so many tokens, int64."""
        generator = torch.Generator().manual_seed(self.seeds[key[0]] + key[1])
        order = torch.randperm(tokens, generator=generator)
        if self.kinds is None or len(self.kinds[key[0]]) != tokens:
            return order[: self.each]
        kinds = self.kinds[key[0]][order]
        return torch.cat([order[kinds == kind][: int(most)] for kind, most in enumerate(self.of_kind)])


def refuse_unseen(samples: CalibrationSet, plan: Plan) -> None:
    """Raises UsageError when a tower is to be quantized that no sample enters."""
    for tower in plan.family.towers:
        int8 = sum(name.startswith(tower.prefix) for name in plan.int8_names)
        if int8 and not any(tower.tokens(plan.config, inputs) for inputs in samples.inputs):
            raise UsageError(
                f"none of the {len(samples.inputs)} samples enters the {tower.name} tower, {int8} linears of which are"
                " to become int8: add images, or keep it float (--vision float)"
            )


def rows_and_doubt(
    samples: CalibrationSet, tower: Tower, family: Family, model: dict, config: QuantConfig
) -> tuple[Rows, float]:
    """Which rows of a tower's inputs are kept, and how little the samples show of what it may get (arithmetic.prior):
    of language by its different words, of pictures by their patches. model: the checkpoint's config.
    """
    entering = sum(bool(tower.tokens(model, inputs)) for inputs in samples.inputs)
    if tower is not family.tower("language"):
        tokens = sum(tower.tokens(model, inputs) for inputs in samples.inputs)
        return Rows(samples.keys, config.seed, entering), doubt(tokens)
    kinds = [samples.kinds(number) for number in range(len(samples.keys))]
    return Rows(samples.keys, config.seed, entering, kinds, config.token_mix), doubt(samples.different_words)


def observe(
    run_block: Callable[[Call], Tensor | tuple],
    observers: Sequence[tuple[torch.nn.Module, Observer]],
    calls: dict[Key, Call],
    rows: Rows,
    name: str,
    device: torch.device,
) -> dict[Key, Tensor | tuple]:
    """Run the block on all calls; what the modules read is observed, but for samples that were held out (those beyond
    rows.seeds). name: the block's. Returns the outputs by key, [..., tokens, width]. Raises SourceError where one holds
    NaN or Inf.
    """
    outputs: dict[Key, Tensor | tuple] = {}
    current = threading.local()

    def hook(observer: Observer):
        def seen(module, args: tuple[Tensor, ...]) -> None:
            if current.key[0] < len(rows.seeds):
                tokens = args[0].numel() // args[0].shape[-1]
                observer.update(args[0], current.key, 0, rows.pick(current.key, tokens))

        return seen

    def run(key: Key, call: Call) -> None:
        current.key = key
        outputs[key] = run_block(call)
        hidden = first(outputs[key])
        if not torch.isfinite(torch.stack(hidden.aminmax())).all():
            raise SourceError(
                f"the output of {name} holds NaN or Inf for sample {key[0]}; the checkpoint or the compute dtype"
                f" {hidden.dtype} is at fault"
            )

    hooks = [module.register_forward_pre_hook(hook(observer)) for module, observer in observers]
    try:
        in_parallel(run, calls.items(), device)
    finally:
        for each in hooks:
            each.remove()
    return outputs
