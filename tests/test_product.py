"""The int8 product: which one is taken, and that it is exact whatever the machine's own product does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny
import torch

from quant import QuantError
from quant.arithmetic import product

ROOT = Path(__file__).parent.parent
CORNERS = [(left, right) for left in (-128, 127) for right in (-127, 127)]


def saturating(a, b):
    """What x86 without VNNI computes: a + 128 in unsigned bytes, times b; neighbours added in 16 bits that saturate."""
    pairs = (a.int() + 128)[:, None] * b.T.int()[None]
    pairs = torch.nn.functional.pad(pairs, (0, pairs.shape[2] % 2))
    return pairs.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1).sum(2).int() - 128 * b.int().sum(0)


def right(a, b):
    return (a.long() @ b.long()).int()


@pytest.fixture
def machine(monkeypatch):
    """machine(product, speed): torch._int_mm as on another machine, `speed` times as fast as float32."""

    def pretend(int_mm, speed=4.0):
        monkeypatch.setattr(torch, "_int_mm", int_mm)
        monkeypatch.setattr(product, "_seconds", lambda multiply: 1 / speed if multiply is product.int_matmul else 1.0)
        monkeypatch.setattr(product, "_chosen", {})

    return pretend


def is_right(multiply, columns=2048):
    filled = [
        (torch.full((3, columns), a, dtype=torch.int8), torch.full((5, columns), b, dtype=torch.int8))
        for a, b in CORNERS
    ]
    return all(torch.equal(multiply(a, b).long(), a.long() @ b.long().T) for a, b in filled)


def test_a_product_that_saturates_is_found_out(machine):
    machine(saturating)
    assert not is_right(product.int_matmul), "the emulation does not saturate"
    assert is_right(product.int8_matmul)
    chosen = product.product_on("cpu")
    assert (chosen.name, chosen.why) == ("float32", "torch._int_mm is not exact there")


@pytest.mark.parametrize("wrong", ["odd", "long", "one row"])
def test_a_product_that_is_wrong_for_some_shapes_is_found_out(machine, wrong):
    at = {"odd": lambda a: a.shape[1] % 2, "long": lambda a: a.shape[1] > 2048, "one row": lambda a: len(a) == 1}[wrong]
    machine(lambda a, b: right(a, b) + (1 if at(a) else 0))
    assert product.product_on("cpu").name == "float32"


def test_the_fast_product_is_taken_where_it_is_exact_and_fast(machine):
    machine(right)
    assert (product.product_on("cpu").name, product.product_on("cpu").why) == (product.FAST, "")
    machine(right, speed=1 / 29)
    assert product.product_on("cpu").name == "float32" and "takes 29 times as long" in product.product_on("cpu").why
    assert is_right(product.int8_matmul)


def test_a_build_without_the_product_takes_floats(machine):
    def missing(a, b):
        raise NotImplementedError("no kernel")

    machine(missing)
    assert is_right(product.int8_matmul) and product.product_on("cpu").why == "torch._int_mm has no kernel there"


def test_memory_that_does_not_suffice_is_no_judgement(machine):
    def full(a, b):
        raise torch.OutOfMemoryError("full")

    machine(full)
    with pytest.raises(torch.OutOfMemoryError):
        product.product_on("cpu")
    machine(right)
    assert product.product_on("cpu").name == product.FAST


def test_a_device_on_which_nothing_is_exact_is_refused(machine, monkeypatch):
    machine(saturating)
    monkeypatch.setattr(product, "float_matmul", lambda a, b: right(a, b.T) + 1)
    with pytest.raises(QuantError, match="cpu: float32 products .* are not exact; use --device_type cpu"):
        product.int8_matmul(torch.ones(2, 8, dtype=torch.int8), torch.ones(2, 8, dtype=torch.int8))


def test_threads_that_come_at_once_try_it_once(machine, monkeypatch):
    machine(right)
    tries, exact = [], product.exact
    monkeypatch.setattr(product, "exact", lambda *args: tries.append(args) or exact(*args))
    threads = [threading.Thread(target=product.product_on, args=("cpu",)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(tries) == 1


def test_trying_leaves_the_process_as_it_was(monkeypatch):
    monkeypatch.setattr(product, "_chosen", {})
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    product.product_on("cpu")
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rows,columns,outputs", [(3, 1024, 1500), (600, 1025, 1024), (1, 5000, 1), (2, 1, 2049)])
def test_float_products_are_exact_in_every_tile(rows, columns, outputs):
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (outputs, columns), generator=generator, dtype=torch.int8)
    assert torch.equal(product.float_matmul(a, b).long(), a.long() @ b.long().T)


SELF = """
import torch
from quant.arithmetic.product import int8_matmul
for left in (-128, 127):
    for right in (-127, 127):
        a, b = torch.full((40, 2048), left, dtype=torch.int8), torch.full((64, 2048), right, dtype=torch.int8)
        assert torch.equal(int8_matmul(a, b).long(), a.long() @ b.long().T), (left, right)
"""
LIMITS = [{"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, {"DNNL_MAX_CPU_ISA": "AVX2"}]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: "-".join(*limit.items()))
def test_exact_on_lesser_processors(limit):
    """On a machine with VNNI, oneDNN then computes what saturates; elsewhere nothing changes."""
    subprocess.run([sys.executable, "-c", SELF], cwd=ROOT, env={**os.environ, **limit}, check=True)


def test_exports_are_the_same_on_lesser_processors(tmp_path):
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 2)
    found = []
    for number, limit in enumerate([{}, LIMITS[0]]):
        out = tmp_path / f"out{number}"
        command = [sys.executable, "-m", "quant", "quantize", "--model_path", source, "--calib_images", images]
        command += ["--save_directory", out, "--device_type", "cpu"]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **limit}, check=True, capture_output=True, text=True
        )
        names = ("quant_model_weight_w8a8.safetensors", "quant_model_description.json", "config.json")
        found.append([hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names])
        multiplied = json.loads((out / "quant_run.json").read_text())["int8_product"]
        assert multiplied in ("float32", product.FAST)
        assert ("product  of int8 by float32" in done.stdout) == (multiplied == "float32")
    assert found[0] == found[1]
