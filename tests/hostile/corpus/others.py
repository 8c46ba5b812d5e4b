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
