"""A model that jumps: what it is trained for, or which released file it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ctm_core.config._section import (
    Count,
    Factor,
    Later,
    LogMean,
    LogStd,
    Name,
    Positive,
    Rate,
    Section,
    Seeds,
)
from ctm_core.config.distance_traits import DistanceName, distance_traits
from ctm_core.config.gan import Adversarial
from ctm_core.config.objective_traits import (
    OBJECTIVES,
    ObjectiveName,
    ObjectiveTraits,
    Value,
    traits,
)
from ctm_core.config.optimization import Training

Variant = Literal["released", "printed"]

#: Draws of (k, i, j) at most, all of which `ctm plan` goes through: 200 points with all steps.
MOST_DRAWS = 2**23

#: Keys of CTM's loss, which objectives with another loss do not have.
CTM_LOSS = (
    "matching",
    "grid_points",
    "max_heun_steps",
    "solver",
    "target_inner",
    "target_ema",
    "scratch_solver",
    "distance",
    "perceptual",
    "dsm",
    "adversarial",
    "lambda_scope",
)


class Perceptual(Section):
    """How images are fed to a perceptual network."""

    resize: int = Field(
        ge=32, le=2048, description="side; 224 in the paper, max(32, side) for small images"
    )
    pooling: Literal["average", "max"] | None = Field(
        None,
        description="of lpips_vgg, and only there: average (null) as CTM was released, or max as "
        "VGG16 was trained",
    )


class Dsm(Section):
    """Denoising score matching beside the consistency loss (paper section 3.2)."""

    enabled: bool = True
    adaptive: bool = Field(True, description="lambda from the ratio of gradient norms")
    weight: Factor = Field(1.0, description="factor on lambda, or lambda itself")
    p_mean: LogMean = -1.2
    p_std: LogStd = 1.2
    uniform_max: float = Field(0.7, ge=1e-3, le=1, description="upper end of xi; 0.7 as released")
    group: int = Field(
        2, ge=2, le=2**20, description="the first half of each group draws log-normally"
    )


class Fork(Section):
    """The run whose exported weights a training starts from."""

    model: Name = Field(description="another model of this experiment")
    step: Positive = Field(description="one of its snapshots, or its last step")


class _OfObjective(Section):
    """A model with an objective."""

    objective: ObjectiveName = Field("ctm", description="a file of ctm_core/training/objectives")

    @property
    def traits(self) -> ObjectiveTraits:
        """What the objective says of itself."""
        return traits(self.objective)


class Student(_OfObjective):
    """A model that is trained, from a teacher or without one."""

    variant: Variant = Field(
        "released", description="how what paper and released code do differently is done"
    )
    matching: Literal["soft", "local", "global"] = "soft"
    grid_points: int = Field(18, ge=3, le=2048, description="N: points of the time grid")
    max_heun_steps: Positive | None = Field(None, description="M: upper end of k; null: N - 1")
    solver: Later[Literal["heun", "ab2", "dpmpp_2m"]] = Field(
        "heun",
        description="of the teacher's ODE; all are of second order, and all but heun evaluate the "
        "teacher once per step after the first",
    )
    target_inner: Literal["model", "ema"] | None = Field(
        None,
        description="weights of the target's inner map; null: model if released, else ema",
    )
    target_ema: Rate = Field(0.999, description="decay of the stop-gradient network")
    scratch_solver: Literal["jump", "heun"] | None = Field(
        None,
        description="the solver without a teacher: one jump of the EMA, or Heun steps on the "
        "EMA's g; null: jump if released, else heun",
    )
    distance: DistanceName = Field("l2", description="a file of ctm_core/training/distances")
    perceptual: Perceptual | None = Field(
        None, description="for a perceptual distance, and only there"
    )
    dsm: Dsm = Dsm()
    adversarial: Adversarial | None = Field(None, description="null: no discriminator")
    lambda_scope: Literal["microbatch", "global"] = Field(
        "microbatch",
        description="gradients whose norms make lambda: of one micro-batch and process as "
        "released, or of the whole batch",
    )
    initial: Literal["teacher", "random"] | None = Field(
        "teacher", description="left out: random for objectives without a teacher"
    )
    init_from: Fork | None = Field(
        None, description="start from another model's exports, with fresh optimisers"
    )
    weak_teacher: Later[Positive | None] = Field(
        None,
        description="the teacher's snapshot that guides it away from its mistakes, by its step; "
        "null: no guidance",
    )
    settings: Later[dict[Name, Value]] = Field(
        {}, max_length=100, description="the objective's own keys: `settings` in its TRAITS"
    )
    seeds: Later[Seeds | None] = Field(
        None, description="training seeds of this model; null: the experiment's"
    )
    training: Training

    @model_validator(mode="before")
    @classmethod
    def _by_objective(cls, data: Any) -> Any:
        # So that the resolved section says what happens, also where the file says nothing.
        if not isinstance(data, dict) or data.get("objective", "ctm") not in OBJECTIVES.names():
            return data
        name = data.get("objective", "ctm")
        known = traits(name)
        if not known.ctm_loss and (given := [key for key in CTM_LOSS if key in data]):
            raise ValueError(
                f"the objective {name} has a loss of its own; leave {', '.join(given)} out"
            )
        filled: dict[str, Any] = {}
        if not (known.matching and known.ctm_loss):
            filled["matching"] = "local"
        if not (known.dsm and known.ctm_loss):
            filled["dsm"] = {"enabled": False}
        filled |= data
        if filled.get("initial") is None:
            start = known.initial or ("teacher" if known.teacher else "random")
            filled["initial"] = start if filled.get("init_from") is None else None
        own = filled.get("settings") or {}
        if known.settings and isinstance(own, dict):
            defaults = {key: setting.default for key, setting in known.settings.items()}
            filled["settings"] = defaults | {
                key: known.settings[key].typed(value) if key in known.settings else value
                for key, value in own.items()
            }
        return filled

    def _left_out(self) -> Iterator[str]:
        yield from super()._left_out()
        if not self.traits.ctm_loss:
            yield from CTM_LOSS

    def _problems(self) -> Iterator[str]:
        known = self.traits
        if self.max_heun_steps is not None and self.max_heun_steps > self.grid_points - 1:
            yield "max_heun_steps must be at most grid_points - 1"
        draws = self.grid_points**2 * self.heun_steps
        if draws > MOST_DRAWS:
            yield (
                f"grid_points: {self.grid_points} points and up to {self.heun_steps} solver steps "
                f"make some {draws:,} draws; at most {MOST_DRAWS:,}: set max_heun_steps"
            )
        if not known.matching and (self.matching != "local" or self.max_heun_steps is not None):
            yield (
                f"the objective {self.objective} goes one step of the grid: leave matching and "
                "max_heun_steps out"
            )
        if self.solver != "heun" and not known.teacher:
            yield f"the objective {self.objective} integrates no teacher; leave solver out"
        if self.solver != "heun" and self.heun_steps == 1:
            yield (
                f"solver: {self.solver} starts with a Heun step, and here every solve is a single "
                "step; leave it out"
            )
        if not known.target_inner and self.target_inner is not None:
            yield (
                f"the objective {self.objective} has no inner target map; leave target_inner out"
            )
        if not known.dsm and self.dsm.enabled:
            yield f"the objective {self.objective} has no dsm term; leave dsm out"
        if not known.scratch_solver and self.scratch_solver is not None:
            yield (
                f"the objective {self.objective} does not solve with its own average; leave "
                "scratch_solver out"
            )
        if self.matching == "global" and self.target_inner is not None:
            yield "global matching has no inner target map; leave target_inner out"
        if self.init_from is not None and self.initial is not None:
            yield "init_from says where the weights come from; leave initial out"
        yield from self._check_settings()
        if self.weak_teacher is not None and known.second != "weak_teacher":
            yield f"the objective {self.objective} has no guidance; leave weak_teacher out"
        if known.second == "init" and self.init_from is None:
            yield (
                f"the objective {self.objective} keeps the model that it starts from; name it by "
                "init_from"
            )
        if known.jvp == "differentiated" and self.training.recompute:
            yield (
                f"training.recompute: the objective {self.objective} differentiates a derivative "
                "in forward mode, whose blocks cannot be computed again; set it to false"
            )
        if self.training.micro_batch == "auto":
            yield from self._check_auto()
        yield from self._check_distance()

    def _check_settings(self) -> Iterator[str]:
        known = self.traits.settings
        for key, value in self.settings.items():
            if key not in known:
                own = f"it has {', '.join(known)}" if known else "it has none"
                yield f"settings.{key}: the objective {self.objective} has no such setting; {own}"
            elif (problem := known[key].problem(value)) is not None:
                yield f"settings.{key} {problem}, not {value!r}"
        for key in ("batch_size", "micro_batch"):
            size = getattr(self.training, key)
            if isinstance(size, int) and size % self.group:
                yield (
                    f"training.{key} must be a multiple of settings.{self.traits.group}, "
                    f"{self.group}, because as many samples share a draw; it is {size}"
                )

    def _check_auto(self) -> Iterator[str]:
        if self.adversarial is not None:
            yield (
                "training.micro_batch: batch norm sees one micro-batch at a time, so auto would "
                "decide what is trained; set a number"
            )
        if self.lambda_scope == "microbatch" and self.dsm.enabled and self.dsm.adaptive:
            yield (
                "training.micro_batch: lambda is of one micro-batch, so auto would decide what is "
                "trained; set a number, or lambda_scope: global"
            )

    def _check_distance(self) -> Iterator[str]:
        known = distance_traits(self.distance)
        if known.perceptual and self.perceptual is None:
            yield (
                f"the distance {self.distance} needs perceptual.resize: 224 as in the paper, or "
                "max(32, side)"
            )
        if not known.perceptual and self.perceptual is not None:
            yield f"perceptual belongs to perceptual distances, not to {self.distance}"
        pooling = None if self.perceptual is None else self.perceptual.pooling
        if pooling is not None and not known.pooling:
            yield f"perceptual.pooling cannot be chosen for {self.distance}; leave it out"

    @property
    def heun_steps(self) -> int:
        """M, the largest number of steps of the solver."""
        if self.matching == "local":
            return 1
        return self.grid_points - 1 if self.max_heun_steps is None else self.max_heun_steps

    @property
    def inner(self) -> Literal["model", "ema"]:
        """Weights of the target's inner map: live as released, EMA as printed (eq. 3)."""
        if not self.traits.target_inner:
            return "ema"
        if self.target_inner is not None:
            return self.target_inner
        return "model" if self.variant == "released" else "ema"

    @property
    def own_solver(self) -> Literal["jump", "heun"]:
        """The solver of ``ctm_scratch``: a jump as released, Heun as printed (section 5.2)."""
        if self.scratch_solver is not None:
            return self.scratch_solver
        return "jump" if self.variant == "released" else "heun"

    @property
    def adversarial_loss(self) -> Literal["hinge", "log"]:
        """The adversarial loss: hinge as released, logarithms as printed (section 3.3)."""
        if self.adversarial is not None and self.adversarial.loss is not None:
            return self.adversarial.loss
        return "hinge" if self.variant == "released" else "log"

    @property
    def group(self) -> int:
        """Consecutive samples that share a draw, which no cut of a batch may part."""
        return 1 if self.traits.group is None else int(self.settings[self.traits.group])

    @property
    def uses_teacher(self) -> bool:
        """Whether training reads a teacher: to integrate it, or to start from it."""
        return self.traits.teacher or self.initial == "teacher"

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of the external files that training reads."""
        networks = () if self.adversarial is None else self.adversarial.assets
        return (*distance_traits(self.distance).assets, *networks)


class Released(_OfObjective):
    """A model of somebody else, converted from its file: sampled and scored, not trained."""

    weights: Name = Field(description="the file's name in config/assets.yaml")
    objective: ObjectiveName = Field("ctm", description="what it was trained for")
    step: Count = Field(0, description="of its training; 0: unknown")


def _kind(value: Any) -> str:
    released = isinstance(value, Released) or (isinstance(value, dict) and "weights" in value)
    return "<released>" if released else "<student>"


#: One entry of ``models``; the key ``weights`` tells the two apart.
Model = Annotated[
    Annotated[Student, Tag("<student>")] | Annotated[Released, Tag("<released>")],
    Discriminator(_kind),
]
