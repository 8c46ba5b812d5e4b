"""The report: one HTML file that answers, shows and accounts for a table, and needs no network.

Everything in it is computed from the evaluations behind ``runs.csv``; nothing is written by hand.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ctm_core.config.metric_registry import FAMILIES
from ctm_core.config.project import locate
from ctm_core.evaluation.evaluation_file import Evaluation
from ctm_core.evaluation.metrics.names import detail, display
from ctm_core.report.agreement import compared_in
from ctm_core.report.agreement.printed import table_of
from ctm_core.report.agreement.reference_runs import reference_file
from ctm_core.report.agreement.z_scores import z_scores
from ctm_core.report.csv_files import csv_text, read_csv
from ctm_core.report.figures import Picture, catalogue
from ctm_core.report.figures.style import PIXELS_PER_INCH, encoded, style
from ctm_core.report.headline import cell_name, effects
from ctm_core.report.literature import Joined, joined, load_literature, printed
from ctm_core.report.scores import Row, aggregate, read_evaluations, read_runs
from ctm_core.report.selection import best, last_steps, main_protocol, metrics_of
from ctm_core.report.statistics import MARKED, Summary, over
from ctm_core.report.tables.columns import number, runs_csv
from ctm_core.report.tables.sections import training_seeds
from ctm_core.report.verdicts import Finding, read_findings
from ctm_core.report.verdicts.sentences import MARKS, answer, counted, in_one_sentence
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_record, write_text
from ctm_core.training.training_file import Speed, read_speed, read_training

#: The figures of each part of the page, by kind.
PLACES = {
    "hero": ("hero",),
    "charts": ("fd-nfe", "fd-gamma", "progress", "jumps", "training"),
    "galleries": ("path", "samples", "nearest"),
}

AGREEMENT = (
    "Each cell of the table less its reference, in standard errors of the spread between machines "
    "and trainings; red differs."
)

#: CSS pixels for an inch of a figure: its text then has the size of the page's notes.
SCREEN_INCH = 110


def write_report(results: Path, output: Path, *, published: Path | None = None) -> None:
    """Write the report of ``results`` to ``output``.

    Parameters
    ----------
    results
        Holds ``runs.csv``, the evaluations that it lists, ``claims.json``, ``figures/``, and the
        trainings' records where there are any.
    published
        The list of published values; None takes ``config/published.yaml`` of the working directory
        or, if there is none, of the project.

    Raises
    ------
    UserError
        If the table is missing or does not fit the evaluations.
    """
    records = read_evaluations(read_runs(results))
    if runs_csv(records) != csv_text(read_csv(results / "runs.csv")):
        raise UserError(
            f"{results / 'runs.csv'} does not fit the evaluations it lists; make it again with "
            "`ctm table`"
        )
    rows = aggregate(records)
    pictures = catalogue(rows)
    claims = read_findings(results / "claims.json")
    agreements = _agreements(results, {row.experiment for row in rows})
    published = published or Path(locate("config/published.yaml"))
    known = joined(rows, load_literature(published), published)
    context = {
        "title": "Consistency Trajectory Models",
        "experiments": [
            _experiment(name, rows, records, pictures, claims, known, results)
            | {"agreement": agreements.get(name)}
            for name in dict.fromkeys(row.experiment for row in rows)
        ],
        "untested": [claim for claim in claims if claim.verdict == "not testable"],
        "marks": MARKS,
        "families": FAMILIES,
        "note": MARKED,
        "protocols": _protocols(records),
        "versions": sorted({record.code_version for record in records}),
    }
    environment = Environment(
        loader=PackageLoader("ctm_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": partial(cell_name, teacher=False),
        "count": "{:,}".format,
        "detail": detail,
        "counted": counted,
        "display": display,
        "duration": duration,
        "number": number,
        "printed": printed,
        "training_seeds": lambda row: training_seeds(row, metrics_of([row])[0]),
        "over": _over,
    }
    write_text(output, environment.get_template("report.html.j2").render(context))


def duration(seconds: float) -> str:
    """``8.2 s``, ``1 min 21 s`` or ``3 h 04 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _experiment(
    name: str,
    rows: Sequence[Row],
    records: Sequence[Evaluation],
    pictures: Iterable[Picture],
    claims: Iterable[Finding],
    known: Iterable[Joined],
    results: Path,
) -> dict[str, Any]:
    own = [row for row in rows if row.experiment == name]
    evaluated = [record for record in records if record.experiment == name]
    findings = [finding for finding in claims if finding.experiment == name]
    drawn = [p for p in pictures if p.experiment == name and _file(p, results).is_file()]
    main = main_protocol(own, name)
    protocols = [main, *sorted({row.protocol for row in own} - {main})]
    return {
        "name": name,
        "dataset": own[0].dataset,
        "own_images": _own_images(results / "data" / own[0].dataset / "train"),
        "fingerprint": next(filter(None, (e.dataset_fingerprint for e in evaluated)), ""),
        "ran": _what_ran(own, evaluated, protocols),
        "answer": answer(findings),
        "sentence": in_one_sentence(findings),
        "findings": [one for one in findings if one.verdict != "not testable"],
        "effects": effects(own, name),
        "tables": [_table([row for row in own if row.protocol == p], p) for p in protocols],
        "published": [one for one in known if one.row.experiment == name],
        **{
            place: [_picture(picture, results) for picture in drawn if picture.kind in kinds]
            for place, kinds in PLACES.items()
        },
        "weights": evaluated,
        "costs": _costs(name, evaluated, results),
    }


def _what_ran(rows: Sequence[Row], records: Sequence[Evaluation], protocols: list[str]) -> str:
    students = [m for m in dict.fromkeys(row.model for row in rows) if m != "teacher"]
    parts = []
    if any(row.model == "teacher" for row in rows):
        parts.append("teacher")
    if students:
        parts.append(f"student{'s' if len(students) > 1 else ''} {', '.join(students)}")
    late = last_steps(rows)
    cells = len({(row.model, row.cell) for row in late})
    seeds = {seed for row in rows for seed in row.sample_seeds if isinstance(seed, int)}
    trained = {record.train_seed for record in records if record.model != "teacher"}
    sizes = sorted({f"{record.params_m:.2g}" for record in records})
    text = f"{' and '.join(parts)} of {' and '.join(sizes)} million parameters, {cells} cells"
    if trained:
        text += f", {_counted(len(trained), 'training seed')}"
    if seeds:
        samples = {row.n_samples for row in rows if isinstance(row.sample_seeds[0], int)}
        many = " or ".join(f"{n:,}" for n in sorted(samples))
        text += f", {_counted(len(seeds), 'sampling seed')} of {many} samples per cell"
    return f"{text}, scored by {' and '.join(protocols)}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _table(rows: Sequence[Row], protocol: str) -> dict[str, Any]:
    metrics = metrics_of(rows)
    return {
        "protocol": protocol,
        "metrics": metrics,
        "winners": {metric: best(rows, metric) for metric in metrics},
        "steps": len(last_steps(rows)) != len(rows),
        "rank_deficient": any(row.rank_deficient for row in rows),
        "marked": any(summary.mark for row in rows for summary in row.metrics.values()),
        "place": _scale(row.metrics[metrics[0]] for row in rows if metrics[0] in row.metrics),
        "rows": rows,
    }


def _over(row: Row) -> str:
    """What the intervals of a row are taken over."""
    methods = dict.fromkeys(summary.method for summary in row.metrics.values())
    words = (over(method, len(row.train_seeds), row.sample_seeds) for method in methods)
    return "; ".join(filter(None, words))


def _scale(summaries: Iterable[Summary]) -> Callable[[float], float]:
    """Percent from the left at which a value is drawn; logarithmic where all are positive."""
    ends = [end for summary in summaries for end in summary.ends]
    position: Callable[[float], float] = math.log if min(ends) > 0 else float
    low = position(min(ends))
    span = (position(max(ends)) - low) or 1.0
    return lambda value: round(4 + 92 * (position(value) - low) / span, 2)


def _file(picture: Picture, results: Path) -> Path:
    return results / "figures" / f"{picture.file}.png"


def _agreements(results: Path, experiments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of each experiment that has a reference: whether it agrees, in a sentence and a picture."""
    try:
        compared = compared_in(results)
    except UserError as error:  # no reference, or of another configuration
        alone = {"sentence": str(error), "table": None, "picture": None}
        return {name: alone for name in experiments if reference_file(name).exists()}
    shown = {}
    for made in compared:
        title = f"{made.experiment}: against the reference"
        with style():
            figure = z_scores(made, title)
            png = b"" if figure is None else encoded(figure, "png", title)
        picture = Picture("agreement", "training", title, AGREEMENT, made.sentence)
        shown[made.experiment] = {
            "sentence": made.sentence,
            "table": table_of(made.cells),
            "picture": None if figure is None else _sized(picture, *_image(png)),
        }
    return shown


def _picture(picture: Picture, results: Path) -> dict[str, Any]:
    return _sized(picture, *_embedded(_file(picture, results), "draw it with `ctm figures`"))


def _sized(picture: Picture, width: int, height: int, source: str) -> dict[str, Any]:
    return {
        "picture": picture,
        "width": round(width * SCREEN_INCH / PIXELS_PER_INCH),
        "height": round(height * SCREEN_INCH / PIXELS_PER_INCH),
        "source": source,
    }


def _embedded(path: Path, fix: str) -> tuple[int, int, str]:
    """Width, height and content of a PNG file, as an address that needs no network."""
    try:
        return _image(path.read_bytes())
    except (OSError, SyntaxError) as error:  # the latter of a chunk with another checksum
        raise UserError(f"{path} is not a picture ({error}); {fix}") from None


def _image(png: bytes) -> tuple[int, int, str]:
    with Image.open(BytesIO(png)) as image:
        width, height = image.size
        image.verify()
    return width, height, f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _own_images(folder: Path) -> dict[str, Any] | None:
    """Class counts and pictures of a data set of own images; None of other data sets."""
    files = {"Training images": folder / "contact.png", "Their mean": folder / "mean.png"}
    if not all(path.is_file() for path in files.values()):
        return None
    again = "run `ctm data` again"
    manifest = read_record(folder / "manifest.json", again)
    counts = manifest["preparation"]["counts"]
    return {
        "counts": list(zip(manifest["class_names"], counts, strict=True)),
        "pictures": [(title, *_embedded(path, again)) for title, path in files.items()],
    }


def _protocols(records: Iterable[Evaluation]) -> list[dict[str, Any]]:
    """Each protocol's facts, nested ones as ``reference split`` and so on."""
    facts: dict[str, dict[str, Any]] = {}
    for record in records:
        for name, described in record.protocols.items():
            facts[name] = {
                f"{key} {inner}".strip().replace("_", " "): fact
                for key, value in described.items()
                for inner, fact in (value if isinstance(value, dict) else {"": value}).items()
            }
    return [{"name": name, "facts": facts[name]} for name in sorted(facts)]


def _costs(experiment: str, records: Iterable[Evaluation], results: Path) -> dict[str, Any]:
    """Seconds and network calls of each training and its evaluations."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    speeds: list[Speed] = []
    for record in records:
        model, seed = record.model, record.train_seed
        folder = results / experiment / model / f"seed-{seed}"
        if (model, seed) not in lines:
            path = folder / "training.json"
            training = read_training(path) if path.exists() else None
            speed = read_speed(folder / "speed.json")
            if speed is not None:
                speeds.append(speed)
            line = {"model": model, "seed": seed, "training": training, "speed": speed}
            lines[model, seed] = line | {"evaluation": 0.0}
        spent = read_speed(folder / f"step-{record.step}" / "speed.json")
        lines[model, seed]["evaluation"] += 0.0 if spent is None else spent.seconds
    hardware = [speed.hardware for speed in speeds if speed.hardware]
    return {
        "lines": list(lines.values()),
        "total": sum(speed.seconds for speed in speeds)
        + sum(line["evaluation"] for line in lines.values()),
        "hardware": dict.fromkeys(", ".join(f"{k} {v}" for k, v in h.items()) for h in hardware),
    }
