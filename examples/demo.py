"""make demo: two small checkpoints, made here, quantized with the photographs of calibImages/ by the scripts a user calls.

Every step is a command line that is printed before it runs, so that it can be repeated by hand with a real model.
"""
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
MODELS = {
    "qwen2vl": ("quant/qwen2vl/quant_qwen2vl.py", "qwen2vl-tiny"),
    "llava": ("quant/llava/quant_llava.py", "llava-tiny"),
}


def step(*words) -> None:
    """Print a command and run it; end the demo where it fails."""
    shown = ["python", *(str(word).replace(f"{ROOT}/", "") for word in words)]
    print("\n$ " + " ".join(shown), flush=True)
    code = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def holdings(directory: Path) -> None:
    """What an export holds, a line per file."""
    print(f"\n{directory.relative_to(ROOT)} holds")
    notes = {
        "quant_model_weight_w8a8.safetensors": "int8 weights, scales, offsets; all else in the model's dtype",
        "quant_model_description.json": "W8A8 or FLOAT for every tensor: what servers read first",
        "config.json": "the source's, with `quantize` and the dtype",
        "quant_recipe.json": "choices, versions, seed, calibration set",
        "quant_run.json": "per block: signal-to-noise, ranges, seconds",
    }
    rest = 0
    for file in sorted(directory.iterdir()):
        if file.name in notes:
            print(f"  {file.name:<36} {file.stat().st_size / 1e3:8.0f} kB  {notes[file.name]}")
        else:
            rest += 1
    print(f"  and {rest} files of the source: tokenizer, processor, chat template")


def main() -> None:
    if OUT.exists():
        shutil.rmtree(OUT)
    OUT.mkdir()
    for name, (script, size) in MODELS.items():
        step("bench/make_checkpoint.py", size, OUT / name)
        step(script, "--model_path", OUT / name, "--save_directory", OUT / f"{name}-w8a8", "--anti_method", "m4", "--device_type", "cpu")
        holdings(OUT / f"{name}-w8a8")


if __name__ == "__main__":
    main()
