"""Perplexity and KL divergence of int8 exports of a real language model, by what they were calibrated with and how.

    make accuracy                                        SmolLM2-135M in the shape of LLaVA-1.5, every row of the table
    make accuracy-short                                  a few rows on less text, with bounds; what CI runs
    python bench/accuracy/accuracy.py --model_path /models/Qwen2-VL-7B-Instruct --device_type npu
                                                         the same table for a checkpoint of your own

Text to measure on is nobody's here (passages.py); 95 % intervals are over passages. docs/accuracy.md explains the
table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bench.accuracy import checkpoint, packages  # noqa: E402
from bench.accuracy.measure import Passage, Reference, Score, compare, score  # noqa: E402
from bench.accuracy.passages import KINDS, passages  # noqa: E402
from quant import QuantConfig  # noqa: E402
from quant.base.choices import ROUNDINGS as W_METHODS  # noqa: E402
from quant.base.config import CALIB_IMAGES  # noqa: E402
from quant.calibrate.calibrator import Calibrator  # noqa: E402
from quant.verify import runtime  # noqa: E402

CALIBRATIONS = {  # name -> what it is
    "two": "two photographs, one prompt, no text",
    "photographs": "the 13 shipped photographs, one prompt, no text",
    "shipped": "the default: shipped photographs with prompts and answers, shipped text",
    "self": "the shipped photographs and text, written by the model itself",
    "like": "16 passages like the evaluation's",
}
METHODS = ("none", "m2", "m4", "auto")
SCHEMES: dict[str, dict] = {  # name -> QuantConfig's choices
    "static": {},  # down_proj float
    "dynamic": {"scheme": "W8A8_DYNAMIC"},  # likewise
    "vllm-ascend": {"profile": "vllm-ascend"},  # down_proj W8A8_DYNAMIC, the rest static
    "all dynamic": {"profile": "vllm-ascend", "scheme": "W8A8_DYNAMIC"},
}
ROUNDINGS: dict[str, dict] = {name: {"w_method": name} for name in W_METHODS} | {"corrected": {"bias_correction": True}}
VENDOR = ("vendor m2", "vendor m4")
LIKE = 4, 400  # passages of each kind, tokens of each
BOUNDS = {"kl": 0.012, "gain": 4.0}  # of the short form: KL by default, and how much less it is than plain rounding's


def calibration(name: str, tokenizer, texts: Path) -> tuple[object, dict]:
    """(calib_data, choices) of one of CALIBRATIONS."""
    if name == "like":
        ids = [each for kind in KINDS for each in passages(tokenizer, texts, kind, *LIKE, calibration=True)]
        return [
            {"input_ids": torch.tensor([one]), "attention_mask": torch.ones(1, len(one), dtype=int)} for one in ids
        ], {}
    if name in ("shipped", "self"):
        return None, {"calib_text": name}
    return CALIB_IMAGES, {"calib_text": "none", "num_samples": 2 if name == "two" else None}


class Row(NamedTuple):
    """A row of the table: one of CALIBRATIONS, METHODS or VENDOR, SCHEMES, ROUNDINGS."""

    calibration: str
    method: str
    scheme: str
    rounding: str


def export(source: Path, target: Path, row: Row, seed: int, tokenizer, texts: Path, device: str | None) -> float:
    """Quantize into `target`; the seconds it took. seed: of the rows that scales are judged on."""
    data, choices = calibration(row.calibration, tokenizer, texts)
    if row.method in VENDOR:
        return vendor_export(source, target, data, choices, row.method)
    start = time.perf_counter()
    choices |= {"anti_method": row.method, "seed": seed, **ROUNDINGS[row.rounding], **SCHEMES[row.scheme]}
    config = QuantConfig(dev_type=device, vision="float", **choices)
    calibrator = Calibrator(source, config, data).run(target.parent)
    calibrator.save(target)
    calibrator.close()
    return time.perf_counter() - start


def vendor_export(source: Path, target: Path, data, choices: dict, method: str) -> float:
    """The same by the vendor's library, in the oracle's environment."""
    python = ROOT / ".venv-oracle" / "bin" / "python"
    if not python.is_file():
        raise RuntimeError(f"{python}: not there; make test-oracle makes it, or leave the vendor's rows out")
    config = {"engine": "msmodelslim", "anti_method": method.removeprefix("vendor "), "vision": "float", **choices}
    shadow = tempfile.TemporaryDirectory(dir=target.parent)
    for file in source.iterdir():
        (Path(shadow.name) / file.name).symlink_to(file.resolve())
    settings = Path(shadow.name) / "tokenizer_config.json"
    said = json.loads(settings.read_text())
    if said.get("tokenizer_class") == "PreTrainedTokenizerFast":  # 4.46 makes no Qwen2-VL processor of it
        settings.unlink()
        settings.write_text(json.dumps(said | {"tokenizer_class": "Qwen2TokenizerFast"}))
    job = {
        "source": shadow.name,
        "config": config,
        "images": str(data) if data else None,
        "save": {str(target): "ascendV1"},
    }
    start = time.perf_counter()
    done = subprocess.run([python, ROOT / "tests/oracle/native.py", repr((job,))], capture_output=True, text=True)
    shadow.cleanup()
    if done.returncode:
        raise RuntimeError(f"{method}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return time.perf_counter() - start


def main() -> int:
    """The table; 1 where the short form's bounds are missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model_path", type=Path, help="a checkpoint of your own (default: SmolLM2 in a LLaVA's shape)"
    )
    parser.add_argument("--shape", choices=checkpoint.SHAPES, default="llava", help="of SmolLM2's checkpoint")
    parser.add_argument("--device_type", choices=("npu", "cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "accuracy", help="packages, checkpoint and table")
    parser.add_argument("--calibrations", nargs="+", choices=CALIBRATIONS, default=list(CALIBRATIONS))
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *VENDOR), default=list(METHODS))
    parser.add_argument("--schemes", nargs="+", choices=(*SCHEMES, "chosen"), default=["static"])
    parser.add_argument("--analysis", type=Path, metavar="DIR", help="of quant analyze --max_drop: the scheme `chosen`")
    parser.add_argument("--roundings", nargs="+", choices=ROUNDINGS, default=["nearest"])
    parser.add_argument("--seeds", type=int, default=1, help="exports of each row, each on passages of its own")
    parser.add_argument("--passages", type=int, default=8, help="of each kind of text")
    parser.add_argument("--tokens", type=int, default=400, help="of each passage")
    parser.add_argument(
        "--short", action="store_true", help="shipped text, none and m2, 3 passages of 200 tokens, bounds"
    )
    chosen = parser.parse_args()
    if chosen.short:
        chosen.calibrations, chosen.methods, chosen.passages, chosen.tokens = ["shipped"], ["none", "m2"], 3, 200
    if ("chosen" in chosen.schemes) != bool(chosen.analysis):
        parser.error("--schemes chosen and --analysis DIR go together")
    if chosen.analysis:
        moved = json.loads((chosen.analysis / "analysis.json").read_text())["chosen"]
        profile = "vllm-ascend" if moved["dynamics"] else "both"
        lists = {"disable_names_only": tuple(moved["floats"]), "dynamic_names": tuple(moved["dynamics"])}
        SCHEMES["chosen"] = {"profile": profile, **lists}
    texts = packages.download(chosen.out / "packages")
    source = chosen.model_path or chosen.out / chosen.shape
    if not source.is_dir():
        print(f"making {source}", flush=True)
        checkpoint.make(source, chosen.shape, texts)
    scores = table(chosen, source, texts)
    if not chosen.short:
        return 0
    none, m2 = (scores[Row("shipped", method, "static", "nearest")].kl[0] for method in ("none", "m2"))
    met = m2 <= BOUNDS["kl"] and m2 * BOUNDS["gain"] <= none
    bounds = f"at most {BOUNDS['kl']} and {none:.4f} / {BOUNDS['gain']:g}"
    print(f"KL by default {m2:.4f}, {bounds}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


def rows(chosen: argparse.Namespace) -> list[Row]:
    """Those that were asked for; the vendor's library gets what its users give it, photographs, and rounds its way."""
    every = map(Row._make, product(chosen.calibrations, chosen.methods, chosen.schemes, chosen.roundings))
    ours = "self", "like"
    return [
        row
        for row in every
        if row.method not in VENDOR or row.calibration not in ours and row[2:] == ("static", "nearest")
    ]


def table(chosen: argparse.Namespace, source: Path, texts: Path) -> dict[Row, Score]:
    """Measure and print row after row; kept in OUT/accuracy.json, too."""
    device = chosen.device_type or "cpu"
    float_model, encoder = runtime.load_float(source, device)
    said = tempfile.TemporaryDirectory(dir=chosen.out)
    reference = Reference(float_model, Path(said.name))
    count, tokens = chosen.passages, chosen.tokens
    sets = {
        kind: passages(encoder.tokenizer, texts, kind, count * chosen.seeds, tokens, calibration=False)
        for kind in KINDS
    }
    print(f"{'calibration, method, scheme, rounding':<38} {'perplexity':>14} {'KL':>15} {'same':>6}", end=" ")
    print("| KL by kind:", ", ".join(KINDS), flush=True)
    scores, kept = {}, []
    for row in rows(chosen):
        found: dict[str, list[Passage]] = {kind: [] for kind in KINDS}
        seconds, by_seed = [], []
        for seed in range(chosen.seeds):
            with tempfile.TemporaryDirectory(dir=chosen.out) as folder:
                out = Path(folder) / "export"
                seconds.append(export(source, out, row, seed, encoder.tokenizer, texts, chosen.device_type))
                model, _ = runtime.load(out, device)
                mine = {kind: compare(reference, model, each[seed :: chosen.seeds]) for kind, each in sets.items()}
            by_seed.append(score([passage for each in mine.values() for passage in each]))
            for kind, each in mine.items():
                found[kind] += each
        whole = scores[row] = score([passage for each in found.values() for passage in each])
        kinds = {kind: score(each) for kind, each in found.items()}
        by_kind = "  ".join(f"{kinds[kind].kl[0]:.4f}" for kind in KINDS)
        print(
            f"{' '.join(row):<36} {whole.change[0]:>+7.2%} ± {whole.change[1]:<6.2%} {whole.kl[0]:>7.4f} ±"
            f" {whole.kl[1]:<6.4f} {whole.same[0]:>5.1%} | {by_kind}   {sum(seconds) / len(seconds):.0f} s",
            flush=True,
        )
        kept.append({**row._asdict(), "seconds": seconds, "all": asdict(whole)})
        kept[-1]["kinds"] = {kind: asdict(each) for kind, each in kinds.items()}
        kept[-1]["seeds"] = [asdict(each) for each in by_seed]
        (chosen.out / "accuracy.json").write_text(json.dumps(kept, indent=1) + "\n")
    said.cleanup()
    return scores


if __name__ == "__main__":
    sys.exit(main())
