"""Building blocks: valid files to spoil, and opcodes."""

from __future__ import annotations

import io
import struct
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fixtures.edm_pickle import edm_pickle

from ctm_core import config
from ctm_core.models import weight_file

MAGIC = 0x1950A86A20F9469CFC6C


@cache
def edm_network() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State and constructor arguments of the smallest EDM teacher."""
    network = config.Network(
        model_channels=4, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,)
    )
    torch.manual_seed(0)
    model = weight_file.build_model(
        network=network,
        diffusion=config.Diffusion(),
        resolution=8,
        channels=3,
        label_dim=0,
        time_s=False,
    )
    kwargs = {
        "img_resolution": 8,
        "img_channels": 3,
        "label_dim": 0,
        "model_type": "SongUNet",
        "model_channels": 4,
        "channel_mult": [1, 1],
        "num_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.13,
    }
    return dict(model.state_dict()), kwargs


@cache
def valid_pickle() -> bytes:
    """An EDM pickle that is fine."""
    return edm_pickle(*edm_network())


@cache
def valid_archive() -> bytes:
    """A torch archive that is fine: a ctm-cifar10 student."""
    network = config.Network(
        model_channels=4, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,)
    )
    torch.manual_seed(0)
    model = weight_file.build_model(
        network=network,
        diffusion=config.Diffusion(),
        resolution=8,
        channels=3,
        label_dim=0,
        time_s=True,
    )
    return torch_bytes(model.state_dict())


@cache
def valid_legacy() -> bytes:
    """A torch file of the old format that is fine: the teacher's state."""
    return torch_bytes(edm_network()[0], _use_new_zipfile_serialization=False)


def torch_bytes(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def program(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def dictionary(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def tuple_of(*values: int) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"


def record(state: bytes, name: str = "EDMPrecond", **meta: bytes) -> bytes:
    """An EDM object with this state."""
    entries = {
        "type": text("class"),
        "version": b"K\x06",
        "module_src": text(""),
        "class_name": text(name),
        "state": state,
    }
    return call(
        "torch_utils.persistence", "_reconstruct_persistent_obj", dictionary(**entries | meta)
    )


def module(parameters: bytes = b"}", modules: bytes = b"}", **more: bytes) -> bytes:
    return dictionary(_parameters=parameters, _buffers=b"}", _modules=modules, **more)


def network(inner: bytes) -> bytes:
    """A pickle whose network has ``inner`` as its raw network."""
    return program(dictionary(ema=record(module(modules=dictionary(model=inner)))))


def storage_bytes(numel: int = 4) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.zeros(numel)._typed_storage()
        return torch_bytes(storage, _use_new_zipfile_serialization=False)


def binary(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def storage(data: bytes) -> bytes:
    return call("torch.storage", "_load_from_bytes", binary(data))


def tensor(shape: bytes, stride: bytes, offset: bytes = b"K\x00", numel: int = 4) -> bytes:
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage(storage_bytes(numel)),
        offset,
        shape,
        stride,
        b"\x89",
        hooks,
    )


class Payload:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touch(canary: Path) -> str:
    return f"touch {canary}"
