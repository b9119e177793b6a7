"""Every row of cases.py: an export is edited so, and check says of each server what is written there."""

import shutil
from pathlib import Path

import pytest
import tiny
from cases import CASES, FINE, LLAVA, MINDIE, VLLM, Case
from edits import apply
from exports import Exports, copy

from quant.base.config import QuantConfig
from quant.calibrate.calibrator import Calibrator
from quant.export import formats
from quant.servers.rules import RULES, SERVERS, VERSIONS, check

DTYPES = {LLAVA: "float16"}  # MindIE feeds LLaVA's vision tower float16 pixels
ROWS = [
    pytest.param(case, family, server, id=f"{server}: {case.edit} ({family})")
    for case in CASES
    for family in case.families
    for server in SERVERS
]


class Made:
    """made(family, ...) -> (an export made so, its checkpoint), neither to be changed."""

    def __init__(self, root: Path):
        self.root, self.exports = root, Exports(root)

    def __call__(self, family: str, dtype: str | None = None, act: str = "static", tied: bool = False, **choices):
        dtype = dtype or DTYPES.get(family, "bfloat16")
        if tied:
            return self._tied(family, dtype)
        static = self.exports(family, dtype, **choices)
        if act != "static":
            out = self.root / f"{static.name}-{act}"
            if not out.exists():
                formats.export(static, out, act=act)
            static = out
        return static, self.exports.source(family, dtype)

    def _tied(self, family: str, dtype: str):
        source = self.root / f"{family}-{dtype}-tied-source"
        out = self.root / f"{family}-{dtype}-tied"
        if not out.exists():
            tiny.make(source, family, dtype=dtype, tied=True)
            config = QuantConfig(anti_method="m2", dev_type="cpu", dtype=dtype)
            Calibrator(source, config, str(self.exports.images)).run(self.root).save(out)
        return out, source


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("contracts"))


def said_of(findings, server: str) -> dict[str, str]:
    """ "level rule" -> the effects that are named, of one server."""
    said: dict[str, str] = {}
    for finding in findings:
        name = f"{finding.level} {finding.rule}"
        said[name] = said.get(name, "") + finding.effects[server] + "\n"
    return said


@pytest.mark.parametrize("case, family, server", ROWS)
def test_check_says_what_the_loader_does(made, tmp_path, case: Case, family: str, server: str):
    original, checkpoint = made(family, **case.made)
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    export = apply(case.steps, copy(original, tmp_path / "out"), source, family)
    said = said_of(check(export, [server], source=source if case.source else None), server)
    wanted = {said.partition(": ")[0]: said.partition(": ")[2] for said in row(case, server)[1:] if said}
    if "warning sampling" not in wanted and family == LLAVA:
        said.pop("warning sampling", None)  # a vocabulary of 512: every export of tiny LLaVA has that
    assert said.keys() == wanted.keys(), said
    for name, effect in wanted.items():
        assert effect in said[name]
        assert RULES[name.split()[1]].level(server), "a rule speaks for a server that it is not of"


def row(case: Case, server: str) -> tuple[str, ...]:
    """What the loader does, and what check must say."""
    return {MINDIE: case.mindie, VLLM: case.vllm}[server]


def test_the_table_agrees_with_itself():
    """Every edit has families and both servers, no row is there twice; a loader that takes an export is not said to
    refuse it.
    """
    rows = [(case.edit, family) for case in CASES for family in case.families]
    assert len(set(rows)) == len(rows) and all(case.families for case in CASES)
    for case in CASES:
        for server in SERVERS:
            does, *says = row(case, server)
            assert does and set(VERSIONS) == set(SERVERS)
            errors = [said for said in says if said.startswith("error")]
            if (does, *says) == FINE:
                assert not errors


@pytest.mark.parametrize("server", SERVERS)
def test_levels_are_those_of_the_table_of_rules(server):
    """No row names a level that is worse than its rule's."""
    order = ("taste", "warning", "error")
    for case in CASES:
        for said in row(case, server)[1:]:
            if said:
                level, rule = said.partition(": ")[0].split()
                assert order.index(level) <= order.index(RULES[rule].level(server)), (case.edit, said)
