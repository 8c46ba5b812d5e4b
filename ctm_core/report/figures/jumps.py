"""How far single jumps miss the teacher's solution, by the noise level they start from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.figure import Figure

from ctm_core.report.figures.curves import panels
from ctm_core.report.figures.style import MARKERS, by_model, legend, log_if_positive
from ctm_core.report.scores import Evaluation, last_steps_of, model_order

__all__ = ["errors"]


def errors(evaluations: Sequence[Evaluation], title: str) -> Figure | None:
    """A line a model, averaged over training seeds; None where nothing was measured.

    Only jumps to each evaluation's smallest level are drawn: they are one-step samples from the
    teacher's own states.
    """
    values: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for evaluation in last_steps_of(evaluations):
        floor = min((jump.s for jump in evaluation.trajectory), default=0.0)
        for jump in evaluation.trajectory:
            if jump.s == floor:
                values[evaluation.model][jump.t].append(jump.error)
    if not values:
        return None
    figure, (axes,) = panels([""], title)
    models = sorted(values, key=model_order)
    looks = by_model(models)
    shown = []
    for index, model in enumerate(models):
        levels = sorted(values[model])
        means = [sum(values[model][t]) / len(values[model][t]) for t in levels]
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(levels, means, marker=marker, label=model, **looks[model])
        shown += means
    axes.set_xscale("log")
    axes.set_xlabel("noise level t that the jump starts from")
    axes.set_ylabel("root mean square error per pixel")
    log_if_positive(axes, shown)
    legend(figure, [axes])
    return figure
