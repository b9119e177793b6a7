"""The few functions of torchvision that transformers' video processors call, in torch, for tests/video_oracle.py alone:
with it on the path, those classes run without torchvision.
"""

from . import io, transforms  # noqa: F401

__version__ = "0.27.0"
