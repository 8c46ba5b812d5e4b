"""Collect the wheels of a lock for a machine without internet access, and check such a folder.

Usage::

    python requirements/wheelhouse.py collect FOLDER --lock LOCK --python 3.12 [--platform NAME]
    python requirements/wheelhouse.py check FOLDER --lock LOCK
    python requirements/wheelhouse.py resolve --lock LOCK --python 3.13 [--platform NAME]

``collect`` (``make wheelhouse``) downloads every pin of the lock for another Python and builds
those that come as source, if they are pure Python. ``check`` (``make setup WHEELHOUSE=FOLDER``)
compares the folder with its list and the lock. ``resolve`` (``make resolve``) downloads nothing:
it asks whether every pin can be had for that Python, and needs nothing that the lock lacks.
``--without-torch`` leaves out what comes with torch (``TORCH=own``).
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from own_torch import without_torch

LIST, SUMS = "requirements.txt", "SHA256SUMS"
HEAD = "# For Python {} on {}; collected by `make wheelhouse`."
#: Older names of manylinux platforms, by the version of glibc.
OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


class Fault(Exception):
    """What the user can mend, in one sentence."""


def pins(lock: Path, torch: bool) -> list[str]:
    """The lines of a lock that name packages."""
    text = lock.read_text() if torch else without_torch(lock.read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def platforms(name: str) -> list[str]:
    """Every platform whose wheels run on one: an older glibc's too."""
    match = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", name)
    if match is None:
        return [name]
    glibc, machine = int(match[1]), match[2]
    names = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc, 4, -1)]
    return names + [f"{old}_{machine}" for minor, old in OLD_NAMES.items() if minor <= glibc]


def target(python: str, platform: str | None) -> list[str]:
    """pip's options for another Python, on another platform."""
    options = ["--python-version", python, "--implementation", "cp"]
    for name in platforms(platform) if platform else []:
        options += ["--platform", name]
    return options


def pip(*arguments: str) -> None:
    """Run pip; what it says last is the fault."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = re.findall(r"^ERROR: (.*)", done.stderr, re.MULTILINE)
        raise Fault(f"pip {arguments[0]}: {errors[-1] if errors else done.stderr.strip()}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def collect(folder: Path, wanted: list[str], python: str, platform: str | None) -> None:
    """Fill a folder; its list of checksums is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).unlink(missing_ok=True)
    listing = folder / LIST
    here = platform or "this machine's platform"
    listing.write_text("\n".join([HEAD.format(python, here), *wanted]) + "\n")
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        common = ["--no-deps", "--requirement", str(listing), "--find-links", str(folder)]
        pip("download", *common, "--dest", fresh, *target(python, platform))
        for source in sorted(Path(fresh).iterdir()):
            if source.suffix == ".whl":
                continue
            pip("wheel", "--no-deps", "--wheel-dir", fresh, str(source))
            source.unlink()
        wheels = sorted(Path(fresh).glob("*.whl"))
        for wheel in wheels:
            if not fits(wheel.name, python):
                raise Fault(
                    f"{wheel.name.split('-')[0]} has no wheel for Python {python} on {here}, and "
                    "its source is not pure Python; collect on a machine with that Python"
                )
        for old in folder.glob("*.whl"):
            old.unlink()
        for wheel in wheels:
            wheel.rename(folder / wheel.name)
    files = [listing, *sorted(folder.glob("*.whl"))]
    text = "".join(f"{digest(file)}  {file.name}\n" for file in files)
    (folder / SUMS).write_text(text)


def fits(wheel: str, python: str) -> bool:
    """Whether a wheel's name says that a Python can use it."""
    tags, abi, _ = wheel.removesuffix(".whl").split("-")[-3:]
    exact = f"cp{python.replace('.', '')}"
    return any(tag.startswith("py") or tag == exact or abi == "abi3" for tag in tags.split("."))


def check(folder: Path, wanted: list[str]) -> None:
    """Raise Fault unless a folder holds all that was collected, for this Python and lock."""
    again = "copy it again, or collect it again by `make wheelhouse` on a machine with internet"
    if not (folder / SUMS).is_file() or not (folder / LIST).is_file():
        raise Fault(f"{folder} is no complete wheelhouse: it lacks {SUMS} or {LIST}; {again}")
    lines = (folder / LIST).read_text().splitlines()
    python = "{}.{}".format(*sys.version_info)
    if not lines[0].startswith(f"# For Python {python} on "):
        version = lines[0].removeprefix("# For ").split(" on ")[0]
        raise Fault(
            f"{folder} was collected for {version}, but this is Python {python}; give the other "
            f"by PYTHON=..., or collect for this one by `make wheelhouse FOR_PYTHON={python}`"
        )
    sums = dict(reversed(line.split("  ")) for line in (folder / SUMS).read_text().splitlines())
    missing = [name for name in sums if not (folder / name).is_file()]
    damaged = [n for n in sums if n not in missing and digest(folder / n) != sums[n]]
    for names, what in ((missing, "missing"), (damaged, "damaged")):
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise Fault(
                f"{folder}: {len(names)} of {len(sums)} files are {what} ({some}); {again}"
            )
    if absent := [pin for pin in wanted if pin not in lines]:
        raise Fault(f"{folder} was collected from another lock: it lacks {absent[0]}; {again}")


def resolve(wanted: list[str], python: str, platform: str | None) -> int:
    """How many pins there are; raises Fault if one cannot be had, or needs what no pin gives."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    with tempfile.TemporaryDirectory() as place:
        listing, report = Path(place, "lock.txt"), Path(place, "report.json")
        listing.write_text("\n".join(wanted) + "\n")
        common = ["--dry-run", "--ignore-installed", "--no-deps", "--requirement", str(listing)]
        common += ["--target", place, "--report", str(report)]
        pip("install", *common, *target(python, platform))
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    versions = {canonicalize_name(p["name"]): p["version"] for p in packages}
    cuda = any(name.startswith("nvidia-") for name in versions)  # else torch's parts are its own
    there = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    for package in packages:
        for text in package.get("requires_dist", []):
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate(there):
                continue
            name = canonicalize_name(need.name)
            version = versions.get(name)
            if version is None and not cuda and without_torch(f"{name}==0") == "":
                continue
            if version is None or not need.specifier.contains(version, prereleases=True):
                has = "none" if version is None else version
                raise Fault(
                    f"{package['name']} needs {text} on Python {python}; the lock has {has}"
                )
        allowed = package.get("requires_python", "")
        if not Requirement(f"python{allowed}").specifier.contains(f"{python}.99"):
            raise Fault(f"{package['name']} {package['version']} is for Python {allowed}")
    return len(packages)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("action", choices=["collect", "check", "resolve"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("wheelhouse"))
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--python", default="{}.{}".format(*sys.version_info))
    parser.add_argument("--platform", help="such as manylinux_2_28_x86_64; default: this one's")
    parser.add_argument("--without-torch", action="store_true")
    given = parser.parse_args()
    wanted = pins(given.lock, not given.without_torch)
    if not re.fullmatch(r"3\.\d+", given.python):
        raise Fault(f"{given.python} is no version of Python such as 3.12")
    if given.action == "check":
        check(given.folder, wanted)
    elif given.action == "collect":
        collect(given.folder, wanted, given.python, given.platform)
        print(f"{given.folder}: {len(wanted)} wheels for Python {given.python}")
    else:
        count = resolve(wanted, given.python, given.platform)
        print(f"{given.lock}: all {count} pins can be had for Python {given.python}")


if __name__ == "__main__":
    try:
        main()
    except (Fault, OSError) as error:
        print(f"wheelhouse: {error}", file=sys.stderr)
        raise SystemExit(2) from None
