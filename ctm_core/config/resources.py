"""Resources of an experiment's jobs on a cluster; without one they have no effect."""

from __future__ import annotations

from pydantic import Field

from ctm_core.config._section import Few, Section


class Share(Section):
    """One kind of job."""

    gpus: int = Field(0, ge=0, le=1024)
    memory_gb: int = Field(4, ge=1, le=100_000)
    hours: float = Field(
        4.0, ge=1e-3, le=100_000, description="after which a cluster stops the job"
    )

    @property
    def limits(self) -> dict[str, int]:
        """By the names that Snakemake's executors know; runtime is in minutes, gpu never 0."""
        gpu = {"gpu": self.gpus} if self.gpus else {}
        return gpu | {
            "mem_mb": 1000 * self.memory_gb,
            "runtime": max(1, round(60 * self.hours)),
        }


class TrainingShare(Share):
    """A training, which may be several processes on one machine."""

    processes: Few = Field(
        1, description="that share a batch, one per GPU, and the experiment's threads"
    )


class Resources(Section):
    """Resources by kind of job."""

    training: TrainingShare = TrainingShare()
    evaluation: Share = Share()
