"""The jobs of the workflow: the files that each reads and makes, and the external files it needs.

The rules of the workflow, ``ctm plan`` and ``ctm assets --config`` all use this module; file names
come from :mod:`ctm_core.config.layout`. Jobs are counted whether or not their results exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctm_core.config import layout
from ctm_core.config.datasets import traits
from ctm_core.config.experiment import Experiment
from ctm_core.config.layout import ANY_SEED
from ctm_core.config.project import Project
from ctm_core.config.protocols import ReferenceFile, ReferenceSplit

#: What a plan can be of: the target of the literal command, or that of a bare `snakemake`.
TARGETS = {"table": "results/table.csv", "all": "all"}

#: CPU threads of a job that makes features: its statistics depend on them in their last bits.
FEATURE_THREADS = 2

#: Files by the names that a rule gives them.
Files = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Job:
    """One job of the workflow; a rule's files of the configuration are left out."""

    rule: str
    makes: Files
    reads: Files = field(default_factory=dict)
    #: ``data``, ``reference``, ``convert``, ``train``, ``evaluate`` or ``read``: what it costs.
    kind: str = "read"
    name: str | None = None  #: of a data set, protocol or external file, where it is about one
    experiment: Experiment | None = None  #: of trainings and evaluations, as the next three
    model: str = ""
    seed: int | str = 0
    step: int = 0
    assets: tuple[str, ...] = ()  #: external files that it reads
    settings: Mapping[str, Any] = field(default_factory=dict)  #: of a data set of own images
    benchmark: str = ""  #: under results/benchmarks: Snakemake's record of time and memory

    @property
    def outputs(self) -> tuple[str, ...]:
        """All files that it makes."""
        return _flat(self.makes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """All files that it reads."""
        return _flat(self.reads)

    @property
    def label(self) -> str:
        """For people: ``cifar10-uncond ctm seed 0``."""
        if self.experiment is None:
            return self.name or self.rule
        step = f" step {self.step}" if self.kind == "evaluate" else ""
        return f"{self.experiment.experiment} {self.model} seed {self.seed}{step}"

    def finished(self, root: Path) -> bool:
        """Whether all its outputs exist, up to date or not."""
        return all((root / output).exists() for output in self.outputs if output != "all")


def _flat(files: Files) -> tuple[str, ...]:
    return tuple(
        path
        for value in files.values()
        for path in ((value,) if isinstance(value, str) else value)
    )


# -- one job of each kind -----------------------------------------------------------------------


def data(project: Project, dataset: str, split: str) -> Job:
    """The preparation of a data set."""
    learned = project.datasets.get(dataset)
    return Job(
        "data",
        makes=layout.prepared(dataset, split),
        kind="data",
        name=f"{dataset} {split}",
        assets=traits(dataset).assets if learned is None else learned.assets,
        settings={} if learned is None or not learned.settings else learned.model_dump(),
        benchmark=f"data/{dataset}-{split}",
    )


def reference(project: Project, protocol: str) -> Job:
    """The statistics that a protocol compares with.

    Held-out images, where a metric compares with them, are read under names that begin with
    ``held_out_``; a reference that is an external file is made of no images.
    """
    chosen = project.protocols[protocol]
    reads: dict[str, str] = {}
    if not isinstance(chosen.reference, ReferenceFile):
        reads |= layout.prepared(chosen.reference.dataset, chosen.reference.split)
        if chosen.needs_held_out_images:
            test = layout.prepared(chosen.reference.dataset, "test")
            reads |= {f"held_out_{name}": path for name, path in test.items()}
    return Job(
        "reference",
        makes={"statistics": layout.reference(protocol)},
        reads=reads,
        kind="reference",
        name=protocol,
        assets=chosen.assets,
        benchmark=f"features/{protocol}",
    )


def convert(project: Project, origin: str, asset: str) -> Job:
    """The conversion of a network of others; ``origin`` is ``teachers`` or ``released``."""
    made = layout.converted(origin, asset)
    return Job("convert", makes=made, kind="convert", name=asset, assets=(asset,))


def training(experiment: Experiment, model: str, seed: int | str = ANY_SEED) -> Job:
    """The training of a model.

    Students read the weights they start from under the names of `ctm train`'s options:
    ``teacher`` and ``weak_teacher``, and for a fork ``init`` and ``init_average``.
    """
    name = experiment.experiment
    reads = layout.prepared(experiment.dataset.name, "train")
    rule, place = f"teacher_{name}", f"teacher/{name}"
    assets: tuple[str, ...] = ()
    if model != "teacher":
        student = experiment.student(model)
        rule, place = f"train_{name}_{model}", f"train/{name}/{model}"
        assets = student.assets
        if student.uses_teacher:
            assert experiment.teacher is not None
            own = experiment.teacher.seed
            reads["teacher"] = layout.weights(experiment, "teacher", seed=own)
            if (weak := student.weak_teacher) is not None:
                reads["weak_teacher"] = layout.weights(experiment, "teacher", weak, own)
        if (fork := student.init_from) is not None:
            reads["init"] = layout.live_weights(experiment, fork.model, fork.step, seed)
            reads["init_average"] = layout.weights(experiment, fork.model, fork.step, seed)
    return Job(
        rule,
        makes={
            "weights": layout.weights(experiment, model, seed=seed),
            "further": layout.further_weights(experiment, model, seed),
            **layout.training(name, model, seed),
        },
        reads=reads,
        kind="train",
        experiment=experiment,
        model=model,
        seed=seed,
        step=experiment.last_step(model),
        assets=assets,
        benchmark=f"{place}/seed-{seed}",
    )


def evaluation(
    project: Project, experiment: str, model: str, seed: int | str, step: int | str
) -> Job:
    """The evaluation of a model's weights after a step.

    Beside weights and references it reads the teacher's weights under ``teacher`` and images
    under ``train_images`` and so on, each where a metric, the labels or likelihood need them.
    """
    described, step = project.experiments[experiment], int(step)
    names = described.protocols(model, step)
    chosen = [project.protocols[name] for name in names]
    reads: dict[str, str | tuple[str, ...]] = {
        "weights": layout.weights(described, model, step, seed),
        "references": tuple(layout.reference(name) for name in names),
    }
    teacher = described.teacher
    if model != "teacher" and teacher is not None and any(p.needs_teacher for p in chosen):
        reads["teacher"] = layout.weights(described, "teacher", seed=teacher.seed)
    splits = {"train"} if any(p.needs_training_images for p in chosen) else set()
    if (likelihood := described.likelihood(model, step)) is not None:
        splits.add(likelihood.split)
    for split in sorted(splits):
        files = layout.prepared(described.dataset.name, split)
        reads |= {f"{split}_{name}": path for name, path in files.items()}
    return Job(
        "evaluate",
        makes=layout.evaluation(experiment, model, seed, step),
        reads=reads,
        kind="evaluate",
        experiment=described,
        model=model,
        seed=seed,
        step=step,
        assets=tuple(sorted({asset for p in chosen for asset in p.feature_assets})),
        benchmark=f"evaluate/{experiment}/{model}/seed-{seed}/step-{step}",
    )


def table(project: Project) -> Job:
    """The tables and the verdicts on the paper's claims."""
    paper = tuple(
        f"results/paper/table{number}.{ending}"
        for number in (1, 2, 3)
        for ending in ("csv", "md", "tex")
    )
    return Job(
        "table",
        makes={
            "runs": "results/runs.csv",
            "table": "results/table.csv",
            "markdown": "results/table.md",
            "latex": "results/table.tex",
            "metrics": "results/metrics.json",
            "claims": "results/claims.json",
            "text": "results/claims.md",
            "paper": paper,
        },
        reads={"evaluations": _all(_evaluations(project), "evaluation")},
    )


def figures(project: Project) -> Job:
    """The folder of figures."""
    return Job("figures", makes={"figures": "results/figures"}, reads=_shown(project))


def report(project: Project) -> Job:
    """The report, which shows tables and figures too."""
    return Job(
        "report",
        makes={"report": "results/report.html"},
        reads={
            "tables": table(project).outputs,
            "figures": figures(project).outputs,
            **_shown(project),
        },
    )


def _shown(project: Project) -> Files:
    """What figures and the report show; training images of data sets that a job trains on."""
    evaluations = _evaluations(project)
    trainings = [
        training(experiment, model, seed)
        for experiment in project.experiments.values()
        for model, seed in experiment.runs()
        if experiment.imported(model) is None
    ]
    return {
        "evaluations": _all(evaluations, "evaluation"),
        "previews": _all(evaluations, "previews"),
        "curves": _all(trainings, "curve"),
        "records": _all(trainings, "record"),
        **{
            f"train_{name}": tuple(dict.fromkeys(str(job.reads[name]) for job in trainings))
            for name in layout.prepared("", "")
        },
    }


def _all(jobs: Iterable[Job], name: str) -> tuple[str, ...]:
    return tuple(str(job.makes[name]) for job in jobs)


def _evaluations(project: Project) -> list[Job]:
    """Of each model and seed, at each step that a protocol scores."""
    return [
        evaluation(project, name, model, seed, step)
        for name, experiment in project.experiments.items()
        for model, seed in experiment.runs()
        for step in experiment.exported_steps(model)
        if experiment.protocols(model, step)
    ]


# -- all jobs -----------------------------------------------------------------------------------


def graph(project: Project, target: str = "table") -> list[Job]:
    """The jobs that a key of :data:`TARGETS` takes, each after those whose files it reads."""
    makers = {output: job for job in _every(project) for output in job.outputs}
    ordered: dict[str, Job] = {}

    def visit(file: str) -> None:
        job = makers.get(file)
        if job is None or job.outputs[0] in ordered:
            return
        for other in job.inputs:
            visit(other)
        ordered[job.outputs[0]] = job

    visit(TARGETS[target])
    return list(ordered.values())


def by_rule(jobs: Iterable[Job]) -> dict[str, int]:
    """How many jobs each rule has, by the rule's name in alphabetical order."""
    return dict(sorted(Counter(job.rule for job in jobs).items()))


def _every(project: Project) -> Iterator[Job]:
    """All jobs that there could be, whether a target takes them or not."""
    compared = {
        protocol.reference.dataset
        for protocol in project.protocols.values()
        if isinstance(protocol.reference, ReferenceSplit)
    }
    for dataset in sorted({*project.datasets, *compared}):
        learned = project.datasets.get(dataset)
        for split in (traits(dataset) if learned is None else learned.traits).splits:
            yield data(project, dataset, split)
    for protocol in project.protocols:
        yield reference(project, protocol)
    for experiment in project.experiments.values():
        for model, seed in experiment.runs():
            asset = experiment.imported(model)
            if asset is None:
                yield training(experiment, model, seed)
            else:
                yield convert(project, "teachers" if model == "teacher" else "released", asset)
    yield from _evaluations(project)
    yield from (table(project), figures(project), report(project))
    everything = ("results/table.csv", "results/report.html", "results/figures")
    yield Job("all", makes={"all": "all"}, reads={"files": everything})
