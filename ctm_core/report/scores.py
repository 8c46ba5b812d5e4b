"""Evaluation files and what they say together: one row for each cell, over all seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ctm_core.config import Cell
from ctm_core.config.sampling_grid import ADAPTIVE
from ctm_core.evaluation.evaluation_file import Evaluation, Score, read_evaluation
from ctm_core.report import statistics
from ctm_core.report.csv_files import read_csv
from ctm_core.report.statistics import SampleSeed, Seeds, StandardError, Summary
from ctm_core.runtime.errors import Missing, UserError


class RowKey(NamedTuple):
    """What tells a row of the table from all others."""

    experiment: str
    protocol: str
    model: str
    step: int
    cell: Cell

    def order(self) -> tuple[Any, ...]:
        """Sort key: the teacher before its students."""
        return *self[:2], model_order(self.model), self.step, cell_order(self.cell)


@dataclass(frozen=True)
class Row:
    """One row of the table: a cell of a model under a protocol, over all seeds.

    ``checkpoint_sha256``, ``train_hash`` and ``code_version`` list what the training seeds have,
    sorted and joined by ``;``. ``n_samples`` is the number of samples behind a single value.
    """

    experiment: str
    dataset: str
    model: str
    objective: str
    step: int
    cell: Cell
    protocol: str
    train_seeds: tuple[int, ...]
    sample_seeds: tuple[SampleSeed, ...]
    n_samples: int
    params_m: float
    checkpoint_sha256: str
    train_hash: str
    code_version: str
    metrics: Mapping[str, Summary]
    rank_deficient: frozenset[str]

    @property
    def key(self) -> RowKey:
        """What tells this row from all others."""
        return RowKey(self.experiment, self.protocol, self.model, self.step, self.cell)


def read_evaluations(paths: Iterable[Path]) -> list[Evaluation]:
    """Read evaluation files and check that they fit into one table.

    Each says what nobody else does, those of an experiment are of the same data, and one
    protocol's name means one protocol; else a UserError.
    """
    read: dict[tuple[Any, ...], tuple[Path, Evaluation]] = {}
    fingerprints: dict[str, tuple[Path, str]] = {}
    protocols: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(paths):
        evaluation = read_evaluation(path)
        experiment, model = evaluation.experiment, evaluation.model
        key = (experiment, model_order(model), evaluation.step, evaluation.train_seed)
        other, known = read.setdefault(key, (path, evaluation))
        if known is not evaluation:
            raise UserError(
                f"{path} and {other} both evaluate {experiment} {model} step {evaluation.step} "
                f"training seed {evaluation.train_seed}; name only one of them"
            )
        fingerprint = evaluation.dataset_fingerprint
        if fingerprint is not None:
            other, expected = fingerprints.setdefault(experiment, (path, fingerprint))
            if fingerprint != expected:
                raise UserError(
                    f"{path} and {other} belong to the experiment {experiment} but to different "
                    "data (their dataset_fingerprint differ); evaluate one of them again"
                )
        for name, facts in evaluation.protocols.items():
            other, agreed = protocols.setdefault(name, (path, facts))
            if facts != agreed:
                keys = facts.keys() | agreed.keys()
                unequal = sorted(key for key in keys if facts.get(key) != agreed.get(key))
                raise UserError(
                    f"{path} and {other} mean different things by the protocol {name} "
                    f"({', '.join(unequal)}); evaluate one of them again"
                )
        _check_scores(path, evaluation)
    if not read:
        raise UserError("no evaluation files are given; name at least one evaluation.json")
    return [evaluation for _, (_, evaluation) in sorted(read.items(), key=lambda item: item[0])]


def read_runs(results: Path) -> list[Path]:
    """The evaluation files behind ``results/runs.csv``: left-overs of older runs stay out."""
    table = results / "runs.csv"
    try:
        runs = read_csv(table)[["experiment", "model", "train_seed", "step"]]
        keys = set(runs.astype({"train_seed": int, "step": int}).itertuples(index=False))
    except Missing:
        raise UserError(f"{table} is missing; make it with `ctm table`") from None
    except (KeyError, ValueError, OverflowError):
        raise UserError(
            f"{table} is not a table of runs; make it again with `ctm table`"
        ) from None
    paths = []
    for experiment, model, seed, step in sorted(keys):
        folder = results / experiment / model / f"seed-{seed}"
        files = [f for f in folder.glob("step-*/evaluation.json") if _step_of(f) == step]
        if len(files) != 1:
            raise UserError(
                f"{table} names {experiment} {model} seed {seed} step {step}, but {folder} holds "
                f"{len(files)} evaluations of that step; make the table again with `ctm table`"
            )
        paths.append(files[0])
    return paths


def _step_of(path: Path) -> int | None:
    digits = path.parent.name.removeprefix("step-")
    return int(digits) if digits.isdigit() else None


def _check_scores(path: Path, evaluation: Evaluation) -> None:
    seen = set()
    for score in evaluation.rows:
        if score.protocol not in evaluation.protocols:
            raise UserError(
                f"{path} has values of the protocol {score.protocol}, which it does not describe; "
                "evaluate again"
            )
        key = (score.cell, score.protocol, score.metric, score.sample_seed)
        if key in seen:
            raise UserError(
                f"{path} has two values of {score.metric} for {score.cell.label}, protocol "
                f"{score.protocol}, sampling seed {score.sample_seed}; delete it and evaluate "
                "again"
            )
        seen.add(key)


def aggregate(evaluations: Sequence[Evaluation]) -> list[Row]:
    """One row for each (experiment, model, step, cell, protocol), sorted.

    A UserError if the training seeds of a cell were not all sampled with the same seeds.
    """
    groups: dict[RowKey, list[tuple[Evaluation, Score]]] = defaultdict(list)
    for evaluation in evaluations:
        for score in evaluation.rows:
            # How often an adaptive solver evaluates the network is a result: it differs from
            # training to training, and must not part them.
            cell = Cell(ADAPTIVE, 0, None) if score.sampler == ADAPTIVE else score.cell
            place = evaluation.experiment, score.protocol, evaluation.model, evaluation.step
            groups[RowKey(*place, cell)].append((evaluation, score))
    return [_row(key, groups[key]) for key in sorted(groups, key=RowKey.order)]


def _row(key: RowKey, scored: list[tuple[Evaluation, Score]]) -> Row:
    values: dict[str, dict[Seeds, float]] = defaultdict(dict)
    errors: dict[str, dict[Seeds, StandardError]] = defaultdict(dict)
    for evaluation, score in scored:
        seeds = evaluation.train_seed, score.sample_seed
        values[score.metric][seeds] = score.value
        if score.standard_error is not None and score.freedom is not None:
            errors[score.metric][seeds] = StandardError(score.standard_error, score.freedom)
    try:
        metrics = {m: statistics.summarise(values[m], errors[m]) for m in sorted(values)}
    except ValueError as error:
        raise UserError(
            f"{key.experiment} {key.model} step {key.step} {key.cell.label} under "
            f"{key.protocol}: {error}; evaluate every training seed with the same sampling seeds"
        ) from None
    by_train_seed = {evaluation.train_seed: evaluation for evaluation, _ in scored}
    evaluations, scores = list(by_train_seed.values()), [score for _, score in scored]
    if key.cell.sampler == ADAPTIVE:
        nfe = round(sum(score.nfe for score in scores) / len(scores))
        key = key._replace(cell=Cell(ADAPTIVE, nfe, None))
    return Row(
        **key._asdict(),
        dataset=evaluations[0].dataset,
        objective=_joined({e.objective for e in evaluations}),
        train_seeds=tuple(sorted(by_train_seed)),
        sample_seeds=tuple(statistics.in_order(score.sample_seed for score in scores)),
        n_samples=max(score.n for score in scores),
        params_m=evaluations[0].params_m,
        # Two training seeds may give equal weights only by mistake, so the list keeps duplicates.
        checkpoint_sha256=_joined([e.checkpoint_sha256 for e in evaluations]),
        train_hash=_joined({e.train_hash for e in evaluations}),
        code_version=_joined({e.code_version for e in evaluations}),
        metrics=metrics,
        rank_deficient=frozenset(score.metric for score in scores if score.rank_deficient),
    )


def _joined(texts: Iterable[str]) -> str:
    return ";".join(sorted(texts))


def model_order(model: str) -> tuple[bool, str]:
    """Sort key that puts the teacher before its students."""
    return model != "teacher", model


def cell_order(cell: Cell) -> tuple[str, int, float, tuple[float, ...]]:
    """Sort key by sampler, NFE, gamma, then times, those of the grid first."""
    return cell.sampler, cell.nfe, -1.0 if cell.gamma is None else cell.gamma, cell.times
