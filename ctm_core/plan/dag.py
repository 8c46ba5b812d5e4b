"""The jobs of a configuration: who makes which file of which, as the rules of the workflow say.

Names of files come from :mod:`ctm_core.config.layout`, which the rules use too; a test holds the
counts against Snakemake's own. From nothing: results that are there already are counted with the
rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ctm_core.config import Experiment, layout
from ctm_core.config.datasets import traits
from ctm_core.config.project import Project
from ctm_core.config.protocols import ReferenceSplit

__all__ = ["TARGETS", "Job", "by_rule", "graph"]

#: What a plan can be of: the target of the literal command, or that of a bare `snakemake`.
TARGETS = {"table": "results/table.csv", "all": "all"}


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes
    ----------
    rule
        The rule's name.
    outputs, inputs
        Files, as the rule declares them; files of the configuration are left out.
    kind
        ``data``, ``reference``, ``convert``, ``train``, ``evaluate`` or ``read``: what it costs.
    name
        A data set, a protocol or an external file, where it is about one.
    experiment, model, seed, step
        Of trainings and evaluations.
    assets
        External files that it reads, by their names in config/assets.yaml.
    benchmark
        Where Snakemake writes how long it took.
    """

    rule: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    kind: str = "read"
    name: str | None = None
    experiment: Experiment | None = None
    model: str = ""
    seed: int = 0
    step: int = 0
    assets: tuple[str, ...] = ()
    benchmark: str = ""

    @property
    def label(self) -> str:
        """For people: ``cifar10-uncond ctm seed 0``."""
        if self.experiment is None:
            return self.name or self.rule
        step = f" step {self.step}" if self.kind == "evaluate" else ""
        return f"{self.experiment.experiment} {self.model} seed {self.seed}{step}"

    def finished(self, root: Path) -> bool:
        """Whether all it makes is there; not whether it is up to date."""
        return all((root / output).exists() for output in self.outputs if output != "all")


def graph(project: Project, target: str = "table") -> list[Job]:
    """The jobs that a target takes, each after those whose files it reads.

    Parameters
    ----------
    target
        A key of :data:`TARGETS`.

    Raises
    ------
    UserError
        If a data set is unknown.
    """
    makers = {output: job for job in _every(project) for output in job.outputs}
    found: dict[str, Job] = {}
    waiting = [TARGETS[target]]
    while waiting:
        job = makers.get(waiting[-1])
        if job is None or job.outputs[0] in found:
            waiting.pop()
            continue
        ahead = [
            file for file in job.inputs if file in makers and makers[file].outputs[0] not in found
        ]
        if ahead:
            waiting += reversed(ahead)
        else:
            found[job.outputs[0]] = job
            waiting.pop()
    return list(found.values())


def by_rule(jobs: Iterable[Job]) -> dict[str, int]:
    """How many jobs each rule has, by the rule's name in alphabetical order."""
    return dict(sorted(Counter(job.rule for job in jobs).items()))


def _every(project: Project) -> Iterator[Job]:
    """All jobs that there could be, whether a target takes them or not."""
    experiments = project.experiments.values()
    learned = {experiment.dataset.name for experiment in experiments}
    compared = {
        protocol.reference.dataset
        for protocol in project.protocols.values()
        if isinstance(protocol.reference, ReferenceSplit)
    }
    for dataset in sorted(learned | compared):
        own = project.datasets.get(dataset)
        for split in traits(dataset).splits:
            yield Job(
                "data",
                tuple(layout.prepared(dataset, split).values()),
                kind="data",
                name=f"{dataset} {split}",
                assets=() if own is None else own.assets,
                benchmark=f"data/{dataset}-{split}",
            )
    for name, protocol in project.protocols.items():
        yield Job(
            "reference",
            (layout.reference(name),),
            tuple(layout.reference_data(protocol).values()),
            "reference",
            name,
            assets=protocol.assets,
            benchmark=f"features/{name}",
        )
    for experiment in experiments:
        for model, seed in experiment.runs():
            yield _origin(experiment, model, seed)
            yield from _evaluations(project, experiment, model, seed)
    yield from _reading(project)


def _origin(experiment: Experiment, model: str, seed: int) -> Job:
    """The training of a model, or the conversion of its file."""
    asset = experiment.imported(model)
    if asset is not None:
        weights = layout.weights(experiment, model)
        provenance = weights.replace("weights.safetensors", "provenance.json")
        return Job("convert", (weights, provenance), kind="convert", name=asset, assets=(asset,))
    name = experiment.experiment
    folder = layout.training_folder(experiment, model, seed)
    teacher = model == "teacher"
    start = {} if teacher else layout.start(experiment, model, seed)
    return Job(
        f"teacher_{name}" if teacher else f"train_{name}_{model}",
        (
            layout.weights(experiment, model, seed=seed),
            *layout.further_weights(experiment, model, seed),
            f"{folder}/training.jsonl",
            f"{folder}/training.json",
        ),
        (*layout.prepared(experiment.dataset.name, "train").values(), *start.values()),
        "train",
        experiment=experiment,
        model=model,
        seed=seed,
        step=experiment.last_step(model),
        assets=() if teacher else experiment.student(model).assets,
        benchmark=f"teacher/{name}/seed-{seed}"
        if teacher
        else f"train/{name}/{model}/seed-{seed}",
    )


def _evaluations(project: Project, experiment: Experiment, model: str, seed: int) -> Iterator[Job]:
    for step in experiment.exported_steps(model):
        chosen = experiment.protocols(model, step)
        if not chosen:
            continue
        folder = layout.evaluation_folder(experiment, model, seed, step)
        data = layout.evaluation_data(experiment, project.protocols, model, step)
        yield Job(
            "evaluate",
            (f"{folder}/evaluation.json", f"{folder}/previews.safetensors"),
            (
                layout.weights(experiment, model, step, seed),
                *(layout.reference(name) for name in chosen),
                *data.values(),
            ),
            "evaluate",
            experiment=experiment,
            model=model,
            seed=seed,
            step=step,
            assets=tuple(
                sorted({a for name in chosen for a in project.protocols[name].feature_assets})
            ),
            benchmark=f"evaluate/{experiment.experiment}/{model}/seed-{seed}/step-{step}",
        )


def _reading(project: Project) -> Iterator[Job]:
    experiments = list(project.experiments.values())
    evaluations = tuple(layout.evaluated(experiments, "evaluation.json"))
    shown = (
        *evaluations,
        *layout.evaluated(experiments, "previews.safetensors"),
        *layout.trained(experiments, "training.jsonl"),
        *layout.trained(experiments, "training.json"),
    )
    yield Job("table", ("results/table.csv", "results/runs.csv"), evaluations)
    yield Job("figures", ("results/figures",), shown)
    report = ("results/table.csv", "results/figures", *shown)
    yield Job("report", ("results/report.html",), report)
    everything = ("results/table.csv", "results/report.html", "results/figures")
    yield Job("all", ("all",), everything)
