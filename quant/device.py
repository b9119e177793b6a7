"""Which device computes, and in what dtype. The one place that knows torch_npu."""
import torch

from .errors import UsageError

MISSING = {
    "npu": "no NPU is usable: install CANN and `pip install -r requirements-npu.txt`, source CANN's set_env.sh, or use --device_type cpu",
    "cuda": "no CUDA device is usable: install a CUDA build of torch and look at nvidia-smi, or use --device_type cpu",
}


def npu_available() -> bool:
    try:
        import torch_npu  # noqa: F401  registers torch.npu
    except Exception:  # without CANN it fails in more ways than ImportError
        return False
    return torch.npu.is_available()


def pick_device(asked: str | None) -> str:
    """The device asked for, or the first of NPU, CUDA, CPU that is there. Raises UsageError when the one asked for is not."""
    usable = {"npu": npu_available, "cuda": torch.cuda.is_available, "cpu": lambda: True}
    if asked is None:
        return next(device for device, there in usable.items() if there())
    if not usable[asked]():
        raise UsageError(f"--device_type {asked}: {MISSING[asked]}")
    return asked


def compute_dtype(stored: torch.dtype, device: str) -> torch.dtype:
    """The checkpoint's own; float32 for float16 on a CPU, whose float16 matmul is slower by a factor and rounds more."""
    return torch.float32 if stored == torch.float16 and device == "cpu" else stored


def export_dtype(stored: torch.dtype, asked: str | None, served: str | None = None) -> torch.dtype:
    """What the export's floats are in: what was asked for, else what the family's servers compute in, else the checkpoint's; bfloat16
    for a float32 one, since servers take no float32."""
    if asked or served:
        return getattr(torch, asked or served)
    return torch.bfloat16 if stored == torch.float32 else stored
