"""The discriminator's shapes, counts, names and constants, on tensors without storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ctm_core import config
from ctm_core.training.discriminator import Branch, Discriminator
from ctm_core.verification import case
from ctm_core.verification.golden import SINGLE, Check, Golden, exact, leaves

RESOLUTION = 224


@case("discriminator", (SINGLE,), on_device=False)
def discriminator(golden: Golden) -> Iterator[Check]:
    """Every leaf of the file, for each size of images."""
    source, version = golden["source"], golden["timm"]
    inputs = sorted({key.split("/")[0] for key in golden.keys("input_.*")})
    for entry in inputs:
        side = int(entry.removeprefix("input_").split("x")[0])
        names = golden[f"{entry}/order_of_backbones"]
        with torch.device("meta"):
            section = config.Discriminator(backbones=names, resolution=RESOLUTION)
            model = Discriminator(section, 0, pretrained=False)
        ours = facts(model, side)
        keys = golden.keys(f"{entry}/.*")
        expected = {key.removeprefix(f"{entry}/"): golden[key] for key in keys}
        about = f"{entry} ({source}, timm {version})"
        yield exact(f"{about}: leaves", sorted(ours), sorted(expected))
        for key in expected:
            yield exact(f"{entry}/{key}", ours.get(key), expected[key])


def facts(model: Discriminator, side: int) -> dict[str, Any]:
    """What the file records of a discriminator fed with two images of a side, by its keys."""
    images = torch.empty(2, 3, side, side, device="meta")
    logits = model(images)
    branches = model.branches()
    modules = [m for b in branches.values() for m in (b.backbone, b.projection)]
    frozen = [p for module in modules for p in module.parameters()]
    parts = logits.split(logits.shape[1] // len(branches), dim=1)
    rows = [row for part in parts for row in part]
    values: dict[str, Any] = {
        "order_of_backbones": list(branches),
        "get_xl_feature_returns/len": len(rows),
        "get_xl_feature_returns/shapes": [list(row.shape) for row in rows],
        "trainable_params_in_feature_network": sum(p.numel() for p in frozen if p.requires_grad),
    }
    for name, branch in branches.items():
        values |= {f"{name}/{key}": value for key, value in _branch(branch, images).items()}
    return values


def _branch(branch: Branch, images: Tensor) -> dict[str, Any]:
    backbone, projection, heads = branch.backbone, branch.projection, branch.mini_discs
    shapes: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: list(out.shape)})
        )
        for parent, prefix in ((projection, "hooks"), (heads, "logits_shape_per_mini_disc"))
        for child, module in parent.named_children()
        for name in [f"{prefix}/{child}"]
    ]
    logits = branch(images)
    pyramid = branch.pyramid(images)
    for hook in hooks:
        hook.remove()
    downs = [len(head.main) - 1 for head in heads.children()]  # type: ignore[arg-type]
    trunk = backbone.trunk
    assert trunk is not None
    values: dict[str, Any] = {
        "normalisation/mean": list(backbone.mean),
        "normalisation/std": list(backbone.std),
        "feature_keys_out": {str(n): list(x.shape) for n, x in enumerate(pyramid)},
        "CHANNELS": list(projection.channels),
        # A head with n blocks is declared for a map of 8 x 2^n pixels, whatever it gets.
        "RESOLUTIONS_declared": [8 << count for count in downs],
        "logits_concat_shape": list(logits.shape),
        "projection_params": _shapes(dict(projection.named_parameters())),
        "backbone_param_count": _count(backbone) + _count(trunk),
        "discriminator_state": _shapes(heads.state_dict(prefix="mini_discs.")),
        "discriminator_modules": {
            f"mini_discs.{name}": f"{kind.__name__}({_options(module)})"
            for name, module in heads.named_modules()
            for kind in (nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU)
            if isinstance(module, kind)
        },
        "discriminator_param_count": _count(heads),
    }
    for level, channels in enumerate(backbone.channels):
        values[f"ccm_in_channels/layer{level}_ccm"] = channels
    if list(backbone.children()):
        values["vit_reassemble_params"] = _shapes(dict(backbone.named_parameters()))
        values["buffers_in_pretrained"] = [name for name, _ in trunk.named_buffers()]
    else:
        for level, group in enumerate(trunk.children()):
            values[f"backbone_layers/layer{level}"] = [
                kind for layer in group.children() for kind in _kinds(layer)
            ]
    return dict(leaves(values)) | shapes


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _kinds(layer: nn.Module) -> list[str]:
    """A layer's class; timm has since joined normalisation and activation in one."""
    joined = isinstance(layer, nn.BatchNorm2d) and hasattr(layer, "act")
    return ["BatchNorm2d", type(layer.act).__name__] if joined else [type(layer).__name__]


def _options(module: nn.Module) -> str:
    """A layer's options as newer versions of torch list them: with a normalisation's bias."""
    text = module.extra_repr()
    if isinstance(module, nn.BatchNorm2d) and "bias=" not in text:
        text = text.replace("affine=True,", f"affine=True, bias={module.bias is not None},")
    return text
