"""python video_oracle.py CASES OUT: what transformers' own processors make of videos, in a process of its own, since
they need torchvision, or what stands for it on the path (torchvision_stub/).

CASES: JSON of [{"checkpoint", "processor", "video_processor", "video", "image" (null for none), "text", "fps",
"settings"}, ...]; OUT: torch.save of a list of the inputs. The video is read by transformers' own reader.
"""

import json
import sys
from functools import partial

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.video_utils import load_video


def inputs_of(case: dict) -> dict:
    directory, sampling = case["checkpoint"], {"fps": case["fps"]} if case["fps"] else {"num_frames": 8}
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    old = transformers.__version__.startswith("4.")
    images = AutoImageProcessor.from_pretrained(directory, **({"use_fast": False} if old else {"backend": "pil"}))
    videos = getattr(transformers, case["video_processor"]).from_pretrained(directory, **case["settings"])
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": videos}
    processor = getattr(transformers, case["processor"])(**parts, **case["arguments"])
    sample = partial(videos.sample_frames, **sampling)
    if "taken" in case:
        sample = lambda *_, **__: np.array(case["taken"])  # noqa: E731
    frames, metadata = load_video(case["video"], backend="pyav", sample_indices_fn=sample)
    shown = {"images": [Image.open(case["image"])]} if case["image"] else {}
    if old and "Qwen3" not in case["processor"]:  # it is not counted from the frames that were taken
        shown["videos_kwargs"] = {"fps": [len(frames) / metadata.total_num_frames * metadata.fps]}
    found = processor(
        text=[case["text"]],
        videos=[frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
        **shown,
    )
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        cases = json.load(file)
    torch.save([inputs_of(case) for case in cases], sys.argv[2])
