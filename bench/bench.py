"""Time and memory, side by side with msmodelslim and llm-compressor and against what the machine can do. make bench,
make bench-short

    peers     the same checkpoint and photographs, one after the other in every round; medians of whole processes
    search    the steps' shares of m2's time, and verify's time against calibration's
    full      every block of Qwen2-VL-2B with 30 photographs, against the machine's own bound (machine.py)
    scaling   time against photographs and against blocks
    memory    peak against the model's size
    ranks     one process and two, a thread each

Results go to out/bench: results.json, table.md, plots. Where: work.py (inputs), processes.py (measuring), peers/
(theirs), tables.py.
"""

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started by its path, `bench` is not importable

from bench import tables  # noqa: E402
from bench.machine import Machine, forward_operations, measure_machine  # noqa: E402
from bench.processes import Took, measure  # noqa: E402
from bench.work import ROOT, checkpoint, photographs  # noqa: E402

PEERS = {  # name -> (environment, script, arguments)
    "msmodelslim m2": (".venv-oracle", "msmodelslim_w8a8.py", ["--method", "m2"]),
    "msmodelslim m4": (".venv-oracle", "msmodelslim_w8a8.py", ["--method", "m4"]),
    "llm-compressor": (".venv-llmc", "llmcompressor_w8a8.py", []),
}
FULL = {
    "blocks": 4,
    "images": 2,
    "rounds": 3,
    "scale_images": (2, 8, 16, 30),
    "scale_blocks": (2, 4, 8, 16),
    "memory": (("qwen2vl-2b", 2), ("qwen2vl-7b", 2), ("qwen2vl-7b", None), ("qwen2vl-72b", 2)),
}
SHORT = {
    "blocks": 1,
    "images": 2,
    "rounds": 1,
    "scale_images": (2, 8),
    "scale_blocks": (1, 4),
    "memory": (("qwen2vl-2b", 2), ("qwen2vl-7b", 1)),
}


class Bench:
    """The parts of a measurement; each returns what goes under its name into results.json."""

    def __init__(self, directory: Path, plan: dict, device: str, machine: Machine):
        self.dir, self.plan, self.device, self.machine = directory, plan, device, machine

    def ours(
        self, model: Path, images: Path, method: str = "m2", *flags: str, threads: int | None = None
    ) -> tuple[Took, dict]:
        """This project's own script; (what it took, quant_run.json)."""
        out = self.dir / "export"
        shutil.rmtree(out, ignore_errors=True)
        script = ROOT / "quant" / "qwen2vl" / "quant_qwen2vl.py"
        command = [sys.executable, script, "--model_path", model, "--calib_images", images, "--save_directory", out]
        command += ["--calib_text", "none"]  # the peers get these images alone
        environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        took = measure(
            [*command, "--anti_method", method, "--device_type", self.device, *flags],
            self.dir / "logs" / "ours.txt",
            **environment,
        )
        return took, json.loads((out / "quant_run.json").read_text())

    def peer(self, name: str, model: Path, images: Path) -> Took:
        environment, script, arguments = PEERS[name]
        out = self.dir / "peer"
        shutil.rmtree(out, ignore_errors=True)
        took = measure(
            [ROOT / environment / "bin" / "python", ROOT / "bench" / "peers" / script, model, images, out, *arguments],
            self.dir / "logs" / f"{name}.txt",
        )
        shutil.rmtree(out, ignore_errors=True)
        return took

    def bound(self, model: Path, images: Path) -> dict:
        """What the job that was just done takes at least: {"operations", "read", "written", "bound"}."""
        operations = forward_operations(model, images)
        read, written = (
            sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (model, self.dir / "export")
        )
        return {
            "operations": operations,
            "read": read,
            "written": written,
            "bound": self.machine.bound(operations, read, written),
        }

    def peers(self) -> dict:
        """ "programs": name -> medians over the rounds, and every round's seconds; "bound": seconds that the machine
        needs for ours.
        """
        model, images = (
            checkpoint(self.dir, "qwen2vl-2b", self.plan["blocks"]),
            photographs(self.dir, self.plan["images"]),
        )
        rounds: dict[str, list[Took]] = {}
        for number in range(self.plan["rounds"]):
            for name in ("ours m2", *PEERS, "ours m4"):
                took = (
                    self.ours(model, images, name.split()[1])[0]
                    if name.startswith("ours")
                    else self.peer(name, model, images)
                )
                rounds.setdefault(name, []).append(took)
                say(f"round {number + 1}  {name:<16} {took.seconds:7.1f} s  {took.peak / 1e9:5.2f} GB")
        programs = {
            name: {
                "seconds": statistics.median(took.seconds for took in all_),
                "peak": max(took.peak for took in all_),
                "rounds": [took.seconds for took in all_],
            }
            for name, all_ in rounds.items()
        }
        return {"programs": programs, **self.bound(model, images)}

    def search(self) -> dict:
        """Shares of the steps in m2's time, and verify's time against calibration's; 8 photographs."""
        model, images = checkpoint(self.dir, "qwen2vl-2b", self.plan["blocks"]), photographs(self.dir, 8)
        took, run = self.ours(model, images)
        steps = steps_of(run)
        command = [
            sys.executable,
            "-m",
            "quant",
            "verify",
            self.dir / "export",
            "--model_path",
            model,
            "--images",
            images,
            "--device_type",
            self.device,
        ]
        verified = measure(command, self.dir / "logs" / "verify.txt", PYTHONPATH=str(ROOT))
        say(
            f"steps   {'  '.join(f'{step} {seconds:.1f} s' for step, seconds in steps.items())} of {took.seconds:.1f}"
            f" s; verify {verified.seconds:.1f} s"
        )
        return {"seconds": took.seconds, "steps": steps, "verify": verified.seconds}

    def whole(self, size: str, count: int) -> dict:
        """Every block, `count` photographs, against the bound."""
        model, images = checkpoint(self.dir, size), photographs(self.dir, count)
        took, run = self.ours(model, images)
        found = {
            "size": size,
            "images": count,
            **asdict(took),
            "card": run["peak_card_bytes"],
            **self.bound(model, images),
            "steps": steps_of(run),
        }
        say(
            f"full    {size}, {count} photographs: {took.seconds:.1f} s, bound {found['bound']:.1f} s,"
            f" {took.seconds / found['bound']:.2f} of it; {took.peak / 1e9:.2f} GB"
        )
        return found

    def scaling(self) -> dict:
        """[count, seconds] against photographs, at the plan's blocks, and against blocks, at its photographs."""
        images, blocks = [], []
        for count in self.plan["scale_images"]:
            images.append(
                [
                    count,
                    self.ours(checkpoint(self.dir, "qwen2vl-2b", self.plan["blocks"]), photographs(self.dir, count))[
                        0
                    ].seconds,
                ]
            )
            say(f"scaling {count:>3} photographs  {images[-1][1]:6.1f} s")
        for count in self.plan["scale_blocks"]:
            blocks.append(
                [
                    count,
                    self.ours(checkpoint(self.dir, "qwen2vl-2b", count), photographs(self.dir, self.plan["images"]))[
                        0
                    ].seconds,
                ]
            )
            say(f"scaling {count:>3} + {count} blocks    {blocks[-1][1]:6.1f} s")
        return {"images": images, "blocks": blocks}

    def memory(self) -> list[dict]:
        """Peak for two photographs, by model, cut and whole."""
        found = []
        for size, blocks in self.plan["memory"]:
            model = checkpoint(self.dir, size, blocks)
            took, run = self.ours(model, photographs(self.dir, 2))
            found.append(
                {
                    "size": size,
                    "blocks": blocks,
                    "peak": took.peak,
                    "card": run["peak_card_bytes"],
                    "seconds": took.seconds,
                }
            )
            say(
                f"memory  {size}, {f'{blocks} + {blocks}' if blocks else 'all'} blocks: {took.peak / 1e9:.2f} GB,"
                f" {took.seconds:.1f} s"
            )
            if size != "qwen2vl-2b":
                shutil.rmtree(model)  # many GB
        return found

    def ranks(self) -> dict:
        """One thread each: what a second process, a stand-in for a second card, is worth."""
        model, images = checkpoint(self.dir, "qwen2vl-2b", self.plan["blocks"]), photographs(self.dir, 8)
        found = {}
        for workers in (1, 2):
            took, run = self.ours(model, images, "m2", "--num_workers", str(workers), threads=1)
            found[str(workers)] = {"seconds": took.seconds, "blocks": sum(block["seconds"] for block in run["blocks"])}
            say(f"ranks   {workers}: {took.seconds:.1f} s, of which blocks {found[str(workers)]['blocks']:.1f} s")
        return found


def steps_of(run: dict) -> dict[str, float]:
    """Seconds of each step over all blocks of a quant_run.json."""
    return {
        step: sum(block["steps"].get(step, 0) for block in run["blocks"])
        for step in ("observe", "smooth", "round", "measure")
    }


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and memory against the peers and against the machine's limits.")
    parser.add_argument("--short", action="store_true", help="a cut-down version, under 10 minutes")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("peers", "search", "full", "scaling", "memory", "ranks"),
        help="these parts; results of the others are kept",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of the comparison with the peers")
    parser.add_argument(
        "--size",
        default="qwen2vl-2b",
        choices=("qwen2vl-2b", "qwen2vl-7b"),
        help="of the part `full` (default: qwen2vl-2b)",
    )
    parser.add_argument(
        "--device_type", choices=("cpu", "cuda"), default="cpu", help="cuda: without the peers, which run on the CPU"
    )
    chosen = parser.parse_args()
    plan = dict(SHORT if chosen.short else FULL)
    plan["rounds"] = chosen.rounds or plan["rounds"]
    directory = ROOT / "out" / ("bench-short" if chosen.short else "bench")
    directory.mkdir(parents=True, exist_ok=True)
    parts = chosen.only or [
        part
        for part in ("peers", "search", "full", "scaling", "memory", "ranks")
        if not (chosen.short and part == "full")
    ]
    if chosen.device_type != "cpu":
        parts = [part for part in parts if part not in ("peers", "ranks")]

    file = directory / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    weights = next(checkpoint(directory, "qwen2vl-2b", plan["blocks"]).glob("*.safetensors"))
    machine = measure_machine(weights, directory, chosen.device_type)
    results["machine"], bench = asdict(machine), Bench(directory, plan, chosen.device_type, machine)
    say(tables.machine_line(results["machine"]))
    for part in parts:
        key = f"full {chosen.size}" if part == "full" else part
        results[key] = bench.whole(chosen.size, 30) if part == "full" else getattr(bench, part)()
        file.write_text(json.dumps(results, indent=1) + "\n")
    shutil.rmtree(directory / "export", ignore_errors=True)
    (directory / "table.md").write_text(tables.markdown(results))
    tables.plots(results, directory)
    say(f"\n{tables.markdown(results)}\n{directory / 'table.md'}, {directory / 'time.png'}, {directory / 'memory.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
