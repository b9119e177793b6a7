"""--engine msmodelslim: the vendor's library on the same checkpoint, the same plan and the same prepared inputs.

    load the whole model -> AntiOutlier (m2, m4) -> Calibrator, QuantConfig -> its own export, read back

The numbers are the library's, untouched: the caller only writes them under the layouts that our own are written in. It
has requirements of its own (requirements-oracle.txt), is imported on use, and needs memory for the whole model and once
more for its int8 weights. What must be known to run it:

- it takes inputs as positional lists, and its m2 chooses the scales from the first of them alone;
- its LLaVA blocks look for the language model's settings where transformers 4.37 had them, or in `llm_config`;
- it leaves features.npy in the working directory, and cannot save a head that shares its memory with the embedding;
- a method that finds nothing to smooth succeeds in silence: so what changed is compared here.

Left out: its other methods and bit widths, several NPUs at once, CUDA (its scripts know the NPU and the CPU).
"""

import contextlib
import importlib.util
import inspect
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

from ..base.config import QuantConfig
from ..base.console import size
from ..base.errors import QuantError, UsageError
from ..export.plan import Plan
from ..files.checkpoint import Checkpoint
from ..files.safetensors_io import TensorInfo, read_header, read_tensor
from ..inputs.images import one_line

TRANSFORMERS = ((4, 45), (4, 47))  # first and last minor version whose Qwen2-VL and LLaVA blocks its own can replace
DEVICES = {"cpu": "cpu", "npu": "auto"}  # device -> device_map of from_pretrained, as in its scripts
WAY_OUT = "make an environment of its own with `pip install -r requirements-oracle.txt`"


@dataclass(frozen=True)
class VendorExport:
    """What the library wrote, and what it left out. Valid inside `with vendor_export(...)`, while the files live."""

    tensors: dict[str, TensorInfo]

    def load(self, name: str) -> Tensor:
        """A tensor of any shape by its hub name (of an int8 linear name.weight, name.deq_scale ...), in the library's
        dtype.
        """
        return read_tensor(self.tensors[name])


def check(config: QuantConfig, device: str) -> None:
    """Raises UsageError where the library is missing or cannot do what is asked. Imports nothing of it."""
    if importlib.util.find_spec("msmodelslim") is None:
        raise UsageError(f"--engine msmodelslim: msmodelslim is not installed; {WAY_OUT}")
    installed = version("transformers")
    if not TRANSFORMERS[0] <= tuple(int(part) for part in installed.split(".")[:2]) <= TRANSFORMERS[1]:
        span = " to ".join(f"{major}.{minor}" for major, minor in TRANSFORMERS)
        raise UsageError(f"--engine msmodelslim: works with transformers {span}, {installed} is installed; {WAY_OUT}")
    if device not in DEVICES:
        raise UsageError(f"--engine msmodelslim: runs on {' or '.join(DEVICES)}, not {device}; add --device_type cpu")
    if config.w_method != "nearest":
        raise UsageError(f"--w_method {config.w_method}: msmodelslim rounds weights its own way; leave it out")
    if config.bias_correction:
        raise UsageError("--bias_correction: msmodelslim rounds weights its own way; leave it out")
    if config.scheme != "W8A8" or config.dynamic_names:
        flag = f"--scheme {config.scheme}" if config.scheme != "W8A8" else "--dynamic_names"
        raise UsageError(f"{flag}: with --engine msmodelslim linears are static W8A8; leave it out")
    if config.alpha is not None:
        raise UsageError(f"--alpha {config.alpha}: msmodelslim's m4 has no such choice; leave it out")


@contextlib.contextmanager
def vendor_export(
    checkpoint: Checkpoint,
    plan: Plan,
    config: QuantConfig,
    inputs: list[dict[str, Tensor]],
    dtype: torch.dtype,
    device: str,
    work: Path,
    notice: Callable[[str], None] = lambda text: None,
    log: TextIO | None = None,
) -> Iterator[VendorExport]:
    """Quantize with the library and yield what it wrote: files in a new directory inside `work`, removed at the end.

    inputs: the model's keyword arguments per sample, batch [1, ...]. dtype: what the model is loaded, computed and
    exported in. notice: gets a line at a time for the user. log: gets what the library logs. Raises UsageError as
    `check` does, QuantError when the library fails or rounds other linears than planned.
    """
    check(config, device)
    notice(f"msmodelslim {version('msmodelslim')} holds the whole model in memory, {size(checkpoint.nbytes)} and more")
    if config.anti_method == "m2" and len(inputs) > 1:
        notice(f"msmodelslim's m2 chooses its scales from the first of the {len(inputs)} samples alone")
    source = checkpoint.dir.resolve()
    directory = Path(tempfile.mkdtemp(prefix="msmodelslim-", dir=work)).resolve()
    try:
        with contained(directory, log), torch.inference_mode(False), torch.no_grad():
            model = load_model(source, plan, dtype, device, config.trust_remote_code)
            parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            try:
                run(model, plan, config, inputs, device, directory, notice)
            except Exception as error:  # whatever it raises, it wraps in a bare Exception
                raise QuantError(f"msmodelslim failed: {one_line(root_cause(error))}") from error
        del model
        unseen = {name: info for name, info in checkpoint.tensors.items() if name not in parameters}
        yield read_export(directory, plan, unseen)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def load_model(source: Path, plan: Plan, dtype: torch.dtype, device: str, trust_remote_code: bool) -> nn.Module:
    """The whole model, with the few settings that the library and this version of transformers need to see.

    Raises QuantError when transformers cannot load it, or would fill a missing tensor with random numbers.
    """
    import transformers

    loader = f"transformers {transformers.__version__}"
    try:
        model, report = getattr(transformers, plan.family.architecture).from_pretrained(
            str(source),
            torch_dtype=dtype,
            device_map=DEVICES[device],
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise QuantError(f"{source}: {loader} cannot load it: {one_line(error)}") from error
    if missing := report["missing_keys"]:
        raise QuantError(f"{source}: {loader} does not find {len(missing)} tensors, {missing[0]} among them")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.clone(), requires_grad=False)
    if hasattr(model.config, "text_config"):
        model.config.llm_config = model.config.text_config
        model.config.image_seq_length = 0  # a prompt with fewer image tokens would count as not yet expanded
    return model.eval()


def run(
    model: nn.Module,
    plan: Plan,
    config: QuantConfig,
    inputs: list[dict[str, Tensor]],
    device: str,
    directory: Path,
    notice: Callable[[str], None],
) -> None:
    """The steps of the library's published scripts: outlier suppression, calibration, export into `directory`.

    inputs: as vendor_export's, batch [1, ...]; notice: gets a line at a time for the user. Raises whatever the library
    does.
    """
    from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
    from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator as VendorCalibrator
    from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import QuantConfig as VendorConfig

    bits_and_place = {"w_bit": config.w_bit, "a_bit": config.a_bit, "dev_type": device, "dev_id": model.device.index}
    calib_data = [positional(model, sample) for sample in inputs]
    if config.anti_method != "none":
        before = fingerprints(model)
        anti_config = AntiOutlierConfig(anti_method=config.anti_method, **bits_and_place)
        AntiOutlier(model, calib_data=calib_data, cfg=anti_config).process()
        changed = sum(before[name] != value for name, value in fingerprints(model).items() if name in before)
        if changed:
            notice(f"msmodelslim's {config.anti_method} changed {changed} of {len(before)} tensors")
        else:
            notice(f"msmodelslim's {config.anti_method} changed nothing: it found no group in {plan.family.name}")
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    vendor_config = VendorConfig(
        act_method=config.act_method,
        disable_names=[name for name in linears if not plan.is_int8(name)],
        disable_last_linear=False,  # the plan has decided
        mm_tensor=False,  # one weight scale per output channel
        **bits_and_place,
    )
    calibrator = VendorCalibrator(model, vendor_config, calib_data=calib_data, disable_level="L0")
    calibrator.run()
    calibrator.save(str(directory), save_type=["ascendV1"])


def positional(model: nn.Module, sample: dict[str, Tensor]) -> list[Tensor | None]:
    """{"input_ids": ..., "pixel_values": ...} -> the forward's arguments in order, None where there is none.

    sample: tensors [1, ...]; those that the forward does not name are left out.
    """
    order = list(inspect.signature(type(model).forward).parameters)[1:]
    device = next(model.parameters()).device
    known = {name: tensor.to(device) for name, tensor in sample.items() if name in order}
    last = max(order.index(name) for name in known)
    return [known.get(name) for name in order[: last + 1]]


def fingerprints(model: nn.Module) -> dict[str, int]:
    """Parameter name -> CRC-32 of its bytes."""
    return {
        name: zlib.crc32(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        for name, parameter in model.named_parameters()
    }


def read_export(directory: Path, plan: Plan, unseen: dict[str, TensorInfo]) -> VendorExport:
    """unseen: tensors of the checkpoint that are no parameters to this transformers (inv_freq, ...), to be taken over.

    Raises QuantError unless the linears that were rounded are those of the plan.
    """
    description = json.loads((directory / "quant_model_description.json").read_text())
    weights = [name for name, kind in description.items() if kind == "W8A8" and name.endswith(".weight")]
    int8 = {name.removesuffix(".weight") for name in weights}
    if odd := sorted(int8 ^ plan.int8_names):
        counts = f"{len(int8)} linears, {len(plan.int8_names)} were planned"
        raise QuantError(f"msmodelslim rounded {counts}; {odd[0]} is one that differs")
    files = sorted(directory.glob("*.safetensors"))
    return VendorExport({**unseen, **{name: info for file in files for name, info in read_header(file).items()}})


@contextlib.contextmanager
def contained(directory: Path, log: TextIO | None) -> Iterator[None]:
    """Inside, the working directory is `directory`; the library logs to `log`, its progress bars go nowhere."""
    import msmodelslim  # noqa: F401  gives its logger the handler that is replaced here
    import transformers

    logger = logging.getLogger("msmodelslim")
    handlers, logger.handlers = logger.handlers, [logging.StreamHandler(log) if log else logging.NullHandler()]
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    home = os.getcwd()
    with open(os.devnull, "w") as devnull, contextlib.redirect_stderr(devnull):
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(home)
            transformers.logging.set_verbosity(verbosity)
            logger.handlers = handlers


def root_cause(error: BaseException) -> BaseException:
    """The first error of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
