"""What keeps memory small, and what happens when it does not suffice.

When a device's memory does not suffice for a block, that block is done on the CPU, and the run goes on.

Samples go through a block one at a time, so there is no smaller batch to try first. On the CPU the block is computed in the same dtype, by
other kernels: the result is as good, and may differ from the device's in the last bit.
"""
import ctypes
import gc
from collections.abc import Callable

import torch

from .skeleton import Call, Feed, Skeleton


def give_back() -> None:
    """Hand freed memory back to the system. glibc keeps what was freed, per thread, for tensors of up to 32 MB: a block's worth or more."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library
        pass


def on_cpu(skeleton: Skeleton, block: torch.nn.Module, index: int, feeds: dict[int, Feed], job: Callable):
    """job(feeds) with the block, its index-th in the tower, and the feeds on the CPU; afterwards the feeds are on the device again."""
    device = skeleton.device
    gc.collect()
    if device.type != "cpu":
        getattr(torch, device.type).empty_cache()
    here = {number: Feed(feed.hidden.cpu(), {index: _moved(feed.calls[index], "cpu")}) for number, feed in feeds.items()}
    skeleton.device = torch.device("cpu")
    block.to("cpu")
    try:
        result = job(here)
    finally:
        skeleton.device = device
    for number, feed in feeds.items():
        feed.hidden = here[number].hidden.to(device)
    return result


def _moved(value, device: str):
    """A call's arguments, however nested, with their tensors on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Call):
        return Call(_moved(value.args, device), _moved(value.kwargs, device))
    if isinstance(value, dict):
        return {key: _moved(entry, device) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(entry, device) for entry in value)
    return value
