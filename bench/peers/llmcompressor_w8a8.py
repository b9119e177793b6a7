"""llm-compressor on a checkpoint: SmoothQuant and static W8A8 of the language model, in the steps of its examples.

    .venv-llmc/bin/python bench/peers/llmcompressor_w8a8.py MODEL IMAGES OUT

The vision tower stays float, as in its examples. Inputs come from this project's encoder.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()

    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    from bench.peers.inputs import prepared

    samples = prepared(chosen.model, chosen.images)
    model = Qwen2VLForConditionalGeneration.from_pretrained(chosen.model, dtype="auto")
    recipe = [
        SmoothQuantModifier(smoothing_strength=0.8),
        QuantizationModifier(
            config_groups={
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                    "input_activations": {
                        "num_bits": 8,
                        "type": "int",
                        "symmetric": False,
                        "strategy": "tensor",
                        "dynamic": False,
                    },
                }
            },
            ignore=["re:.*lm_head", "re:.*visual.*", "re:.*down_proj"],
        ),
    ]
    oneshot(
        model=model,
        dataset=DataLoader(samples, batch_size=None),
        processor=AutoTokenizer.from_pretrained(chosen.model),  # its own way to a processor wants torchvision
        recipe=recipe,
        num_calibration_samples=len(samples),
        sequential_targets=["Qwen2VLDecoderLayer"],
    )
    model.save_pretrained(chosen.out, save_compressed=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
