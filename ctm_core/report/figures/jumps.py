"""How far single jumps miss the teacher's solution, by the noise level they start from."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from ctm_core.report.figures.curves import panels
from ctm_core.report.figures.style import MARKERS, by_model, legend, log_if_positive
from ctm_core.report.scores import Evaluation, model_order
from ctm_core.report.selection import last_steps


def errors(evaluations: Sequence[Evaluation], title: str) -> Figure | None:
    """A line per model, averaged over training seeds; None where nothing was measured.

    Only jumps to each evaluation's smallest level are drawn: they are one-step samples from the
    teacher's own states.
    """
    lines = []
    for evaluation in last_steps(evaluations):
        floor = min((jump.s for jump in evaluation.trajectory), default=0.0)
        jumps = [jump for jump in evaluation.trajectory if jump.s == floor]
        lines += [(evaluation.model, jump.t, jump.error) for jump in jumps]
    if not lines:
        return None
    measured = pd.DataFrame(lines, columns=["model", "t", "error"])
    means = measured.groupby(["model", "t"])["error"].mean()
    models = sorted(measured["model"].unique(), key=model_order)
    looks = by_model(models)
    figure, (axes,) = panels([""], title)
    for index, model in enumerate(models):
        axes.plot(means[model], marker=MARKERS[index % len(MARKERS)], label=model, **looks[model])
    axes.set_xscale("log")
    axes.set_xlabel("noise level t that the jump starts from")
    axes.set_ylabel("root mean square error per pixel")
    log_if_positive(axes, means)
    legend(figure, [axes])
    return figure
