"""A plan for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ctm_core.plan import Plan
from ctm_core.plan.costs import Estimate
from ctm_core.plan.dag import TARGETS, by_rule
from ctm_core.plan.record import Comparison

__all__ = ["describe"]

#: Networks of a training's table, in its columns' order.
NETWORKS = ("teacher", "student", "target", "perceptual", "features")
#: What an evaluation's table sums.
KINDS = ("sampling", "trajectory", "trajectory_teacher", "likelihood", "previews", "features")


def describe(plan: Plan) -> str:
    """The whole plan: jobs, passes, time, disk and memory, files, the record, the command."""
    parts = [
        _head(plan),
        _trainings(plan),
        _evaluations(plan),
        _time(plan),
        _space(plan),
        _files(plan),
        _record(plan),
        _command(plan),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(plan: Plan) -> str:
    rules = by_rule(estimate.job for estimate in plan.estimates)
    merged: dict[str, list[int]] = {}
    for rule, count in rules.items():
        kind = rule.split("_")[0]
        merged.setdefault(kind, []).append(count)
    told = [f"{kind} {sum(counts)}" for kind, counts in merged.items()]
    done = f"; {plan.finished} have their results here" if plan.finished else ""
    return (
        f"{plan.project.path}: {', '.join(plan.project.experiments)}\n"
        f"{len(plan.estimates)} jobs for {TARGETS[plan.target]}{done}: {', '.join(told)}"
    )


def _trainings(plan: Plan) -> str:
    found = [e for e in plan.estimates if e.job.kind == "train"]
    if not found:
        return ""
    used = [n for n in NETWORKS if any(e.passes.get(n) and e.passes[n].mean for e in found)]
    rows = [["training", "steps", *used, "hours", "memory"]]
    for estimate in found:
        numbers = (estimate.passes.get(name) for name in used)
        rows.append(
            [
                estimate.job.label,
                f"{estimate.job.step:,}",
                *(count(n.mean) if n is not None and n.mean else "-" for n in numbers),
                hours(estimate.wall),
                _memory(estimate),
            ]
        )
    return "Forward passes of trainings, in images:\n" + table(rows)


def _evaluations(plan: Plan) -> str:
    groups: dict[tuple[str, str], list[Estimate]] = {}
    for estimate in plan.estimates:
        job = estimate.job
        if job.kind == "evaluate" and job.experiment is not None:
            groups.setdefault((job.experiment.experiment, job.model), []).append(estimate)
    if not groups:
        return ""
    sums = {
        key: {kind: sum(_mean(each, kind) for each in group) for kind in KINDS}
        for key, group in groups.items()
    }
    used = [kind for kind in KINDS if any(total[kind] for total in sums.values())]
    rows = [["evaluations of", "jobs", *(name.replace("_", " ") for name in used), "hours", ""]]
    rows[0][-1] = "memory"
    for (name, model), group in groups.items():
        total = sums[name, model]
        rows.append(
            [
                f"{name} {model}",
                str(len(group)),
                *(count(total[kind]) if total[kind] else "-" for kind in used),
                hours(sum(each.wall for each in group)),
                size(max(each.memory for each in group)),
            ]
        )
    return "Forward passes of evaluations, in images:\n" + table(rows)


def _mean(estimate: Estimate, kind: str) -> float:
    number = estimate.passes.get(kind)
    return 0.0 if number is None else number.mean


def _time(plan: Plan) -> str:
    found, machine = plan.hours, f"{plan.speed.device}, {plan.speed.threads} threads"
    if plan.device is None:
        where = f"on the machine that was measured ({machine})"
        advice = (
            ["Give --device-speed, such as 40x or 60TFLOP/s, for hours of another device."]
            if found["gpu"]
            else []
        )
    else:
        where = f"on a device of {plan.device.given}"
        if plan.device.rate is None:
            where += f" ({machine} is 1x)"
        advice = []
    kinds = [
        f"{clock(3600 * found[kind])} of {name} jobs"
        for kind, name in (("gpu", "GPU"), ("cpu", "CPU"))
        if found[kind]
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
    if not plan.missing:
        return "External files: all that the jobs read are here."
    width = max(map(len, plan.missing))
    lines = [
        f"  {name.ljust(width)}  {readers[0]}"
        + (f" and {len(readers) - 1} more" if len(readers) > 1 else "")
        for name, readers in plan.missing.items()
    ]
    advice = f"`ctm assets --config {plan.project.path}` says where they come from."
    return "\n".join([f"{len(plan.missing)} external files are missing:", *lines, advice])


def _record(plan: Plan) -> str:
    lines = []
    if plan.comparisons:
        device = f", on {plan.recorded_on}" if plan.recorded_on else ""
        rows = [["job", "what", "predicted", "measured", "off"]]
        rows += [_compared(each) for each in plan.comparisons]
        lines = [f"Predicted, and measured by the run that is here{device}:", table(rows)]
    if plan.others:
        lines.append(f"Records of another configuration, not compared: {', '.join(plan.others)}.")
    return "\n".join(lines)


def _compared(each: Comparison) -> list[str]:
    show = size if each.what == "memory" else clock if each.what == "seconds" else count
    predicted = show(each.predicted)
    if each.deviation:
        predicted += f" ± {count(each.deviation)}"
    off = f"{each.off:+.1%}" if abs(each.off) != float("inf") else "not predicted"
    if each.deviations is not None:
        off += f" ({each.deviations:+.1f} sd)"
    return [each.job, each.what, predicted, show(each.measured), off]


def _command(plan: Plan) -> str:
    names = {"cluster": "On a cluster", "machine": "On one machine"}
    if len(plan.commands) == 1:
        return f"Run: {plan.commands['machine']}"
    return "\n".join(f"{names[key]}: {command}" for key, command in plan.commands.items())


# -- numbers -------------------------------------------------------------------------------------


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


def table(rows: Sequence[Iterable[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    cells = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )
