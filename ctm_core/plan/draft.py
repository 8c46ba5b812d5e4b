"""A first experiment on own images, sized to a machine and a number of hours: `ctm new`.

Resolution and network are the largest whose teacher sees an image for every weight.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ctm_core.config import Dataset, validated
from ctm_core.config.asset_listing import ROOT
from ctm_core.config.datasets import ASSET
from ctm_core.config.project import locate
from ctm_core.data.readers import images
from ctm_core.plan.candidate import Candidate
from ctm_core.plan.printout import count as printed
from ctm_core.plan.speeds import Machine, parse_device_speed
from ctm_core.plan.storage import Shape
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import write_text

#: Images that are decoded to see what they are.
LOOKED_AT = 256
#: Sides that are tried where none is given; widths and blocks per level. The largest first.
SIDES = (64, 32, 16)
NETWORKS = ((128, 2), (96, 2), (64, 2), (64, 1), (32, 1))


@dataclass(frozen=True)
class Draft:
    """The files of an experiment that is not written yet."""

    name: str
    texts: Mapping[str, str]  #: by path; the one that Snakemake is given is the last
    shape: Shape
    machine: Machine
    seconds: float  #: of all jobs, one after the other
    command: str

    def write(self) -> None:
        """Write all files, or none."""
        written: list[str] = []
        try:
            for path, text in self.texts.items():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                written.append(path)
                write_text(path, text)
        except OSError:
            for path in written:
                with suppress(OSError):
                    os.unlink(path)
            raise


def draft(
    name: str,
    source: str,
    *,
    resolution: int | None = None,
    hours: float = 2.0,
    cores: int | None = None,
    device_speed: str | None = None,
) -> Draft:
    """Look at images and size an experiment on them.

    Raises
    ------
    UserError
        If a file of this name exists, or the images cannot be learned from.
    """
    if not 0 < hours <= 10_000:
        raise UserError(f"--hours {hours:g}: give a number of hours, such as 2")
    if resolution is not None and resolution % 4:
        raise UserError(
            f"--resolution {resolution}: the network halves images twice; choose a multiple of "
            f"4, such as {4 * round(resolution / 4)}"
        )
    if not source.startswith(ASSET):
        source = os.path.abspath(os.path.expanduser(source))
    if not source.isprintable():
        raise UserError("--images: the path has characters that cannot be printed; rename it")
    described = {"name": name, "reader": "images", "source": source, "resolution": 32}
    section = validated(Dataset, described, "ctm new")
    paths = [f"config/{folder}{name}.yaml" for folder in ("protocols/", "experiments/", "")]
    place, command = _command(name)
    for path in (*map(locate, paths), *place):
        if os.path.lexists(path):
            raise UserError(f"{path} exists and is not overwritten; choose another name")
    survey = images.survey(source, section, LOOKED_AT)
    machine = Machine(cores or len(os.sched_getaffinity(0)), parse_device_speed(device_speed))
    smallest = min(survey.sides)
    sides = [side for side in SIDES if side <= smallest] or [max(8, smallest // 4 * 4)]
    tried = [
        Candidate(section, survey, machine, hours, side, *network)
        for side in ([resolution] if resolution else sides)
        for network in NETWORKS
        if resolution or network[0] >= side
    ]
    chosen = next((one for one in tried if one.suffices), tried[-1])
    command += f" --cores {machine.cores}{' --resources gpu=1' if machine.gpu else ''}"
    command += f" --configfile {paths[-1]}"
    why = "Given" if resolution else _why_side(chosen, tried, smallest)
    files = ("protocol.yaml", "experiment.yaml", "config.yaml")
    texts = {
        path: chosen.text(file, why, command) for path, file in zip(paths, files, strict=True)
    }
    return Draft(name, texts, chosen.shape, machine, chosen.sizes.seconds, command)


def _command(name: str) -> tuple[list[str], str]:
    """The folder that must not be there, and how Snakemake is started in the working directory."""
    if Path.cwd() == ROOT:
        return [f"studies/{name}"], f"snakemake --directory studies/{name}"
    return [], f"snakemake --snakefile {os.path.relpath(ROOT / 'Snakefile')}"


def _why_side(chosen: Candidate, tried: list[Candidate], smallest: int) -> str:
    if chosen.side not in SIDES:
        return f"The shortest side of an image is {smallest}"
    larger = [one for one in tried if one.side > chosen.side]
    if not larger:
        return f"The largest of {', '.join(map(str, SIDES))} that enlarges no image"
    best = larger[-1]
    return (
        f"At {best.side}, even the smallest teacher would see only {printed(best.seen)} images "
        f"for {printed(best.weights)} weights"
    )
