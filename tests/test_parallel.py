"""Samples at once: the same bits as one after the other, whatever the threads, and errors that come through. Work
beside them: on one thread.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch

from quant import Calibrator, QuantConfig
from quant.arithmetic.stats import Observer
from quant.export import reader
from quant.model.parallel import background_thread, in_parallel

CPU = torch.device("cpu")


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_every_one_is_done_once_by_several_threads_at_a_time(four_threads):
    done, together = [], threading.Barrier(4, timeout=30)

    def job(number, other):
        together.wait()  # passes only when four are in it
        done.append((number, other, torch.get_num_threads(), torch.is_inference_mode_enabled()))

    in_parallel(job, [(number, number * 2) for number in range(8)], CPU)
    assert sorted(done) == [(number, number * 2, 1, True) for number in range(8)]
    assert torch.get_num_threads() == 4


def test_the_first_error_comes_through_and_no_more_are_begun(four_threads):
    begun = []

    def job(number):
        begun.append(number)
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 0"):
        in_parallel(job, [(number,) for number in range(100)], CPU)
    assert len(begun) <= 8 and torch.get_num_threads() == 4


def test_on_a_card_they_go_one_by_one_in_order(four_threads):
    seen = []
    in_parallel(
        lambda number: seen.append((number, threading.current_thread())),
        [(number,) for number in range(5)],
        torch.device("cuda"),
    )
    assert seen == [(number, threading.main_thread()) for number in range(5)]


def test_an_observer_fed_from_many_threads_has_seen_all(four_threads):
    samples = torch.randn(200, 6, 16)
    alone, together = (Observer("x", 16, 2) for _ in range(2))
    for number, sample in enumerate(samples):
        alone.update(sample, number, number)
    in_parallel(
        lambda number: together.update(samples[number], number, number), [(number,) for number in range(200)], CPU
    )
    for name in ("lo", "hi", "rows", "count"):
        a, b = getattr(alone.stats(), name), getattr(together.stats(), name)
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name


STRUCTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_5_moe", "llava_onevision")  # windows, experts and taps, tiles


@pytest.mark.parametrize("family", [family for family in STRUCTURES if family in tiny.known()])
def test_the_number_of_threads_does_not_change_a_byte(tmp_path, family):
    source, images = tiny.make(tmp_path / "src", family), tiny.make_images(tmp_path / "images", 5)
    before, exports = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            Calibrator(source, QuantConfig(anti_method="m2"), images).run(tmp_path).save(tmp_path / f"out{threads}")
            exports.append(
                b"".join(file.read_bytes() for file in sorted((tmp_path / f"out{threads}").glob("*.safetensors")))
            )
            assert reader.read(tmp_path / f"out{threads}").tensors
    finally:
        torch.set_num_threads(before)
    assert exports[0] == exports[1] == exports[2]


def threads_grown_by(pool) -> int:
    """By how many threads the process grows when the pool's thread does what torch divides among threads."""
    pool.submit(torch.get_num_threads).result()
    before = len(os.listdir("/proc/self/task"))
    pool.submit(lambda: torch.ones(1 << 22).mul_(2)).result()
    return len(os.listdir("/proc/self/task")) - before


def test_what_goes_on_beside_has_no_threads_of_its_own(four_threads):
    with ThreadPoolExecutor(1) as usual, background_thread("reader") as reader:
        assert threads_grown_by(usual) == 3
        assert threads_grown_by(reader) == 0
        assert reader.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 4
