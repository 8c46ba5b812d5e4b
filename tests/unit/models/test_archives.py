"""Every form of torch files is read alike; what is no file is refused."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from fixtures import foreign as made_by_others
from fixtures.edm_pickle import edm_pickle
from fixtures.foreign import DDPMPP, edm_kwargs, equal, saved
from fixtures.tiny import Ctm

from ctm_core.models import foreign
from ctm_core.models.foreign import Refusal
from ctm_core.models.foreign.archives import opened
from ctm_core.models.foreign.edm import find_network
from ctm_core.runtime.files import sha256_file


def test_forms_of_torch_files(tmp_path: Path) -> None:
    """The old format, half precision and a wrapper's prefix change nothing but the bytes."""
    made = made_by_others.model(DDPMPP, time_s=True).half().float()
    state = made.state_dict()
    half = {name: value.half() for name, value in state.items()}
    wrapped = {f"module.{name}": value for name, value in state.items()}
    plain = saved(tmp_path / "a", state)
    for path in (
        plain,
        saved(tmp_path / "b", state, _use_new_zipfile_serialization=False),
        saved(tmp_path / "c", half),
        saved(tmp_path / "d", wrapped),
    ):
        foreign.convert(path, tmp_path / "made")
        assert equal(tmp_path / "made/weights.safetensors", made), path.name


def test_strided_tensors(tmp_path: Path) -> None:
    """A transposed view of a larger storage is read as what it shows."""
    made = made_by_others.model(DDPMPP)
    state = dict(made.state_dict())
    name = "model.map_layer1.weight"
    larger = torch.zeros(70, 40)
    view = larger.t()[4:36, 5:37]
    view.copy_(state[name])
    for number, options in enumerate(({}, {"_use_new_zipfile_serialization": False})):
        path = saved(tmp_path / str(number), state | {name: view}, **options)
        foreign.convert(path, tmp_path / "made")
        assert equal(tmp_path / "made/weights.safetensors", made)


def test_shared_storages(tmp_path: Path) -> None:
    """Tensors of one storage, which a weight file cannot share, are copied."""
    made = made_by_others.model(DDPMPP)
    state = dict(made.state_dict())
    flat = torch.randn(64)
    names = ["model.map_layer0.bias", "model.map_layer1.bias"]
    state |= {names[0]: flat[:32], names[1]: flat[16:48]}
    made.load_state_dict(state)
    for number, options in enumerate(({}, {"_use_new_zipfile_serialization": False})):
        path = saved(tmp_path / str(number), state, **options)
        foreign.convert(path, tmp_path / "made")
        assert equal(tmp_path / "made/weights.safetensors", made)


@pytest.mark.parametrize("form", ["archive", "legacy", "pickle"])
def test_what_is_hashed_is_what_is_read(form: str, tmp_path: Path) -> None:
    """A file that another one replaces meanwhile stays open; one that is written to is refused."""
    path = tmp_path / "file"
    made = made_by_others.model(DDPMPP)
    if form == "pickle":
        path.write_bytes(edm_pickle(made.state_dict(), edm_kwargs(made)))
    else:
        saved(path, made.state_dict(), _use_new_zipfile_serialization=form == "archive")
    os.utime(path, (1e9, 1e9))
    digest = sha256_file(path)
    other = saved(tmp_path / "other", made_by_others.model(DDPMPP, seed=1).state_dict())
    with opened(path) as file:
        state = find_network(file.value).tensors if form == "pickle" else file.value
        os.replace(other, path)
        tensors = file.tensors(state)
        assert file.sha256 == digest
        assert all(torch.equal(tensors[k], value) for k, value in made.state_dict().items())
    with opened(path) as file:
        with path.open("r+b") as written:
            written.write(b"P")
        with pytest.raises(Refusal, match="was changed while it was read"):
            file.tensors(file.value)


def test_no_regular_file(tmp_path: Path, ctm: Ctm) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for path, reason in (
        (tmp_path / "pipe", "is a named pipe, not a file"),
        (tmp_path / "socket", "is a socket, not a file"),
        (Path("/dev/zero"), "is a device, not a file"),
        (tmp_path / "none", "is missing"),
        (tmp_path, "is a directory"),
    ):
        done = ctm("convert", path, "--output", tmp_path / "made")
        assert (done.code, reason in done.stderr) == (2, True), done.stderr
    server.close()
