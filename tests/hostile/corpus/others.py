"""Files that are something else, or another network."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import torch
from hostile.corpus.make import (
    Payload,
    edm_network,
    torch_bytes,
    touch,
    valid_pickle,
)
from hostile.corpus.register import fixed, hostile


def legacy_tar(canary: Path) -> bytes:
    """What torch before 0.2 wrote: a tar of pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../../evil"):
            data = pickle.dumps(Payload(os.system, touch(canary)))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


hostile("old-torch-tar", "is a tar archive")(legacy_tar)


def safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})

for _title, _reason, _data in (
    ("empty", "is empty", b""),
    ("one-byte", "not a pickle|truncated", b"\x80"),
    ("stop", "a value is missing", b"."),
    ("zeros", "begins with zeros", b"\0" * 5000),
    ("text", "is not a network file", b"weights to follow by mail\n"),
    ("text-that-starts-like-a-global", "not a network file", b"config of the\nrun: see below\n"),
    ("json", "is a text file", b'{"error": "quota exceeded"}'),
    ("yaml", "is a text file", b"---\nname: edm\n"),
    (
        "web-page",
        "is a web page",
        b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning",
    ),
    ("web-page-after-blanks", "is a web page", b"\xef\xbb\xbf\r\n  <HTML><body>404</body></HTML>"),
    ("xml", "is a web page", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
    (
        "git-lfs-pointer",
        "is a Git-LFS pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 99\n",
    ),
    ("safetensors-lying-length", "header is longer than the file", safetensors(b"{}", 1 << 32)),
    ("safetensors-lying-offsets", "is a safetensors file", safetensors(_HEADER.encode())),
    ("gzip", "is compressed", gzip.compress(valid_pickle())),
    ("numpy", "is a NumPy array", npy()),
    ("hdf5", "is an HDF5", b"\x89HDF\r\n\x1a\n" + b"\0" * 100),
    ("png", "is not a network file", b"\x89PNG\r\n\x1a\n" + b"\0" * 100),
    ("elf", "is not a network file", b"\x7fELF" + b"\1" * 100),
    ("script", "is not a network file", b"#!/bin/sh\ntouch /tmp/canary\n"),
    ("protocol-99", "no pickle protocol 99", b"\x80\x63N."),
    ("number", "holds no network", pickle.dumps(3)),
    ("list", "holds no network", pickle.dumps([1, 2])),
    ("optimiser", "is the state of an optimiser", torch_bytes({"state": {}, "param_groups": []})),
    (
        "discriminator",
        "holds a discriminator",
        torch_bytes({"deit.mini_discs.0.w": torch.ones(1)}),
    ),
    (
        "other-network",
        "no network of a known kind",
        torch_bytes({"features.0.weight": torch.ones(1)}),
    ),
    (
        "nested-state",
        "known kind .*model.a.*save the network's own",
        torch_bytes({"model": {"a": torch.ones(1)}}),
    ),
    ("no-state", "holds an empty state dict", torch_bytes({})),
    ("only-a-tensor", "not a network's state dict", torch_bytes(torch.ones(3))),
    (
        "integers",
        "holds model.map_layer1.bias as int64",
        torch_bytes(
            {
                k: v.long() if k.endswith("map_layer1.bias") else v
                for k, v in edm_network()[0].items()
            }
        ),
    ),
):
    fixed(_title, _reason, _data)


# -- names that claim sizes

_EDM = {f"model.{layer}.weight": torch.ones(16, 4) for layer in ("map_layer0", "map_layer1")}


def claiming(*names: str) -> bytes:
    """A few tensors of EDM's form, of which further names tell sizes."""
    state = _EDM | {name: torch.ones(4, 4, 3, 3) for name in names}
    state["model.enc.8x8_conv.weight"] = torch.ones(4, 3, 3, 3)
    return torch_bytes(state)


def levels(count: int, blocks: int) -> bytes:
    """Names of OpenAI's form for so many levels of so many blocks."""
    state = {"time_embed.0.weight": torch.ones(128, 32)}
    for index in range(1, count * (blocks + 1)):
        state[f"input_blocks.{index}.0.in_layers.2.weight"] = torch.ones(1)
        state[f"input_blocks.{index}.0.out_layers.3.weight"] = torch.ones(64, 1, 1, 1)
    for index in range(count - 1):
        state[f"output_blocks.{index}.1.in_layers.2.weight"] = torch.ones(1)
    return torch_bytes(state)


for _number in (64, 9_999, 99_999):
    fixed(
        f"block-number-{_number}",
        "num_blocks: Input should be less than or equal to 64",
        claiming(
            f"model.enc.8x8_block{_number}.conv0.weight", "model.enc.8x8_block0.conv0.weight"
        ),
    )
fixed(
    "block-number-63",
    "is not the EDM teacher .* that it seems to be: it lacks",
    claiming("model.enc.8x8_block63.conv0.weight", "model.enc.8x8_block0.conv0.weight"),
)
fixed(
    "side-of-99999",
    "is for images of 99999 pixels",
    torch_bytes(
        _EDM
        | {"model.enc.99999x99999_conv.weight": torch.ones(4, 3, 3, 3)}
        | {"model.enc.99999x99999_block0.conv0.weight": torch.ones(4, 4, 3, 3)}
    ),
)
fixed(
    "width-of-8000",
    "model_channels: Input should be less than or equal to 4096",
    torch_bytes(
        {
            "model.map_layer0.weight": torch.ones(8000, 1),
            "model.enc.8x8_conv.weight": torch.ones(8000, 3, 1, 1),
            "model.enc.8x8_block0.conv0.weight": torch.ones(8000, 1, 1, 1),
        }
    ),
)
fixed("levels-400", "channel_mult: Tuple should have at most", levels(400, 1))
fixed("blocks-2000-per-level", "num_blocks: Input should be less", levels(2, 2_000))
fixed("networks-5000", "holds 5000 networks", torch_bytes({str(i): _EDM for i in range(5_000)}))
fixed(
    "name-with-escapes",
    r"known kind \(its first tensor is a\\x1b\[2J\\nb\)",
    torch_bytes({"a\x1b[2J\nb": torch.ones(1)}),
)
fixed(
    "entry-with-escapes",
    r"holds 2 networks \(.*a\\x1b\[2J.*\); choose one with --entry",
    torch_bytes({"a\x1b[2J": _EDM, "b": _EDM}),
)
