"""A plan as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import indent

from pandas import DataFrame

from ctm_core.config.dag import TARGETS, by_rule
from ctm_core.plan import Plan
from ctm_core.plan.costs import Estimate
from ctm_core.plan.record import Comparison

#: Networks of a training's table, in its columns' order.
NETWORKS = ("teacher", "second", "student", "target", "perceptual", "features")
#: What an evaluation's table sums.
KINDS = ("sampling", "trajectory", "trajectory_teacher", "likelihood", "previews", "features")


def describe(plan: Plan) -> str:
    """The whole plan: jobs, passes, time, disk and memory, files, the record, the command."""
    parts = (_head, _trainings, _evaluations, _time, _space, _files, _record, _command)
    return "\n\n".join(filter(None, (part(plan) for part in parts)))


def _head(plan: Plan) -> str:
    rules = by_rule(estimate.job for estimate in plan.estimates)
    merged: Counter[str] = Counter()
    for rule, number in rules.items():
        merged[rule.split("_")[0]] += number
    kinds = [f"{kind} {number}" for kind, number in merged.items()]
    done = f"; {plan.finished} have their results here" if plan.finished else ""
    return (
        f"{plan.project.path}: {', '.join(plan.project.experiments)}\n"
        f"{len(plan.estimates)} jobs for {TARGETS[plan.target]}{done}: {', '.join(kinds)}"
    )


def _trainings(plan: Plan) -> str:
    groups = {e.job.label: [e] for e in plan.estimates if e.job.kind == "train"}
    steps = {label: estimate.job.step for label, (estimate,) in groups.items()}
    return _passes("trainings", ["training", "steps"], groups, steps, NETWORKS)


def _evaluations(plan: Plan) -> str:
    groups: dict[str, list[Estimate]] = {}
    for estimate in plan.estimates:
        job = estimate.job
        if job.kind == "evaluate" and job.experiment is not None:
            groups.setdefault(f"{job.experiment.experiment} {job.model}", []).append(estimate)
    jobs = {label: len(group) for label, group in groups.items()}
    return _passes("evaluations", ["evaluations of", "jobs"], groups, jobs, KINDS)


def _passes(
    what: str,
    header: list[str],
    groups: Mapping[str, list[Estimate]],
    numbers: Mapping[str, int],
    kinds: Sequence[str],
) -> str:
    """A line for each group of jobs, a column for each kind of passes that any has."""
    if not groups:
        return ""
    used = [k for k in kinds if any(e.passes.get(k) for group in groups.values() for e in group)]
    rows = [
        [
            label,
            f"{numbers[label]:,}",
            *(_count_or_dash(sum(e.passes.get(kind, 0.0) for e in group)) for kind in used),
            hours(sum(e.wall for e in group)),
            _memory(max(group, key=lambda estimate: estimate.memory)),
        ]
        for label, group in groups.items()
    ]
    header += [*(kind.replace("_", " ") for kind in used), "hours", "memory"]
    return f"Forward passes of {what}, in images:\n{table(header, rows)}"


def _time(plan: Plan) -> str:
    spent, machine = plan.hours, f"{plan.speed.device}, {plan.speed.threads} threads"
    advice = []
    if plan.device.given is None:
        where = f"on the machine that was measured ({machine})"
        if spent["gpu"]:
            advice = [
                "Give --device-speed, such as 40x or 60TFLOP/s, for hours of another device."
            ]
    else:
        relative = "" if plan.device.rate else f" ({machine} is 1x)"
        where = f"on a device of {plan.device.given}{relative}"
    kinds = [
        f"{clock(3600 * spent[kind])} of {name} jobs"
        for kind, name in (("gpu", "GPU"), ("cpu", "CPU"))
        if spent[kind]
    ]
    lines = [
        f"Networks take {plan.operations:.3g} operations: {' and '.join(kinds) or 'nothing'}, "
        f"{where}.",
        f"The longest chain of jobs takes {clock(3600 * plan.longest_chain)} with a machine for "
        "each; reading files and metrics are not counted.",
        *advice,
    ]
    return "\n".join(lines)


def _space(plan: Plan) -> str:
    names = {
        "data": "data sets",
        "weights": "weights",
        "runs": "checkpoints and exports under runs/",
        "scores": "states of cells and previews",
    }
    parts = [f"{names[key]} {size(value)}" for key, value in plan.disk.items()]
    largest = max(plan.estimates, key=lambda each: each.memory * each.processes)
    return (
        f"Disk: {size(sum(plan.disk.values()))} ({', '.join(parts)}).\n"
        f"Largest memory: {_memory(largest)}, {largest.job.label}."
    )


def _files(plan: Plan) -> str:
    optional = [f"{sentence}." for sentence in plan.project.left_out]
    if not plan.missing:
        return "\n".join(["External files: none is missing.", *optional])
    width = max(map(len, plan.missing))
    lines = [
        f"  {name.ljust(width)}  {readers[0]}"
        + (f" and {len(readers) - 1} more" if len(readers) > 1 else "")
        for name, readers in plan.missing.items()
    ]
    advice = f"`ctm assets --config {plan.project.path}` says where they come from."
    return "\n".join(
        [f"{len(plan.missing)} external files are missing:", *lines, advice, *optional]
    )


def _record(plan: Plan) -> str:
    comparisons, others, recorded_on = plan.record
    lines = []
    if comparisons:
        device = f", on {recorded_on}" if recorded_on else ""
        rows = [_compared(each) for each in comparisons]
        header = ["job", "what", "predicted", "measured", "off"]
        lines = [f"Predicted, and measured by the run that is here{device}:", table(header, rows)]
    if others:
        lines.append(f"Records of another configuration, not compared: {', '.join(others)}.")
    return "\n".join(lines)


def _compared(each: Comparison) -> list[str]:
    show = size if each.what == "memory" else clock if each.what == "seconds" else count
    off = f"{each.off:+.1%}" if each.off != float("inf") else "not predicted"
    return [each.job, each.what, show(each.predicted), show(each.measured), off]


def _command(plan: Plan) -> str:
    if "cluster" not in plan.commands:
        return f"Run: {plan.commands['machine']}"
    return "On a cluster: {cluster}\nOn one machine: {machine}".format_map(plan.commands)


def count(value: float) -> str:
    """``1,234``, ``24.3 k``, ``597 M``."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * factor:
            return f"{value / factor:,.1f} {unit}"
    return f"{value:,.0f}"


def clock(seconds: float) -> str:
    """``12 s``, ``3.4 min``, ``17 h``."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def hours(seconds: float) -> str:
    """Hours with three digits at least: ``0.0123``, ``12.3``, ``1,234``."""
    value = seconds / 3600
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(value: float) -> str:
    """``12 MB``, ``3.4 GB``, in powers of ten."""
    if value >= 1e12:
        return f"{value / 1e12:.1f} TB"
    if value >= 1e9:
        return f"{value / 1e9:.1f} GB"
    return f"{value / 1e6:.1f} MB"


def _memory(estimate: Estimate) -> str:
    each = size(estimate.memory)
    return each if estimate.processes == 1 else f"{estimate.processes} x {each}"


def _count_or_dash(value: float) -> str:
    return count(value) if value else "-"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    text = DataFrame(rows, columns=header).to_markdown(
        index=False,
        tablefmt="plain",
        disable_numparse=True,
        colalign=("left", *("right" for _ in header[1:])),
    )
    return indent(text, "  ")
