"""The vendor's library on a checkpoint, in the steps of its published scripts: a process of its own, timed from
outside.

    .venv-oracle/bin/python bench/peers/msmodelslim_w8a8.py MODEL IMAGES OUT --method m2

Inputs come from this project's encoder, so that both work on the same numbers; nothing else is shared. The linears kept
float are those of our recipe.
"""

import argparse
import inspect
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

FLOAT = ("lm_head", "visual.merger.", ".mlp.fc2", ".mlp.down_proj")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=("m2", "m4"), required=True)
    chosen = parser.parse_args()

    import torch
    from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
    from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig
    from transformers import Qwen2VLForConditionalGeneration

    from bench.peers.inputs import prepared

    samples = prepared(chosen.model, chosen.images)
    model = Qwen2VLForConditionalGeneration.from_pretrained(chosen.model, torch_dtype="auto", device_map="cpu").eval()
    if model.lm_head.weight is model.model.embed_tokens.weight:  # it cannot save a head that shares its memory
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    order = list(inspect.signature(type(model).forward).parameters)[1:]
    data = [[sample.get(name) for name in order[: 1 + max(map(order.index, sample))]] for sample in samples]

    chosen.out.mkdir(parents=True)
    out = chosen.out.resolve()
    os.chdir(out)  # it leaves features.npy in the working directory
    AntiOutlier(
        model, calib_data=data, cfg=AntiOutlierConfig(a_bit=8, w_bit=8, anti_method=chosen.method, dev_type="cpu")
    ).process()
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    kept = [name for name in linears if any(part in name for part in FLOAT)]
    config = QuantConfig(
        a_bit=8, w_bit=8, disable_names=kept, dev_type="cpu", act_method=1, mm_tensor=False, disable_last_linear=False
    )
    calibrator = Calibrator(model, config, calib_data=data, disable_level="L0")
    calibrator.run()
    calibrator.save(str(out), save_type=["ascendV1"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
