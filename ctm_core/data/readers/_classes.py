"""The classes of own images: from folders, from ``dataset.json``, by number, or a single one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ctm_core.config.datasets import Dataset
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.untrusted import parse_json, printable, read_bytes

LABELS = "dataset.json"
#: The classes of a set without classes.
SINGLE = ("all",)


def classify(
    folder: Path, names: Sequence[str], source: Path, section: Dataset
) -> tuple[list[str], dict[str, int]]:
    """The classes, and the class of every picture, in the order of ``names`` below ``folder``."""
    if section.classes == "none":
        return [*SINGLE], dict.fromkeys(names, 0)
    if (folder / LABELS).is_file():
        numbers = _from_json(folder / LABELS, names, source)
        if numbers is not None:
            return number_classes(numbers.values(), source), numbers
        return [*SINGLE], dict.fromkeys(names, 0)
    tops = {name: name.partition("/")[0] if "/" in name else "" for name in names}
    classes = sorted(set(tops.values()))
    if classes == [""]:
        return [*SINGLE], dict.fromkeys(names, 0)
    if classes[0] == "":
        loose = next(name for name, top in tops.items() if not top)
        raise UserError(
            f"{source} holds pictures beside folders of classes, such as {printable(loose)}; "
            "sort them into the folders, or set dataset.classes to none"
        )
    if ugly := [name for name in classes if not name.isprintable()]:
        raise UserError(f"{source}: {printable(ugly[0])} cannot name a class; rename the folder")
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, {name: numbers[top] for name, top in tops.items()}


def _from_json(path: Path, names: Sequence[str], source: Path) -> dict[str, int] | None:
    """The label of every picture; None if the file has no labels."""
    content = parse_json(read_bytes(path), path)
    labels = content.get("labels") if isinstance(content, dict) else content
    if labels is None:
        return None
    numbers: dict[str, int] = {}
    for pair in labels if isinstance(labels, list) else [labels]:
        match pair:
            case [str(name), int(label)] if not isinstance(label, bool) and label >= 0:
                if numbers.setdefault(name, label) != label:
                    raise UserError(f"{LABELS} of {source} labels {printable(name)} twice")
            case _:
                raise UserError(
                    f"{LABELS} of {source}: expected pairs of a file's name and its number, but "
                    f"got {printable(str(pair), 80)}; correct it"
                )
    if missing := sorted(numbers.keys() - set(names)):
        raise UserError(
            f"{LABELS} of {source} labels {len(missing):,} files that are missing, the first is "
            f"{printable(missing[0])}; add the files or correct it"
        )
    if unlabelled := [name for name in names if name not in numbers]:
        raise UserError(
            f"{LABELS} of {source} has no label for {len(unlabelled):,} files, the first is "
            f"{printable(unlabelled[0])}; add labels, or set dataset.classes to none"
        )
    return {name: numbers[name] for name in names}


def number_classes(labels: Iterable[int], source: Path) -> list[str]:
    """Classes that only have numbers."""
    labels = [*labels]
    if max(labels) >= len(labels):
        raise UserError(f"{source}: the label {max(labels)} is too large for {len(labels)} images")
    return [str(number) for number in range(max(labels) + 1)]


def check_counts(classes: Sequence[str], labels: Iterable[int], source: Path) -> None:
    """Refuse a class with fewer than two pictures."""
    counts = Counter(labels)
    for number, name in enumerate(classes):
        if counts[number] < 2:
            what = f"the class {printable(name)} of {source}" if len(classes) > 1 else str(source)
            raise UserError(
                f"{what} has {'only one picture' if counts[number] else 'no picture'}; at least "
                "two are needed"
            )
