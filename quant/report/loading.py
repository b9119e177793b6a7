"""What the servers would make of an export, by their rules: data for the section and for the verdict."""

from dataclasses import dataclass
from pathlib import Path

from ..servers.rules import SERVERS, VERSIONS, Finding, Target, check_directory, open_directory, serving
from ..servers.rules.deployment import TRIED, vision_tensor_parallel, world_size


@dataclass(frozen=True)
class Loading:
    """A server and the export. version: whose rules these are; refuses: why it has no loader for the model, else None;
    findings: what breaks its rules on any number of NPUs; sizes: number of NPUs -> what is wrong on so many, [] where
    nothing is.
    """

    server: str
    version: str
    refuses: str | None
    findings: list[Finding]
    sizes: dict[int, list[Finding]]

    @property
    def errors(self) -> list[Finding]:
        """The findings that keep it from loading the export, or make it wrong."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def right(self) -> list[int]:
        """The numbers of NPUs that the export is right on."""
        if self.refuses or self.errors:
            return []
        return [size for size, wrong in self.sizes.items() if not wrong]


def loadings(directory: Path) -> list[Loading]:
    """A Loading of each server, on the hardware that all its models run on (Atlas 800 A2 and A3). Raises UsageError for
    a directory that is no export of a known family.
    """
    opened, results = open_directory(directory), []
    for server, name in SERVERS.items():
        refused = None if server in serving(opened) else opened.family.refuses(server)
        findings = [] if refused else check_directory(opened, [server])
        sizes = {
            size: [
                finding
                for rule in (world_size, vision_tensor_parallel)
                for finding in rule(opened, Target(server, None, size))
                if server in finding.effects
            ]
            for size in TRIED
        }
        results.append(Loading(name, VERSIONS[server], refused, findings, sizes))
    return results
