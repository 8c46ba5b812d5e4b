"""Make an environment around the torch of another Python: a module's, a container's, a venv's.

Usage: ``PYTHON requirements/own_torch.py VENV LOCK`` by the interpreter that has torch
(``make setup TORCH=own PYTHON=...``). The environment sees that interpreter's packages behind its
own; everything in the lock except torch's own parts is installed into it without dependencies, so
nothing can replace torch. A torchvision that fits is added where there is none.
"""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

OLDEST = (2, 9)
LINK = "own_torch.pth"
#: What comes with torch, or belongs to one version of it.
PARTS = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)==")


def fail(sentence: str) -> None:
    """End with one sentence."""
    print(f"make setup: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def own_version() -> str:
    """The version of this interpreter's torch, if it will do."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        fail(f"{sys.executable} has no torch; give the Python that has one by PYTHON=...")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        fail(
            f"{sys.executable} has torch {version}, but {oldest} or newer is needed; load a newer "
            "one, or use `make setup` without TORCH=own"
        )
    return version


def without_torch(lock: str) -> str:
    """The lines of a lock that do not come with torch."""
    return "".join(line for line in lock.splitlines(keepends=True) if not PARTS.match(line))


def environment(venv: Path) -> None:
    """Make the environment, unless it is one of this script's already."""
    links = list(venv.glob(f"lib/python*/site-packages/{LINK}"))
    inside = Path(sys.prefix).resolve() == venv.resolve()
    if links and inside:
        return
    if inside:
        fail(f"{sys.executable} is {venv} itself; deactivate it, or give another by PYTHON=...")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    places = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    roots = {str(Path(str(metadata.distribution("torch").locate_file("."))).resolve())}
    lines = [*places, *sorted(roots - {str(Path(p).resolve()) for p in places})]
    (site / LINK).write_text("\n".join(lines) + "\n")


def main(venv: Path, lock: Path) -> None:
    """Make the environment and fill it."""
    version = own_version()
    environment(venv)
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet"]
    rest = venv / "own_torch.txt"
    rest.write_text(without_torch(lock.read_text()))
    subprocess.run([*pip, "--no-deps", "--requirement", str(rest)], check=True)
    found = subprocess.run([*pip[:3], "show", "torchvision"], capture_output=True, check=False)
    if found.returncode != 0:
        rest.write_text(f"torch=={version}\n")
        subprocess.run([*pip, "--constraint", str(rest), "torchvision"], check=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from None
