"""What this machine can do at best, measured, and the time that follows from it.

    bound = imports + max(multiply-adds of one forward pass / matmul rate,
                          bytes read / read rate,
                          bytes written / write rate)

Reading and writing go on while the processor computes, so the slowest of the three counts. The rates are those of the
best case: a large matrix product, attention counted like any other; a file read and written in one stream.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """matmul, matmul_int8: operations per second (a multiply-add counts two); read, write: bytes per second, write with
    its fsync; imports: seconds of a process that imports what a run needs and does nothing.
    """

    name: str
    cores: int
    matmul: float
    matmul_int8: float
    read: float
    write: float
    imports: float

    def bound(self, operations: float, read: float, written: float) -> float:
        """Seconds, by the formula above."""
        return self.imports + max(operations / self.matmul, read / self.read, written / self.write)


def measure_machine(weights: Path, scratch: Path, device: str) -> Machine:
    """weights: a large file to read. scratch: a directory to write in."""
    return Machine(
        name=processor(device),
        cores=os.cpu_count() or 1,
        matmul=_matmul(device, int8=False),
        matmul_int8=_matmul(device, int8=True),
        read=_read(weights),
        write=_write(scratch / "written"),
        imports=statistics.median(_imports() for _ in range(3)),
    )


def processor(device: str) -> str:
    """Its name, and what of its instructions matters here."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [
        flag
        for flag in ("avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
        if flag in found.get("flags", "").split()
    ]
    return f"{found.get('model name', platform.processor())} ({' '.join(flags)})"


def _best(job, rounds: int) -> float:
    job()
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        job()
        took.append(time.perf_counter() - start)
    return min(took)


def _matmul(device: str, int8: bool) -> float:
    import torch

    size = 4096 if device == "cpu" else 8192
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    a = (
        torch.randint(-127, 127, (size, size), dtype=torch.int8, device=device)
        if int8
        else torch.randn(size, size, device=device).bfloat16()
    )
    product = (lambda: (torch._int_mm(a, a.t()), wait())) if int8 else (lambda: (a @ a.t(), wait()))
    with torch.inference_mode():
        return 2 * size**3 / _best(product, rounds=5)


def _read(file: Path) -> float:
    """Into memory that is there already, from the page cache if the file is in it: as a second run would find it."""
    room = bytearray(1 << 24)

    def job() -> None:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(room):
                pass

    return file.stat().st_size / _best(job, rounds=2)


def _write(file: Path) -> float:
    data, pieces = os.urandom(1 << 24), 64

    def job() -> None:
        with open(file, "wb", buffering=0) as stream:
            for _ in range(pieces):
                stream.write(data)
            os.fsync(stream.fileno())

    try:
        return len(data) * pieces / _best(job, rounds=3)
    finally:
        file.unlink()


def _imports() -> float:
    names = "Qwen2VLForConditionalGeneration, AutoTokenizer, Qwen2VLProcessor"
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", f"import torch; from transformers import {names}"], check=True, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def forward_operations(checkpoint: Path, images: Path) -> float:
    """Operations of one forward pass of all calibration samples up to the last block, attention's products included."""
    from quant.base.config import QuantConfig
    from quant.calibrate.calibrator import Calibrator

    calibrator = Calibrator(checkpoint, QuantConfig(calib_text="none"), images)
    calibrator.prepare()
    total = 0.0
    for tower in calibrator.family.towers:
        width = calibrator.checkpoint.tensors[f"{tower.block(0)}{tower.groups[0].source}.weight"].shape[0]
        weights = sum(
            info.shape[0] * info.shape[1]
            for name, info in calibrator.checkpoint.tensors.items()
            if len(info.shape) == 2 and (place := calibrator.family.block_of(name)) and place[0] is tower
        )
        blocks = tower.used(calibrator.checkpoint.config)
        for inputs in calibrator.samples.inputs:
            tokens = tower.tokens(calibrator.checkpoint.config, inputs)
            total += 2 * weights * tokens + 4 * tokens**2 * width * blocks
    return total
