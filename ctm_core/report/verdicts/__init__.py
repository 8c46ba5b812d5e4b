"""The paper's claims against a table: reproduced, contradicted, undecided, or not testable here.

Every claim is data (``config/claims.yaml``). A claim of several comparisons is reproduced if all
of them are, contradicted if one is, else undecided; not testable if the table lacks a cell of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from ctm_core.config import read_yaml, validated
from ctm_core.config.claims import OTHERS, Claim, Claims, PublishedValue, Test
from ctm_core.config.published import Literature
from ctm_core.report.scores import Row
from ctm_core.report.selection import last_steps, main_protocol
from ctm_core.report.verdicts.comparison import Compared, Verdict, compare
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_record

__all__ = ["Compared", "Finding", "Verdict", "findings", "load_claims", "read_findings", "record"]


#: Verdicts on comparisons; the first that there is decides the claim.
DECISIVE: tuple[Verdict, ...] = ("not testable", "contradicted", "undecided", "reproduced")


@dataclass(frozen=True)
class Finding:
    """A claim and its verdict in one experiment; ``experiment`` is empty where none tests it."""

    id: str
    claim: str
    paper: str
    kind: Literal["result", "choice"]
    experiment: str = ""
    verdict: Verdict = "not testable"
    why: str = ""
    note: str = ""
    compared: tuple[Compared, ...] = ()

    @property
    def evidence(self) -> list[str]:
        """Why it cannot be tested, or one line per comparison."""
        if self.why:
            return [self.why]
        return [f"{c.text}: {c.values}, difference {c.difference_and_why}" for c in self.compared]


def load_claims(path: Path, literature: Literature) -> Claims:
    """Read and validate the claims; the published values that they refer to must exist."""
    claims = validated(Claims, read_yaml(path), path)
    for claim in claims.claims:
        for second in (one.second for test in claim.tests for one in test.comparisons):
            if isinstance(second, PublishedValue) and literature.get(second.published) is None:
                raise UserError(
                    f"{path}: {claim.id} compares with the published value "
                    f"{second.published}, which the list of published values does not have"
                )
    return claims


def findings(rows: Sequence[Row], claims: Claims, literature: Literature) -> list[Finding]:
    """Every claim's verdict in every experiment that tests it; once, if none does.

    Only the last step of each model is read. Of an experiment that no claim names there are only
    the verdicts that its cells allow.
    """
    experiments = list(dict.fromkeys(row.experiment for row in rows))
    late = last_steps(rows)
    named = {name for claim in claims.claims for test in claim.tests for name in test.experiments}
    made: list[Finding] = []
    for claim in claims.claims:
        about = Finding(claim.id, claim.claim, claim.paper, claim.kind)
        own = [
            _tested(about, test, name, late, literature)
            for name in experiments
            for test in claim.tests
            if (name if name in named else OTHERS) in test.experiments
        ]
        own = [one for one in own if one.experiment in named or one.verdict != "not testable"]
        made += own
        if not own:
            made.append(replace(about, why=_why_not(claim)))
    return made


def _why_not(claim: Claim) -> str:
    if claim.not_testable is not None:
        return claim.not_testable
    asked = sorted({name for test in claim.tests for name in test.experiments} - {OTHERS})
    text = f"it is tested on {', '.join(asked)}, which this table does not have"
    return f"{text}; that needs {claim.needs}" if claim.needs else text


def _tested(
    about: Finding, test: Test, experiment: str, rows: Sequence[Row], literature: Literature
) -> Finding:
    own = [row for row in rows if row.experiment == experiment]
    protocol = test.protocol or main_protocol(own, experiment)
    scored = [row for row in own if row.protocol == protocol]
    compared = tuple(compare(one, scored, protocol, literature) for one in test.comparisons)
    lacking = dict.fromkeys(one.why for one in compared if one.verdict == "not testable")
    return replace(
        about,
        experiment=experiment,
        verdict=min((one.verdict for one in compared), key=DECISIVE.index),
        why="; ".join(lacking),
        note=test.note or "",
        compared=compared,
    )


class _Record(BaseModel):
    claims: tuple[Finding, ...]


def record(made: Iterable[Finding]) -> dict[str, Any]:
    """What ``claims.json`` holds."""
    return {"claims": [asdict(finding) for finding in made]}


def read_findings(path: Path) -> list[Finding]:
    """Read ``claims.json``."""
    content = read_record(path, "make it again with `ctm table`")
    return list(validated(_Record, content, path).claims)
