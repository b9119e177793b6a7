"""Everything that the one who deploys an export needs, in a directory of its own: the server's configuration and a page
of commands.

    mindie        config.json, the service's: merged into the one it is given, or the part of it that concerns the model
    vllm-ascend   the serve command
    both          DEPLOY.md: memory, commands, a request with an image, the evaluation against the endpoint, what to
                  keep from

It refuses, with the reason, what cannot work: an export that breaks a rule of that server, what does not fit the
memory, and what the server is known to compute wrongly.
"""

import copy
import re
from pathlib import Path

from ..base.errors import QuantError, UsageError
from ..base.output import FILE_MODE
from ..files import config_json
from .deploy_page import Place, page
from .rules import SERVERS, Directory, check_directory
from .rules.files import PLAIN
from .service import Demand, Load

PAGE, SERVICE_CONFIG = "DEPLOY.md", "config.json"
MENDED = ("modes",)  # errors that the page's own commands mend
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def refuse(export: Directory, place: Place, world_size: int) -> list[str]:
    """Raises QuantError when the server would not load the export, or compute wrong values from it. Returns what else
    to mind.
    """
    if place.server == "mindie" and not PLAIN.fullmatch(place.directory):
        raise UsageError(f"--directory {place.directory}: MindIE takes paths of A-Z a-z 0-9 _ . / - only")
    if not NAME.fullmatch(place.name):
        raise UsageError(f"--name {place.name}: letters, digits, and . _ - between them are what servers take")
    findings = check_directory(export, [place.server], place.hardware, world_size)
    findings = [finding for finding in findings if finding.rule not in (*MENDED, "path-characters")]
    wrong = [finding for finding in findings if finding.level == "error"]
    if wrong:
        first, more = wrong[0], f" (and {len(wrong) - 1} more: `python -m quant check`)" if len(wrong) > 1 else ""
        raise QuantError(
            f"{first.where} {first.what}; {SERVERS[place.server]}: {first.effects[place.server]}; {first.fix}{more}"
        )
    return [f"{finding.where} {finding.what}: {finding.effects[place.server]}. {finding.fix}." for finding in findings]


def service_config(place: Place, load: Load, demand: Demand) -> dict:
    """The part of MindIE's conf/config.json that depends on the model."""
    return {
        "ServerConfig": {"port": place.port, "httpsEnabled": False},
        "BackendConfig": {
            "npuDeviceIds": [list(place.npus)],
            "ModelDeployConfig": {
                "maxSeqLen": load.max_sequence,
                "maxInputTokenLen": load.max_input,
                "ModelConfig": [
                    {
                        "modelInstanceType": "Standard",
                        "modelName": place.name,
                        "modelWeightPath": place.directory,
                        "worldSize": load.world_size,
                        "cpuMemSize": 5,
                        "npuMemSize": demand.kv_gib,
                        "backendType": "atb",
                        "trustRemoteCode": False,
                    }
                ],
            },
            "ScheduleConfig": {
                "maxPrefillTokens": load.max_input,
                "maxPrefillBatchSize": load.concurrency,
                "maxBatchSize": load.concurrency,
                "maxIterTimes": load.max_new,
            },
        },
    }


def merged(given: dict, ours: dict) -> dict:
    """`given` with our values in it; its other keys, and whether it serves https, stay as they are.

    Raises UsageError when it is not built like MindIE's.
    """
    result = copy.deepcopy(given)
    _merge(result, ours, "")
    if "httpsEnabled" in given.get("ServerConfig", {}):
        result["ServerConfig"]["httpsEnabled"] = given["ServerConfig"]["httpsEnabled"]
    return result


def _merge(into: dict, ours: dict, path: str) -> None:
    for key, value in ours.items():
        there = into.get(key)
        if key == "ModelConfig" and there:
            if not isinstance(there, list) or not isinstance(there[0], dict):
                raise UsageError(f"--config: {path}{key} is not a list of objects; is it MindIE's conf/config.json?")
            _merge(there[0], value[0], f"{path}{key}[0].")
        elif isinstance(value, dict) and there is not None:
            if not isinstance(there, dict):
                raise UsageError(f"--config: {path}{key} is not an object; is it MindIE's conf/config.json?")
            _merge(there, value, f"{path}{key}.")
        else:
            into[key] = value


def write(directory: Path, files: dict[str, str]) -> None:
    """The files, into a directory that need not be there. Raises UsageError when one of them is, QuantError when it
    cannot be written.
    """
    for name in files:
        if (directory / name).exists():
            raise UsageError(f"{directory / name}: exists already; choose another --out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_text(content, encoding="utf-8")
            (directory / name).chmod(FILE_MODE)
    except OSError as err:
        raise QuantError(f"{err.filename}: {err.strerror}") from None


def files(
    export: Directory,
    place: Place,
    load: Load,
    demand: Demand,
    npu_memory: float,
    given: dict | None,
    warnings: list[str],
) -> dict[str, str]:
    """File name -> content of what is handed over. given: MindIE's configuration to merge into."""
    if place.server == "vllm-ascend":
        return {PAGE: page(export, place, load, demand, npu_memory, warnings=warnings)}
    config = service_config(place, load, demand)
    config = merged(given, config) if given else config
    https = bool(config["ServerConfig"]["httpsEnabled"])
    written = page(export, place, load, demand, npu_memory, merged=bool(given), https=https, warnings=warnings)
    return {SERVICE_CONFIG: config_json.dumps(config), PAGE: written}
