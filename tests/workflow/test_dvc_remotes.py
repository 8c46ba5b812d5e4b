"""Results shared through a folder and through S3, and remotes that do not serve."""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.project import ROOT
from fixtures.s3 import BUCKET, Server, server
from fixtures.versions import Repository, Versions

CHECK = "workflow/scripts/check_remote.py"
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with server() as made:
        yield made


def check(project: Repository, *words: str, code: int = 0, **keys: str) -> str:
    """What the check of a remote says: always one line."""
    said = project.run(sys.executable, CHECK, *words, code=code, **keys)
    assert said.count("\n") == 1 and "Traceback" not in said, said
    return said


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_push_clone_pull(kind: str, versions: Versions, s3: Server, tmp_path: Path) -> None:
    places = {
        "folder": (str(tmp_path / "store"), {}),
        "s3": (f"s3://{BUCKET}/ctm", {"endpointurl": s3.url}),
    }
    url, settings = places[kind]
    project = versions.copy(tmp_path / "project")
    project.remote(url, **settings)
    assert "`dvc push` adds them" in check(project, **KEYS)
    assert "files pushed" in project.run("dvc", "push", "--all-tags", **KEYS)

    other = project.clone(tmp_path / "other")
    other.remote(url, **settings)
    assert "`dvc pull` brings them" in check(other, "--pull", **KEYS)
    other.run("dvc", "pull", **KEYS)
    assert other.made() == versions.second
    assert other.left() == {}
    assert "didn't change, skipping" in other.run("dvc", "repro")
    assert not (other.path / "runs").exists()
    assert "holds this version" in check(other, **KEYS)

    other.run("git", "checkout", "--quiet", "first")
    other.run("dvc", "pull", **KEYS)
    assert other.made() == versions.first
    assert other.left() == {}


def test_a_folder_that_may_not_be_written(
    versions: Versions, read_only: Path, tmp_path: Path
) -> None:
    project = versions.copy(tmp_path / "project")
    project.remote(str(read_only / "store"))
    project.run("dvc", "push", code=255)
    assert project.made() == versions.second and not list(read_only.iterdir())
    said = check(project, code=2)
    assert said.startswith(f"check_remote: store ({read_only}/store): it ")
    assert "read-only file system" in said or "may not be written" in said


def test_a_bucket_that_is_missing_and_keys_that_are_refused(
    versions: Versions, s3: Server, tmp_path: Path
) -> None:
    project = versions.copy(tmp_path / "project")
    project.remote("s3://missing/ctm", endpointurl=s3.url)
    project.run("dvc", "push", code=255, **KEYS)
    for words in ((), ("--pull",)):
        assert "(s3://missing/ctm): the bucket does not exist" in check(
            project, *words, code=2, **KEYS
        )

    project.remote(f"s3://{BUCKET}/refused", endpointurl=s3.url)
    held = s3.holds()
    other = project.clone(tmp_path / "other")
    other.remote(f"s3://{BUCKET}/refused", endpointurl=s3.url)
    s3.refuse()
    try:
        project.run("dvc", "push", code=255, **KEYS)
        assert "access is refused; correct the credentials" in check(project, code=2, **KEYS)
        assert "there are no credentials; set AWS" in check(project, code=2)
        other.run("dvc", "pull", code=1, **KEYS)
        assert not (other.path / "results/table.csv").exists()
        assert "access is refused" in check(other, "--pull", code=2, **KEYS)
    finally:
        s3.refuse(False)
    assert s3.holds() == held
    assert project.made() == versions.second
    assert project.run("git", "status", "--porcelain") == ""


def closed_port() -> int:
    """A port on loopback where nothing listens."""
    with contextlib.closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_a_server_that_does_not_answer(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    address = f"http://127.0.0.1:{closed_port()}"
    project.remote(f"{address}/store")
    assert project.run("dvc", "push", code=1).count("\n") > 50, "the check may no longer be needed"
    for words in ((), ("--pull",)):
        assert f"({address}/store): there is no answer" in check(project, *words, code=2)
    project.remote("s3://shared/ctm", endpointurl=address)
    assert "(s3://shared/ctm): there is no answer" in check(project, code=2, **KEYS)
    assert project.made() == versions.second


def test_what_is_not_there(versions: Versions, tmp_path: Path) -> None:
    project = versions.copy(tmp_path / "project")
    assert "there is no remote; add one by `dvc remote add" in check(project, code=2)
    assert "there is no remote nowhere;" in check(project, "nowhere", code=2)
    (tmp_path / "file").touch()
    project.remote(str(tmp_path / "file" / "store"))
    assert "a part of the path is a file" in check(project, code=2)
    project.remote("gs://bucket/ctm")
    assert "requires 'dvc-gs' to be installed" in check(project, code=2)

    # A clone of a version that nobody pushed.
    other = project.clone(tmp_path / "other")
    other.remote(str(tmp_path / "empty"))
    assert "are neither here nor on store: run `dvc push` where" in check(other, code=2)
    assert not (tmp_path / "empty").exists(), "a check makes no folder"

    outside = Repository(tmp_path)
    said = outside.run(sys.executable, str(ROOT / CHECK), code=2)
    assert "not inside of a DVC repository" in said and said.count("\n") == 1
