"""What happens when memory does not suffice.

When a device's memory does not suffice for a block, that block is done on the CPU, by all ranks, and the run goes on.

On a card samples go through a block one at a time, so there is no smaller batch to try first. On the CPU the block is
computed in the same dtype, by other kernels: the result is as good, and may differ from the device's in the last bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..base.errors import QuantError
from ..families.family import Tower
from ..model.device import free_cache, is_out_of_memory
from ..model.paused import Call, Key
from ..model.streamed import StreamedModel
from .block import BlockResult


@contextmanager
def out_of_memory_named(name: str) -> Iterator[None]:
    """Raises QuantError, naming `name`, when memory on the device or the host does not suffice in the with block."""
    try:
        yield
    except RuntimeError as err:
        if not is_out_of_memory(err) and "can't allocate memory" not in str(err):
            raise
        raise QuantError(
            f"{name}: {str(err).splitlines()[0]}; free some, or take fewer samples or a smaller --max_pixels"
        ) from None


def on_cpu(
    model: StreamedModel, place: tuple[Tower, int], tensors: dict[str, Tensor], calls: dict[Key, Call], quantizer
) -> BlockResult:
    """Quantize a block on the CPU; its outputs, [..., tokens, width], are on the device again. place: its tower and
    index; tensors: as it was read: what the device has of it is dropped, since an attempt may have changed it. calls:
    how the model calls the block; quantizer: a BlockQuantizer of `model`. Raises QuantError as quantize() does.
    """
    device = model.device
    model.clear(tensors)
    free_cache(device.type)
    model.device = torch.device("cpu")
    try:
        model.set_all(tensors)
        model.block(*place).to("cpu")  # its buffers
        result = quantizer.quantize(*place, {key: _moved(call, "cpu") for key, call in calls.items()})
    finally:
        model.device = device
    result.outputs = {key: _moved(output, str(device)) for key, output in result.outputs.items()}
    return result


def _moved(value, device: str):
    """A call's arguments, however nested, with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Call):
        return Call(_moved(value.args, device), _moved(value.kwargs, device))
    if isinstance(value, dict):
        return {key: _moved(entry, device) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(entry, device) for entry in value)
    return value
