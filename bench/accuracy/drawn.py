"""KL divergence and right answers of int8 exports of the two trained models of examples/, by profile, method and
rounding, on drawn images that neither training nor calibration saw.

    python bench/accuracy/drawn.py --seeds 5

A seed draws its own calibration set (DRAWN images with answers beside the shipped photographs) and its own images to
measure on (IMAGES). KL is of the next token's distribution at each token of the right answer, given those before it;
an answer counts as right where each of its tokens is ranked first. Intervals are over seeds, 95 %.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import data  # noqa: E402
import torch  # noqa: E402

from bench.accuracy.accuracy import METHODS, SCHEMES  # noqa: E402
from bench.accuracy.measure import mean  # noqa: E402
from quant import QuantConfig  # noqa: E402
from quant.base.choices import ROUNDINGS  # noqa: E402
from quant.base.config import CALIB_IMAGES  # noqa: E402
from quant.calibrate.calibrator import Calibrator  # noqa: E402
from quant.verify import runtime  # noqa: E402

MODELS = ("tiny-qwen2vl", "tiny-llava")
DRAWN, IMAGES = 12, 100
CALIBRATION, EVALUATION = 100, 200  # added to a seed; training saw seed 0


def questions(seed: int, count: int) -> Iterator[tuple[data.Sample, str, str]]:
    """(drawn sample, prompt, right answer), as data.write_set asks them."""
    for index in range(count):
        sample, (prompt, answer) = data.draw(seed, index), data.QUESTIONS[index % len(data.QUESTIONS)]
        yield sample, prompt, answer(sample.text, sample.colour)


def calibration(folder: Path, seed: int) -> Path:
    """A JSONL of drawn images with their answers and of the shipped photographs, asked what is written."""
    lines = []
    for index, (sample, prompt, answer) in enumerate(questions(CALIBRATION + seed, DRAWN)):
        sample.image.save(folder / f"{index}.png")
        lines.append({"image": str(folder / f"{index}.png"), "prompt": prompt, "answer": answer})
    lines += [{"image": str(photo), "prompt": "What is written?"} for photo in sorted(CALIB_IMAGES.glob("*.jpg"))]
    (folder / "calibration.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "calibration.jsonl"


@torch.inference_mode()
def answers(model, encoder, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each question the answer's token ids [A] and the log-probabilities in front of each, float32 [A, words]."""
    found = []
    for sample, prompt, answer in questions(EVALUATION + seed, IMAGES):
        ids = encoder.answer_ids(answer)
        inputs = encoder(sample.image, prompt, answer)
        logits = model(**inputs).logits[0, -len(ids) - 1 : -1]
        found.append((torch.tensor(ids), logits.float().log_softmax(-1)))
    return found


def compare(wanted: list, got: list) -> tuple[float, float]:
    """(KL, nats a token; share of right answers) over questions."""
    kl = [(one.exp() * (one - other)).sum(-1) for (_, one), (_, other) in zip(wanted, got)]
    right = [torch.equal(said.argmax(-1), ids) for ids, said in got]
    return torch.cat(kl).double().mean().item(), sum(right) / len(right)


def main() -> None:
    """Print the table row after row; kept in --out as JSON, too."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0].replace("\n", " "))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=["static", "vllm-ascend"])
    parser.add_argument("--roundings", nargs="+", choices=ROUNDINGS, default=list(ROUNDINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "drawn.json")
    chosen = parser.parse_args()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{'model, method, scheme, rounding':<42} {'KL':>16} {'right':>16} float")
    kept = []
    for name in chosen.models:
        model, encoder = runtime.load_float(ROOT / "examples" / name)
        said = [answers(model, encoder, seed) for seed in range(chosen.seeds)]
        whole = sum(compare(each, each)[1] for each in said) / chosen.seeds
        for method, scheme, rounding in product(chosen.methods, chosen.schemes, chosen.roundings):
            found = []
            for seed, wanted in enumerate(said):
                with tempfile.TemporaryDirectory() as folder:
                    choices = {"anti_method": method, "w_method": rounding, "seed": seed, **SCHEMES[scheme]}
                    config = QuantConfig(dev_type="cpu", calib_text="none", **choices)
                    source = ROOT / "examples" / name
                    calibrator = Calibrator(source, config, calibration(Path(folder), seed)).run(Path(folder))
                    calibrator.save(Path(folder) / "export")
                    calibrator.close()
                    export, _ = runtime.load(Path(folder) / "export")
                    found.append(compare(wanted, answers(export, encoder, seed)))
            kl, right = (mean(list(each)) for each in zip(*found))
            print(
                f"{f'{name} {method} {scheme} {rounding}':<42} {kl[0]:>7.4f} ± {kl[1]:<6.4f}"
                f" {right[0]:>7.1%} ± {right[1]:<5.1%} {whole:.1%}",
                flush=True,
            )
            kept.append({"model": name, "method": method, "scheme": scheme, "rounding": rounding, "seeds": found})
            chosen.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
