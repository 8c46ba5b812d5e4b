"""A small convolutional classifier per data set; its penultimate activations are the features.

Three 3×3 convolutions with SiLU (32, 64, 64 channels), mean over the remaining positions, one
linear layer. The 64 means are the features: few enough that a thousand samples give a covariance
of full rank. The weights come with the project, one file
``ctm_core/models/features/weights/classifier_<dataset>.safetensors`` with the record of its
training as metadata, so that everyone's distances compare.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ctm_core.config.datasets import names, traits
from ctm_core.config.protocols import Protocol
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness
from ctm_core.models.features._extractor import FeatureExtractor, Further
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import load_tensors, save_tensors, sha256_file

DIM = 64
BATCH_SIZE = 256
PREFIX = "classifier_"


class Recipe(NamedTuple):
    """Length and rate of a classifier's training."""

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3


class Classifier(nn.Module):
    """The network for a data set; images above 16 pixels are halved twice, smaller ones once."""

    def __init__(self, resolution: int, channels: int, classes: int) -> None:
        super().__init__()
        first = 2 if resolution > 16 else 1
        self.conv1 = nn.Conv2d(channels, 32, 3, stride=first, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(64, DIM, 3, padding=1)
        self.linear = nn.Linear(DIM, classes)

    def features(self, levels: torch.Tensor) -> torch.Tensor:
        """Penultimate activations (B, 64) of levels 0 … 255 (B, C, H, W)."""
        x = levels / 127.5 - 1.0
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.silu(convolution(x))
        return x.mean(dim=(2, 3))

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes)."""
        logits: torch.Tensor = self.linear(self.features(levels))
        return logits


def _initialise(network: Classifier, seed: int) -> None:
    # He initialisation from the counter-based generator: equal on every machine.
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                fan_in = parameter[0].numel()
                stream, shape = f"classifier/init/{name}", tuple(parameter.shape[1:])
                noise = randomness.normal(seed, stream, 0, 0, len(parameter), shape)
                parameter.copy_(noise * (2.0 / fan_in) ** 0.5)


def _shifted(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Each image moved by (dy, dx) in {-1, 0, 1}², borders repeated."""
    size = images.shape[-1]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    moved = torch.empty_like(images)
    for index in range(9):
        chosen = shifts == index
        dy, dx = divmod(index, 3)
        moved[chosen] = padded[chosen, :, dy : dy + size, dx : dx + size]
    return moved


def _accuracy(network: Classifier, dataset: Dataset, rows: torch.Tensor) -> float:
    correct = 0
    with torch.no_grad():
        for start in range(0, len(rows), 1024):
            images, labels = dataset.batch(rows[start : start + 1024])
            correct += int((network(images.float()).argmax(1) == labels).sum())
    return correct / len(rows)


def train_classifier(
    dataset: Dataset, output: str | Path, *, seed: int = 0, recipe: Recipe | None = None
) -> dict[str, str]:
    """Train the network on four fifths of a data set and write its weights as safetensors.

    Adam with a cosine learning rate, cross-entropy with smoothing 0.1, shifts by up to one pixel,
    and mirroring where the data set allows it. Every draw is counter-based; the other
    fifth, chosen at random, measures the accuracy and is never trained on. Without a ``recipe``
    the data set's own, or the default, holds. Returns the file's metadata.
    """
    known = traits(dataset.name).classifier if dataset.name in names() else {}
    recipe = recipe or Recipe(**known)
    network = Classifier(dataset.resolution, dataset.channels, dataset.classes)
    _initialise(network, seed)
    order = torch.from_numpy(randomness.permutation(seed, "classifier/split", 0, len(dataset)))
    held_out, train = order[: len(dataset) // 5], order[len(dataset) // 5 :]
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    batch_size = recipe.batch_size
    for step in range(recipe.steps):
        chosen = randomness.integers(seed, "classifier/batch", step, 0, batch_size, len(train))
        images, labels = dataset.batch(train[chosen])
        shifts = randomness.integers(seed, "classifier/shift", step, 0, batch_size, 9)
        levels = _shifted(images.float(), shifts)
        if dataset.flip:
            mirrored = randomness.integers(seed, "classifier/flip", step, 0, batch_size, 2) == 1
            levels[mirrored] = levels[mirrored].flip(-1)
        loss = F.cross_entropy(network(levels), labels, label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    record = {
        "kind": "classifier",
        "dataset": dataset.name,
        "split": dataset.split,
        "dataset_fingerprint": dataset.fingerprint,
        "resolution": str(dataset.resolution),
        "channels": str(dataset.channels),
        "classes": str(dataset.classes),
        "training": json.dumps({"seed": seed, **recipe._asdict()}),
        "train_accuracy": f"{_accuracy(network, dataset, train):.4f}",
        "held_out_accuracy": f"{_accuracy(network, dataset, held_out):.4f}",
        "held_out": str(len(held_out)),
    }
    save_tensors(output, network.state_dict(), record)
    return record


def load_classifier(path: str | Path) -> tuple[Classifier, dict[str, str]]:
    """The network of a weights file, and the record of its training; raises UserError."""
    tensors, record = load_tensors(path)
    try:
        network = Classifier(*(int(record[k]) for k in ("resolution", "channels", "classes")))
        network.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{path} holds no classifier of this project ({problem})") from None
    network.eval().requires_grad_(False)
    return network, record


def _path(features: str) -> Path:
    path = Path(str(files("ctm_core.models.features") / "weights" / f"{features}.safetensors"))
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob(f"{PREFIX}*.safetensors"))
        raise UserError(
            f"there are no weights for {features}, only for {', '.join(known) or 'none'}; train "
            f"them by `ctm features classifier --data DIR --output {path}`"
        )
    return path


def weights_sha256(features: str) -> str:
    """SHA-256 of the weights file of ``classifier_<dataset>``."""
    return sha256_file(_path(features))


def build(protocol: Protocol) -> FeatureExtractor:
    """The extractor of ``classifier_<dataset>``; raises UserError if there are no weights."""
    path = _path(protocol.features)
    network, record = load_classifier(path)
    if protocol.input_size != int(record["resolution"]):
        raise UserError(
            f"the protocol {protocol.name} feeds {protocol.input_size} pixels, but "
            f"{protocol.features} was trained on {record['resolution']}; correct input_size"
        )

    def probabilities(features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = network.linear(features)
        return logits.softmax(dim=1)

    return FeatureExtractor(
        dim=DIM,
        weights_sha256=sha256_file(path),
        network=network.features,
        protocol=protocol,
        channels=int(record["channels"]),
        batch_size=BATCH_SIZE,
        further={"probabilities": Further(int(record["classes"]), "features", probabilities)},
    )
