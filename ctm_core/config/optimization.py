"""One optimisation: length, rate, averages, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, field_validator

from ctm_core.config._section import (
    BatchSize,
    Count,
    Factor,
    Later,
    LearningRate,
    Positive,
    Rate,
    Section,
)

#: Keys of a training section that cannot change the final weights, so are left out of its hash.
WITHOUT_EFFECT = (
    "keep",
    "snapshots",
    "log_every",
    "preview_every",
    "checkpoint_every",
    "recompute",
)


#: From this width and side on, bf16 gains by channels_last; fp32 gains at every size.
WIDE, LARGE = 128, 32


def suits_channels_last(width: int, side: int | None, precision: str) -> bool:
    """What `channels_last: auto` means for a network of a width on images of a side, if known.

    The measurements behind it are the rows `layout` of benchmarks/bench.py.
    """
    return precision == "fp32" or (width >= WIDE and (side is None or side >= LARGE))


class Training(Section):
    """Length, rate, averages and outputs of one optimisation."""

    steps: Positive = Field(description="optimiser steps")
    batch_size: BatchSize = Field(description="samples per step, over all processes")
    micro_batch: Annotated[BatchSize, Strict()] | Literal["auto"] | None = Field(
        None,
        description="samples per forward pass; null: all; auto: as many as memory allows, chosen "
        "when a run begins",
    )
    accumulation: Literal["mean", "sum"] = Field(
        "mean", description="gradients over micro-batches; sum as released"
    )
    learning_rate: LearningRate = 4e-4
    warmup_steps: Count = Field(0, description="linear warm-up of the learning rate")
    decay_steps: Count = Field(0, description="linear decay to zero over the last steps")
    optimizer: Literal["radam", "adam"] = "radam"
    kernel: Literal["foreach", "fused", "loop"] = Field(
        "foreach", description="how optimiser and EMA walk over the tensors"
    )
    ema: tuple[Rate, ...] = Field(
        (0.999,), min_length=1, max_length=16, description="decay per step"
    )
    ema_rampup: Factor | None = Field(
        None, description="half-life of the EMA at most this share of the steps done"
    )
    evaluated_ema: Rate | None = Field(None, description="null: the first of `ema`")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32", description="auto: bf16 where the processor or GPU has instructions for it"
    )
    frozen_precision: Later[Literal["bf16"] | None] = Field(
        None,
        description="of teacher, distance and feature networks, beside a student in fp32; null: "
        "as `precision`",
    )
    channels_last: Annotated[bool, Strict()] | Literal["auto"] = Field(
        False, description="memory layout; auto: by width, image size and precision"
    )
    attention: Later[Literal["math", "sdpa"]] = Field(
        "math", description="the formula as written, or torch's fused kernels"
    )
    tf32: Later[bool] = Field(
        False,
        description="fp32 products on the TF32 units of a GPU, which round inputs to 10 bits",
    )
    compile: Later[bool] = Field(
        False,
        description="networks through torch.compile, maps padded to a few row counts; changes "
        "rounding alone",
    )
    compile_mode: Later[
        Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None
    ] = Field(None, description="of torch.compile; null: reduce-overhead (CUDA graphs) on a GPU")
    recompute: Later[bool] = Field(
        False,
        description="norms and activations of the blocks once more in the backward pass instead "
        "of keeping them: the same numbers in less memory",
    )
    checkpoint_every: Positive = 1000
    keep: Positive = Field(2, description="checkpoints kept in the run folder")
    snapshots: tuple[Positive, ...] = Field(
        (), max_length=1000, description="steps whose weights are exported"
    )
    log_every: Positive = 10
    preview_every: Count = Field(0, description="steps between sample grids; 0: none")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_half(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError(
                "fp16 is refused: CTM's fp16 default collapsed when others retrained it; "
                "use bf16 or fp32"
            )
        return value

    def _problems(self) -> Iterator[str]:
        if self.evaluated_ema is not None and self.evaluated_ema not in self.ema:
            yield f"evaluated_ema must be one of ema = {list(self.ema)}"
        if self.micro_batch == "auto" and self.accumulation == "sum":
            yield "micro_batch: auto would decide how large a sum is; set a number of samples"
        elif isinstance(self.micro_batch, int) and self.batch_size % self.micro_batch:
            yield "micro_batch must divide batch_size"
        if self.precision == "bf16" and self.frozen_precision is not None:
            yield "precision bf16 is that of frozen networks too; leave frozen_precision out"
        if self.compile_mode is not None and not self.compile:
            yield "compile_mode says how networks are compiled; set compile to true"
        if any(step > self.steps for step in self.snapshots):
            yield "snapshots lie beyond the last step"

    def shared(self, processes: int) -> tuple[int, int]:
        """Samples of a batch that each of several processes has, and those of a micro-batch.

        As long as `auto` is not chosen it counts as all.
        """
        share = self.batch_size // processes
        return share, min(self.micro_batch, share) if isinstance(self.micro_batch, int) else share

    @property
    def final_ema(self) -> float:
        """Decay of the EMA that is exported and evaluated."""
        return self.ema[0] if self.evaluated_ema is None else self.evaluated_ema
