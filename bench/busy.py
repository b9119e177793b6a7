"""What other load on the machine costs a job: the same commands on a quiet machine and beside twice as many busy
processes as there are cores, waiting as OpenMP does by itself and as the command line has it wait (base/process.py).

    python bench/busy.py [--only tiny 2b] [--rounds 3]

Of two processes on a core each gets half, of three a third: beside LOAD busy processes a core, a job may take
1 + LOAD times as long as on a quiet machine, and what is above that is lost to waiting in vain. Rounds are interleaved,
medians count. Results go to out/bench/busy.json. Run it when nothing else runs; the 2B part takes about 15 minutes.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started by its path, `bench` is not importable

from bench.processes import measure  # noqa: E402
from bench.work import ROOT, checkpoint, photographs  # noqa: E402

LOAD = 2  # busy processes for each core
SIZES = {"tiny": ("qwen2vl-tiny", None, 1), "2b": ("qwen2vl-2b", 2, 2)}  # size, blocks in each tower, photographs
SETTINGS = {  # name -> environment
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default, which the command line then leaves as it is
    "ours": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without end, meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


PLAIN = ("--calib_text", "none")  # the time of images, as in bench.py


def commands(model: Path, images: Path, out: Path) -> dict[str, list]:
    """Name -> command line; the second reads what the first has written."""
    python, common = [sys.executable, "-m", "quant"], ["--model_path", model, "--device_type", "cpu"]
    return {
        "quantize": [*python, "quantize", *common, "--calib_images", images, "--save_directory", out, *PLAIN],
        "verify": [*python, "verify", out, *common, "--images", images],
    }


def rounds_of(size: str, rounds: int, settings: dict[str, dict], directory: Path) -> dict:
    """Command -> setting -> "quiet" and "busy" -> seconds of every round; "same bytes": of all exports."""
    name, blocks, count = SIZES[size]
    model, images = checkpoint(directory, name, blocks), photographs(directory, count)
    out = directory / "busy-export"
    found: dict = {
        command: {setting: {"quiet": [], "busy": []} for setting in settings}
        for command in commands(model, images, out)
    }
    exports = set()
    for _ in range(rounds):
        for state, processes in (("quiet", 0), ("busy", LOAD * (os.cpu_count() or 1))):
            for setting, environment in settings.items():
                shutil.rmtree(out, ignore_errors=True)
                for command, words in commands(model, images, out).items():
                    with busy(processes):
                        took = measure(words, directory / "logs" / "busy.txt", PYTHONPATH=str(ROOT), **environment)
                    found[command][setting][state].append(took.seconds)
                    what = f"{size:<5} {state:<5} {setting:<13} {command:<9}"
                    print(f"{what} {took.seconds:7.1f} s, {took.cpu:.1f} s of CPU", flush=True)
                exports.add(digest(out))
                shutil.rmtree(out)
    return {**found, "same bytes": len(exports) == 1}


def digest(export: Path) -> str:
    """Of the bytes of its weight files."""
    found = hashlib.sha256()
    for file in sorted(export.glob("*.safetensors")):
        with open(file, "rb") as stream:
            while piece := stream.read(1 << 24):  # hashlib.file_digest is Python 3.11's
                found.update(piece)
    return found.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="A job on a quiet and on a busy machine.")
    parser.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES), help="these sizes")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--spin", nargs="*", type=int, default=[], metavar="N", help="GOMP_SPINCOUNT to try besides")
    chosen = parser.parse_args()
    directory = ROOT / "out" / "bench"
    settings = SETTINGS | {f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in chosen.spin}
    results = {}
    for size in chosen.only:
        results[size] = rounds_of(size, chosen.rounds, settings, directory)
        for command in commands(*[directory] * 3):
            for setting in settings:
                quiet, loaded = (
                    statistics.median(results[size][command][setting][state]) for state in ("quiet", "busy")
                )
                times = f"quiet {quiet:6.1f} s  busy {loaded:6.1f} s, {loaded / quiet:4.1f} times"
                print(f"{size:<5} {command:<9} {setting:<13} {times}; the share lost makes it {1 + LOAD}")
        print(f"{size:<5} the same bytes: {results[size]['same bytes']}")
    (directory / "busy.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
