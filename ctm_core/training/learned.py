"""What a training changes, as the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training import optimizers
from ctm_core.training.adversary import Adversary


@dataclass(frozen=True, eq=False)
class Learned:
    """Networks and optimisers, whose weights and moments are a run's state after a step."""

    student: Trajectory
    optimizer: torch.optim.Optimizer
    averages: Mapping[float, Trajectory]  #: EMAs by decay
    adversary: Adversary | None
    modules: nn.ModuleDict  #: of the objective

    def sections(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors by the name of their file in a checkpoint."""
        sections: dict[str, Mapping[str, Tensor]] = {
            "student": self.student.state_dict(),
            "optimizer": optimizers.flatten(self.optimizer),
            "discriminator": {},
        }
        if self.adversary is not None:
            sections["discriminator"] = self.adversary.discriminator.state_dict()
            sections["discriminator_optimizer"] = optimizers.flatten(self.adversary.optimizer)
        if self.modules:
            sections["modules"] = self.modules.state_dict()
        for rate, average in self.averages.items():
            sections[f"ema_{rate}"] = average.state_dict()
        return sections

    def load(self, sections: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what :meth:`sections` returned."""
        self.student.load_state_dict(sections["student"])
        for rate, average in self.averages.items():
            average.load_state_dict(sections[f"ema_{rate}"])
        if self.modules:
            self.modules.load_state_dict(sections["modules"])
        optimizers.restore(self.optimizer, sections["optimizer"])
        if self.adversary is not None:
            self.adversary.discriminator.load_state_dict(sections["discriminator"])
            optimizers.restore(self.adversary.optimizer, sections["discriminator_optimizer"])

    def norm(self) -> Tensor:
        """Of the weights that are trained, (): not finite if one of them is not."""
        weights = [*self.student.parameters(), *self.modules.parameters()]
        if self.adversary is not None:
            weights += self.adversary.discriminator.trained()
        return torch.nn.utils.get_total_norm([p.detach() for p in weights], foreach=True)
