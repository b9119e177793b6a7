"""Which device computes, in what dtype, and what memory that took. The one place that knows torch_npu."""

import gc
import os
import resource
from pathlib import Path
from types import ModuleType

import torch

from ..base.errors import UsageError

MISSING = {
    "npu": (
        "no NPU is usable: install CANN and `pip install -r requirements-npu.txt`, source CANN's set_env.sh, or use"
        " --device_type cpu"
    ),
    "cuda": "no CUDA device is usable: install a CUDA build of torch and look at nvidia-smi, or use --device_type cpu",
}
MEMINFO = Path("/proc/meminfo")


def _backend(device: str) -> ModuleType:
    """torch.npu, which torch_npu registers, or torch.cuda."""
    return getattr(torch, device)


def npu_available() -> bool:
    """Whether torch_npu is installed and finds a card."""
    try:
        import torch_npu  # noqa: F401  registers torch.npu
    except Exception:  # without CANN it fails in more ways than ImportError
        return False
    return _backend("npu").is_available()


def pick_device(asked: str | None) -> str:
    """The device asked for, or the first of NPU, CUDA, CPU that is there. Raises UsageError when the one asked for is
    not.
    """
    usable = {"npu": npu_available, "cuda": torch.cuda.is_available, "cpu": lambda: True}
    if asked is None:
        return next(device for device, there in usable.items() if there())
    if not usable[asked]():
        raise UsageError(f"--device_type {asked}: {MISSING[asked]}")
    return asked


def compute_dtype(stored: torch.dtype, device: str) -> torch.dtype:
    """The checkpoint's own; float32 for float16 on a CPU, whose float16 matmul is far slower and less exact."""
    return torch.float32 if stored == torch.float16 and device == "cpu" else stored


def export_dtype(stored: torch.dtype, asked: str | None, served: str | None = None) -> torch.dtype:
    """What the export's floats are in: what was asked for, else what the family's servers compute in, else the
    checkpoint's; bfloat16 for a float32 one, since servers take no float32.
    """
    if name := asked or served:
        return getattr(torch, name)
    return torch.bfloat16 if stored == torch.float32 else stored


def is_out_of_memory(err: RuntimeError) -> bool:
    """Whether a device's memory did not suffice. Older torch_npu says so in a plain RuntimeError."""
    return isinstance(err, torch.OutOfMemoryError) or "NPU out of memory" in str(err)


def peak_on_card(device: str) -> int | None:
    """Bytes that this process's tensors took on its card at most so far; None on a CPU."""
    return None if device == "cpu" else _backend(device).max_memory_allocated()


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory(device: str) -> dict[int, int]:
    """Number of a card -> bytes that are free on it: of every visible card, this process's own first; of the host, one
    number. Empty where the system does not say.
    """
    if device != "cpu":
        backend = _backend(device)
        own = backend.current_device()
        cards = sorted(range(backend.device_count()), key=lambda card: (card != own, card))
        return {card: backend.mem_get_info(card)[0] for card in cards}
    if not MEMINFO.is_file():
        return {}
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    return {0: int(fields["MemAvailable"].split()[0]) * 1024}


def free_cache(device: str) -> None:
    """Give back to the card what nobody uses any more."""
    gc.collect()
    if device != "cpu":
        _backend(device).empty_cache()


# -- several cards

VISIBLE = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
# The vendor's advice for quantizing on several NPUs.
ALLOCATOR, ALLOCATOR_ADVICE = "PYTORCH_NPU_ALLOC_CONF", "expandable_segments:False"


def workers_of(device: str, asked: int | None) -> int:
    """How many ranks a job gets: what was asked for, else one for each card that the user made visible by name, else
    one.

    Raises UsageError for more than there are, or on cards that cannot work together.
    """
    if device == "cpu":
        return asked or 1
    named = [card for card in os.environ.get(VISIBLE[device], "").split(",") if card.strip()]
    count, workers = _backend(device).device_count(), asked or max(1, len(named))
    if workers > count:
        raise UsageError(
            f"{workers} workers were asked for, {count} {device} cards are visible; set {VISIBLE[device]} or"
            " --num_workers"
        )
    if workers > 1 and device == "npu":
        _check_npus()
    return workers


def _check_npus() -> None:
    name = _backend("npu").get_device_name(0)
    if "310P" in name:  # Atlas 300I Duo
        raise UsageError(
            f"{name}: several of these cards cannot quantize together, only one can; set {VISIBLE['npu']} to one card,"
            " or --num_workers 1"
        )
    if os.environ.setdefault(ALLOCATOR, ALLOCATOR_ADVICE) != ALLOCATOR_ADVICE:
        raise UsageError(
            f"{ALLOCATOR} is {os.environ[ALLOCATOR]}: on several NPUs it must be {ALLOCATOR_ADVICE}; export that, or"
            " unset it"
        )


def use_card(device: str, number: int) -> None:
    """From here on `device` means the host's card `number`."""
    if device == "npu":
        import torch_npu  # noqa: F401
    if device != "cpu":
        _backend(device).set_device(number)


def distributed_backend(device: str) -> str:
    """For torch.distributed.init_process_group: HCCL, NCCL or Gloo."""
    return BACKENDS[device]
