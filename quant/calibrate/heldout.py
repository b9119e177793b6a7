"""What a block's int8 linears do to samples that calibration did not see: signal-to-noise, and values out of range.

The samples are few, and the same whatever is calibrated on: what ships apart from the calibration's own
(inputs.samples). So a calibration that does not cover the language shows here, in the run that makes it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..arithmetic.int8 import ACT_MAX, ACT_MIN, signal_to_noise
from ..arithmetic.schemes import QuantizedLinear, StaticLinear
from ..model.paused import Call, Key, first
from ..model.streamed import StreamedModel


@dataclass
class HeldOut:
    """snr: dB, of what the block adds to its input, over all samples that enter the tower, NaN where none does;
    outside: name of a group's first linear -> share of its input, 0 to 1, that its int8 codes do not reach.
    """

    snr: float = float("nan")
    outside: dict[str, float] = field(default_factory=dict)


def measure(
    model: StreamedModel,
    block: torch.nn.Module,
    linears: list[QuantizedLinear],
    leaders: list[str],
    calls: dict[Key, Call],
    outputs: dict[Key, Tensor | tuple],
) -> HeldOut:
    """Run the samples that were held out through the block with these linears in place. leaders: the first linear of
    each group; outputs: what the block answers in float, [..., tokens, width]. The hidden states of `calls` may have
    been written to by the
    float pass: they must be copies from before it.
    """
    beyond, seen = dict.fromkeys(leaders, 0), dict.fromkeys(leaders, 0)
    added, errors = [], []

    def hook(linear: StaticLinear):
        def count(module, args: tuple[Tensor, ...]) -> None:
            codes = torch.round(args[0].float() / linear.input_scale + linear.input_offset)
            beyond[linear.name] += int(((codes < ACT_MIN) | (codes > ACT_MAX)).sum())
            seen[linear.name] += codes.numel()

        return count

    static = [linear for linear in linears if linear.name in seen and isinstance(linear, StaticLinear)]
    hooks = [linear.register_forward_pre_hook(hook(linear)) for linear in static]
    try:
        with model.replaced(linears):
            for key, call in calls.items():
                wanted = first(outputs[key]).float() - call.hidden.float()
                got = first(call.on(call.hidden.clone())(block)).float() - call.hidden.float()
                added.append(wanted.flatten())
                errors.append((got - wanted).flatten())
    finally:
        for each in hooks:
            each.remove()
    if not added:
        return HeldOut()
    shares = {linear.name: beyond[linear.name] / max(seen[linear.name], 1) for linear in static}
    return HeldOut(signal_to_noise(torch.cat(added), torch.cat(errors)), shares)
