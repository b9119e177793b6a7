"""--engine msmodelslim where it cannot run: one line, before any work. What it does where it can is tests/oracle's."""

import importlib.util

import pytest

from quant import QuantConfig, UsageError
from quant.calibrate import vendor


def installed(monkeypatch, transformers: str | None) -> None:
    """Pretend that msmodelslim is there beside this transformers; None: that it is not there."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if transformers else None)
    monkeypatch.setattr(vendor, "version", lambda name: transformers)


@pytest.mark.parametrize(
    ("transformers", "device", "choices", "message"),
    [
        (None, "cpu", {}, "msmodelslim is not installed; .*requirements-oracle.txt"),
        ("5.23.0", "cpu", {}, "transformers 4.45 to 4.47, 5.23.0 is installed; .*requirements-oracle.txt"),
        ("4.48.0", "cpu", {}, "4.45 to 4.47, 4.48.0 is installed"),
        ("4.44.2", "cpu", {}, "4.45 to 4.47, 4.44.2 is installed"),
        ("4.46.0", "cuda", {}, "npu, not cuda; add --device_type cpu"),
        ("4.46.0", "cpu", {"anti_method": "m4", "alpha": 0.5}, "--alpha 0.5: .* leave it out"),
        ("4.46.0", "cpu", {"scheme": "W8A8_DYNAMIC"}, "--scheme W8A8_DYNAMIC: .* leave it out"),
        ("4.46.0", "cpu", {"dynamic_names": ("*.o_proj",)}, "--dynamic_names: .* leave it out"),
        ("4.46.0", "cpu", {"w_method": "gptq"}, "--w_method gptq: .* leave it out"),
    ],
)
def test_refused_in_one_line(monkeypatch, transformers, device, choices, message):
    installed(monkeypatch, transformers)
    with pytest.raises(UsageError, match=message) as refusal:
        vendor.check(QuantConfig(**choices), device)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("transformers", ["4.45.0", "4.46.0", "4.47.1"])
def test_accepted(monkeypatch, transformers):
    installed(monkeypatch, transformers)
    vendor.check(QuantConfig(anti_method="m2"), "cpu")
    vendor.check(QuantConfig(anti_method="m4"), "npu")
