"""``table.md``: the table for reading, a section for each protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ctm_core.report.literature import printed
from ctm_core.report.scores import Evaluation, Row
from ctm_core.report.tables.columns import Compared, number
from ctm_core.report.tables.sections import Section, protocol_facts, sections

__all__ = ["markdown", "protocol_line", "table"]


def markdown(rows: Sequence[Row], records: Sequence[Evaluation], compared: Compared) -> str:
    """The text of ``table.md``."""
    facts = protocol_facts(records)
    parts = [
        "# Results",
        "Fréchet distances (FD): lower is better. [low, high] is a 95% interval of the mean; bold "
        "is the best. Values are comparable within a section only: another protocol measures "
        "another quantity.",
    ]
    for section in sections(rows):
        parts += [f"## {section.experiment} · {section.protocol}"]
        parts += [protocol_line(facts[section.protocol])]
        for i, group in enumerate(section.groups):
            if i == 1:
                parts += ["Further metrics of the same samples:"]
            parts += [_table(section, group, compared, main=i == 0)]
        if any(row.rank_deficient for row in section.rows):
            parts += [
                "† rank-deficient covariance: fewer samples than features, or constant features."
            ]
    return "\n\n".join(parts) + "\n"


def protocol_line(facts: Mapping[str, Any]) -> str:
    """A protocol in one sentence, from what an evaluation states of it."""
    if not facts.get("features"):
        told = {key: value for key, value in sorted(facts.items()) if value is not None}
        for key, value in told.items():
            if isinstance(value, dict):
                told[key] = " ".join(str(part) for pair in value.items() for part in pair)
        return f"{'; '.join(f'{key} {value}' for key, value in told.items())}."
    reference = facts.get("reference", {})
    size = facts.get("input_size")
    return (
        f"Features `{facts.get('features')}` (weights {str(facts.get('weights_sha256'))[:12]}) at "
        f"{size}×{size}, resize {facts.get('resize')}; reference: {reference.get('n')} images of "
        f"the {reference.get('split')} set; {facts.get('samples')} samples a seed, seeds "
        f"{facts.get('seeds')}; rounding {facts.get('rounding')}, labels {facts.get('labels')}, "
        f"{facts.get('precision')}."
    )


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    whole = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in whole)


def _table(section: Section, group: Sequence[str], compared: Compared, *, main: bool) -> str:
    rows = section.scored(group)
    steps = section.several_steps
    beside = {m for m in group if any((row.key, m) in compared for row in rows)}
    head = ["model", *(["step"] if steps else []), "sampler", "γ", "NFE"]
    for metric in group:
        head += [f"{metric} [low, high]", *(["published", "Δ"] if metric in beside else [])]
    if main:
        head += ["interval over", "n", "training seeds", "sampling seeds"]
    lines = []
    for row in rows:
        line = [row.model, *([str(row.step)] if steps else []), row.cell.sampler]
        line += [number(row.cell.gamma), str(row.cell.nfe)]
        for metric in group:
            line.append(_value(section, row, metric))
            if metric in beside:
                line += _published(row, metric, compared)
        if main:
            methods = {s.method: None for m, s in row.metrics.items() if m in group and s.method}
            line += [", ".join(methods).replace("_", " "), str(row.n_samples)]
            line += [_seeds(row, group), ", ".join(map(str, row.sample_seeds))]
        lines.append(line)
    text = table(head, lines)
    if beside:
        text += "\n\nΔ: ours less the published value, in half-widths of our interval."
    return text


def _value(section: Section, row: Row, metric: str) -> str:
    summary = row.metrics.get(metric)
    if summary is None:
        return ""
    text = str(summary) + (" †" if metric in row.rank_deficient else "")
    return f"**{text}**" if section.best.get(metric) is row else text


def _published(row: Row, metric: str, compared: Compared) -> list[str]:
    found = compared.get((row.key, metric))
    if found is None:
        return ["", ""]
    delta = "" if found.delta is None else f"{found.delta:+.1f}"
    return [f"{printed(found.value)} ({found.source})", delta]


def _seeds(row: Row, metrics: Sequence[str]) -> str:
    """Training seeds, with each one's mean of the main metric where there are two or more."""
    if len(row.train_seeds) == 1:
        return str(row.train_seeds[0])
    means = next(row.metrics[m].by_train_seed for m in metrics if m in row.metrics)
    return ", ".join(f"{seed}: {mean:.4g}" for seed, mean in means.items())
