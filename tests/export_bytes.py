"""sha256 of every file that a set of small jobs exports, and how two versions of this project differ in them.

    python tests/export_bytes.py --write now.json                  the hashes that this checkout makes
    python tests/export_bytes.py --root OLD --against now.json     those of another checkout, compared file by file

Both on one machine: the last bit of a float product may differ between processors. The jobs go through the command
line, the part of the project that does not change; the tiny checkpoints and pictures are made by this checkout for
both. A checkout from before there was text is compared by --flags="--calib_text none". Not in it: quant_recipe.json
and quant_run.json, which hold versions and times.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

SOURCES = {  # name -> arguments of tiny.make
    "qwen2_vl": {"family": "qwen2_vl"},
    "qwen2_5_vl": {"family": "qwen2_5_vl"},
    "llava": {"family": "llava"},
    "qwen2_vl-float16-tied": {"family": "qwen2_vl", "dtype": "float16", "tied": True, "shards": 2},
    "qwen2_vl-float32": {"family": "qwen2_vl", "dtype": "float32"},
    "llava-float16": {"family": "llava", "dtype": "float16", "kv_heads": 1},
}
LANGUAGE = {"qwen2_vl": "model.layers", "qwen2_5_vl": "model.layers", "llava": "language_model.model.layers"}
JOBS: dict[str, tuple[str, list[str]]] = {}  # name -> (source, flags)
for source in SOURCES:
    for method in ("m2", "m4", "none"):
        JOBS[f"{source} {method}"] = (source, ["--anti_method", method])
for source in LANGUAGE:
    everything = ["--anti_method", "m2", "--disable_names_only", f"{LANGUAGE[source]}.0.self_attn.o_proj"]
    JOBS[f"{source} m2 down_proj int8"] = (source, everything)
    JOBS[f"{source} m4 act 2"] = (source, ["--anti_method", "m4", "--act_method", "2"])
    JOBS[f"{source} m2 act 3"] = (source, ["--anti_method", "m2", "--act_method", "3"])
    JOBS[f"{source} mindie"] = (source, ["--anti_method", "m4", "--mindie_format"])
JOBS["qwen2_vl vision float"] = ("qwen2_vl", ["--anti_method", "m4", "--vision", "float"])
FORMATS = {
    "dynamic": ["--act", "dynamic"],
    "mix": ["--act", "mix"],
    "compressed-tensors": ["--save_type", "compressed-tensors"],
    "compressed-tensors static": ["--save_type", "compressed-tensors", "--act", "static"],
}  # made of every "SOURCE m2"
RECORDS = ("quant_recipe.json", "quant_run.json")


def hashes(directory: Path) -> dict[str, str]:
    """File name -> sha256 of all files of an export but its records."""
    files = (file for file in sorted(directory.iterdir()) if file.name not in RECORDS)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def run(root: Path, place: Path, more: list[str]) -> dict[str, dict[str, str]]:
    """Job -> file name -> sha256, by the project in `root`; more: flags for every job."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import tiny

    sys.path.insert(0, str(root))
    for name in [name for name in sys.modules if name.split(".")[0] in ("quant", "bench")]:
        del sys.modules[name]
    for name in ("quant.commands.cli", "quant.cli"):
        with contextlib.suppress(ImportError):
            main = importlib.import_module(name).main
            break
    images = tiny.make_images(place / "images", 5)
    sources = {name: tiny.make(place / f"src {name}".replace(" ", "-"), **options) for name, options in SOURCES.items()}
    found = {}

    def call(*words: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            if main(list(words)) != 0:
                raise SystemExit(f"{' '.join(words)}: failed")

    for job, (source, flags) in JOBS.items():
        out = place / job.replace(" ", "-")
        common = ["--model_path", str(sources[source]), "--calib_images", str(images), "--save_directory", str(out)]
        call("quantize", *common, "--device_type", "cpu", "--quiet", *flags, *more)
        found[job] = hashes(out)
        if job == f"{source} m2":
            for name, options in FORMATS.items():
                target = place / f"{job} {name}".replace(" ", "-")
                call("export", str(out), str(target), *options)
                found[f"{job} {name}"] = hashes(target)
    return found


def differences(before: dict, after: dict) -> list[str]:
    lines = []
    for job in sorted({*before, *after}):
        one, two = before.get(job, {}), after.get(job, {})
        lines += [f"{job}: {name}" for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout to run")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the hashes to FILE")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with the hashes in FILE")
    parser.add_argument("--flags", default="", help='for every job, as in --flags="--calib_text none"')
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="export-bytes-") as place:
        found = run(args.root.resolve(), Path(place), args.flags.split())
    files = sum(len(names) for names in found.values())
    print(f"{len(found)} exports, {files} files, by {args.root}")
    if args.write:
        args.write.write_text(json.dumps(found, indent=1) + "\n")
    if not args.against:
        return 0
    different = differences(json.loads(args.against.read_text()), found)
    print("\n".join(different) if different else "every file is the same, byte for byte")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
