"""Drawn text (examples/data.py) in the forms that evaluation harnesses read, to hold their score against evaluate's.

    python bench/harness_data.py OUT --count 60
    OUT/OCRBench.tsv               VLMEvalKit's: LMUData=OUT
    OUT/hub/data/test.parquet      the hub's, as evalscope reads it
    OUT/general.jsonl              evalscope's general_vqa: messages and answer
The five questions are filed under five of OCRBench's types, so that every harness makes the same table.
"""

import argparse
import base64
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

HERE = Path(__file__).resolve().parent
TYPES = (
    "Regular Text Recognition",
    "Digit String Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Drawn text in the forms that evaluation harnesses read.")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--count", type=int, default=60, metavar="N", help="questions (default: 60)")
    parser.add_argument("--seed", type=int, default=5, metavar="N", help="of the drawing (default: 5)")
    args = parser.parse_args()
    images = args.out / "images"
    words = [HERE.parent / "examples" / "data.py", images, "--count", args.count, "--seed", args.seed]
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (images / "questions.jsonl").read_text().splitlines()]
    write(args.out, rows, images)


def write(out: Path, rows: list[dict], images: Path) -> None:
    """rows: of examples/data.py."""
    tsv, table, general = ["index\timage\tquestion\tanswer\tcategory"], [], []
    for number, row in enumerate(rows):
        data, kind = (images / row["image"]).read_bytes(), TYPES[number % len(TYPES)]
        text, prompt, answers = base64.b64encode(data).decode(), row["prompt"], row["answers"]
        answers = [answers] if isinstance(answers, str) else answers
        tsv.append(f"{number}\t{text}\t{prompt}\t{answers!r}\t{kind}")
        table.append(
            {
                "dataset": "drawn",
                "question": prompt,
                "question_type": kind,
                "answer": answers,
                "image": {"bytes": data, "path": row["image"]},
            }
        )
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}
        message = {"role": "user", "content": [image, {"type": "text", "text": prompt}]}
        general.append(json.dumps({"messages": [message], "answer": answers[0]}))
    (out / "OCRBench.tsv").write_text("\n".join(tsv) + "\n")
    (out / "general.jsonl").write_text("\n".join(general) + "\n")
    (out / "hub" / "data").mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(table), out / "hub" / "data" / "test-00000-of-00001.parquet")


if __name__ == "__main__":
    main()
