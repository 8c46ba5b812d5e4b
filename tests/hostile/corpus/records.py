"""EDM records with live source text, and networks that are not what they say."""

from __future__ import annotations

from pathlib import Path

import torch
from fixtures.edm_pickle import edm_pickle
from hostile.corpus.make import (
    call,
    dictionary,
    edm_network,
    module,
    network,
    program,
    record,
    text,
    touch,
    valid_pickle,
)
from hostile.corpus.register import fixed, hostile


def source(canary: Path) -> bytes:
    return text(f"import os\nos.system({touch(canary)!r})\nopen({str(canary)!r}, 'w')\n")


@hostile(
    "live-source-and-no-network", "holds an object Evil, which is not a preconditioned network"
)
def _(canary: Path) -> bytes:
    return program(dictionary(ema=record(module(), "Evil", module_src=source(canary))))


@hostile("live-source-without-ema", r"under the key 'ema' \(it holds: net\)")
def _(canary: Path) -> bytes:
    return program(dictionary(net=record(module(), "Net", module_src=source(canary))))


@hostile("live-source-in-a-reduce", r"names the global posix\.system,")
def _(canary: Path) -> bytes:
    return program(
        dictionary(ema=record(call("posix", "system", source(canary)), module_src=source(canary)))
    )


fixed(
    "record-of-a-function", "in a way that EDM", program(record(module(), type=text("function")))
)
fixed("record-of-version-99", "another version", program(record(module(), version=b"K\x63")))
fixed("record-without-state", "without class name and state", program(record(text("state"))))
fixed("record-without-tables", "without _modules", program(dictionary(ema=record(b"}"))))
fixed(
    "record-with-a-call-as-module",
    "holds no module as model.evil",
    network(record(module(modules=dictionary(evil=text("os.system"))))),
)
fixed(
    "record-with-a-text-as-parameter",
    "holds no tensor as model.weight",
    network(record(module(parameters=dictionary(weight=text("x"))))),
)
fixed(
    "other-preconditioning",
    "holds a VPPrecond network",
    valid_pickle().replace(text("EDMPrecond"), text("VPPrecond")),
)
fixed(
    "lying-arguments",
    r"says model_channels = 8 in its constructor arguments, but its tensors are those of 4",
    edm_pickle(edm_network()[0], edm_network()[1] | {"model_channels": 8}),
)
fixed(
    "lying-class",
    "holds a DhariwalUNet whose tensors are those of a SongUNet",
    edm_pickle(edm_network()[0], edm_network()[1] | {"model_type": "DhariwalUNet"}),
)
fixed(
    "foreign-tensor",
    r"holds the unknown model\.backdoor",
    edm_pickle(edm_network()[0] | {"model.backdoor": torch.ones(1)}, edm_network()[1]),
)
fixed(
    "missing-tensor",
    r"lacks model\.map_layer1\.bias",
    edm_pickle(
        {k: v for k, v in edm_network()[0].items() if k != "model.map_layer1.bias"},
        edm_network()[1],
    ),
)
fixed(
    "tensor-name-with-a-line-end",
    "a name that no network's tensor has",
    edm_pickle(edm_network()[0] | {"model.a\nctm: all is well": torch.ones(1)}, edm_network()[1]),
)
fixed(
    "not-a-number",
    "holds NaN or infinity in model.map_layer1.bias",
    edm_pickle(
        edm_network()[0] | {"model.map_layer1.bias": torch.full((16,), float("nan"))},
        edm_network()[1],
    ),
)
