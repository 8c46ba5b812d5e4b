"""Scoring: a pass over images against clean-fid's, and the Fréchet distance against sqrtm.

Both passes go from images to the mean and covariance of pretrained EfficientNet-Lite0 features at
299 pixels, resized like clean-fid. Ours starts from uint8 arrays, as an evaluation does;
clean-fid's (``get_folder_features``, batches of 32) starts from a folder of PNG files, excluding
the time to write them. Network time and other time are measured separately; with workers, which
overlap the two, only the total is known.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rows import Table, alternate, once
from scipy import linalg
from sklearn.datasets import load_sample_images

from ctm_core.config.protocols import Protocol
from ctm_core.diffusion import randomness
from ctm_core.evaluation.metrics.frechet import frechet_distance
from ctm_core.evaluation.metrics.moments import Moments
from ctm_core.models import torchvision_shim
from ctm_core.models.features import build_features
from ctm_core.models.features.efficientnet_lite0 import load_network

__all__ = ["IMAGES", "distances", "markdown", "passes", "photographs"]

IMAGES = 2000
SIDE, INPUT = 32, 299
ROUNDS = 4  # parts of the images; the ways take turns at each
BATCH = 32  # clean-fid's default in compute_fid
FEATURES = {64: 1024, 1280: 3072, 2048: 4096}  # dimensions of features: samples

WITHOUT, WITH = "clean-fid", "clean-fid, workers: {}"


# -- a pass over images --------------------------------------------------------------------------


class Clocked:
    """A network that adds up the time spent in it."""

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.network = network
        self.spent = (0.0, 0.0)

    def __call__(self, levels: torch.Tensor) -> torch.Tensor:
        began, cpu = time.perf_counter(), time.process_time()
        made = self.network(levels)
        wall = self.spent[0] + time.perf_counter() - began
        self.spent = (wall, self.spent[1] + time.process_time() - cpu)
        return made


class CleanFid:
    """clean-fid's own machinery with our network plugged in."""

    def __init__(self, workers: int) -> None:
        torchvision_shim.apply()
        from cleanfid import fid

        network: Any = load_network()
        self.clock = Clocked(lambda levels: network(levels / 127.5 - 1.0))
        self._features = partial(
            fid.get_folder_features,
            model=self.clock,
            num_workers=workers,
            batch_size=BATCH,
            device=torch.device("cpu"),
            mode="clean",
            verbose=False,
        )

    def __call__(self, images: torch.Tensor, folder: Path) -> Moments:
        features = self._features(str(folder))
        count, mean = len(features), features.mean(axis=0, dtype=np.float64)
        scatter = np.cov(features, rowvar=False) * (count - 1)
        return Moments(count, torch.from_numpy(mean), torch.from_numpy(scatter))


class Ours:
    """An evaluation's pass."""

    def __init__(self, precision: str) -> None:
        protocol = {
            "name": "bench",
            "features": "efficientnet_lite0",
            "input_size": INPUT,
            "resize": "clean",
            "reference": {"dataset": "digits"},
            "samples": IMAGES,
            "precision": precision,
        }
        extractor: Any = build_features(Protocol.model_validate(protocol))
        self.clock = Clocked(extractor.network)
        extractor.network = self.clock
        self.features = extractor

    def __call__(self, images: torch.Tensor, folder: Path | None = None) -> Moments:
        return Moments.of(self.features(images))


def passes(table: Table, count: int, threads: int) -> None:
    """Rows of ``count`` images each, with the variants interleaved, after a short warm-up."""
    workers = WITH.format(threads)
    ours = {"fp32": Ours("fp32"), "bf16": Ours("bf16")}
    ways: dict[str, Any] = {WITHOUT: CleanFid(0), workers: CleanFid(threads), **ours}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    network: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    moments: dict[str, Moments] = {}
    for i, images in enumerate(
        [photographs(BATCH, "warm"), *photographs(count, "samples").chunk(ROUNDS)]
    ):
        with tempfile.TemporaryDirectory() as name:
            _write(images, Path(name))
            for way, work in ways.items():
                work.clock.spent = (0.0, 0.0)
                made: list[Moments] = []
                spent = once(lambda: made.append(work(images, Path(name))))  # noqa: B023
                if i == 0:
                    continue
                taken[way].append(spent)
                network[way].append(work.clock.spent)
                moments[way] = moments[way].merge(made[0]) if way in moments else made[0]
    references = {way: work(photographs(count, "reference")) for way, work in ours.items()}
    values = {way: frechet_distance(references[way], moments[way]).value for way in ours}
    values[WITHOUT] = frechet_distance(references["fp32"], moments[WITHOUT]).value
    # The faster of clean-fid's two is what ours is compared with, end to end.
    quicker = [min(pair) for pair in zip(taken[WITHOUT], taken[workers], strict=True)]
    others = {
        way: [
            (all_[0] - of[0], all_[1] - of[1])
            for all_, of in zip(times, network[way], strict=True)
        ]
        for way, times in taken.items()
    }
    for way, times in taken.items():
        row = {
            "size": "-",
            "part": f"scoring, {count} images",
            "way": way,
            "seconds": sum(wall for wall, _ in times),
            "cpu_seconds": sum(cpu for _, cpu in times),
            "repeats": len(times),
            "images_per_second": count / sum(wall for wall, _ in times),
        }
        if way != workers:
            row["network_seconds"] = sum(wall for wall, _ in network[way])
            row["other_seconds"] = sum(wall for wall, _ in others[way])
        if way in ours:
            row["faster"] = _ratio(quicker, times, 0)
            row["faster_cpu"] = _ratio(taken[WITHOUT], times, 1)
            row["network_faster"] = _ratio(network[WITHOUT], network[way], 0)
            row["other_faster"] = _ratio(others[WITHOUT], others[way], 0)
            against = values[WITHOUT if way == "fp32" else "fp32"]
            row["values_differ"] = abs(values[way] / against - 1.0)
        table.put(row)


def _ratio(ones: list[Any], others: list[Any], place: int) -> float:
    return statistics.median(
        one[place] / other[place] for one, other in zip(ones, others, strict=True)
    )


def photographs(count: int, stream: str) -> torch.Tensor:
    """uint8 (count, 3, 32, 32): patches of scikit-learn's two photographs, half from each."""
    sources = [torch.from_numpy(np.array(image)) for image in load_sample_images().images]
    generator = torch.Generator().manual_seed(sum(stream.encode()))
    made = torch.empty(count, SIDE, SIDE, 3, dtype=torch.uint8)
    for i in range(count):
        image = sources[i % 2]
        top, left = (
            int(torch.randint(side - SIDE + 1, (), generator=generator))
            for side in image.shape[:2]
        )
        made[i] = image[top : top + SIDE, left : left + SIDE]
    if stream == "samples":  # as samples are: a little off
        noise = torch.randn(made.shape, generator=generator) * 10
        made = (made + noise).clamp(0, 255).to(torch.uint8)
    return made.permute(0, 3, 1, 2).contiguous()


def _write(images: torch.Tensor, folder: Path) -> None:
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:06d}.png")


# -- the Fréchet distance ------------------------------------------------------------------------


def distances(table: Table, repeats: int) -> None:
    """The Fréchet distance against ``scipy.linalg.sqrtm``."""
    for dim, n in FEATURES.items():
        a, b = (Moments.of(_features(dim, n, stream)) for stream in ("one", "two"))
        works = {
            "scipy's sqrtm": partial(_by_sqrtm, a, b),
            "ours": partial(frechet_distance, a, b),
        }
        times = alternate(works, repeats)
        traces = float(a.covariance().trace() + b.covariance().trace())
        error = abs(frechet_distance(a, b).value - _by_sqrtm(a, b)) / traces
        part = f"Fréchet distance, {dim}"
        table.add("-", part, "scipy's sqrtm", times["scipy's sqrtm"])
        against = times["scipy's sqrtm"]
        table.add("-", part, "ours", times["ours"], against=against, values_differ=error)


def _features(dim: int, n: int, stream: str) -> torch.Tensor:
    """Correlated features (n, dim) with a decaying spectrum, like that of network features."""
    noise = randomness.normal(0, f"features/{stream}", 0, 0, n, (dim,)).double()
    mixing = randomness.normal(0, f"mixing/{stream}", 0, 0, dim, (dim,)).double() / dim**0.5
    return noise * torch.logspace(0, -2, dim, dtype=torch.float64) @ mixing + 0.1 * noise


def _by_sqrtm(a: Moments, b: Moments) -> float:
    """The distance by the usual formula."""
    one, two = a.covariance().numpy(), b.covariance().numpy()
    root = linalg.sqrtm(one @ two)
    shift = float((a.mean - b.mean).square().sum())
    return shift + float((one + two - 2 * root.real).trace())


# -- output --------------------------------------------------------------------------------------


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table of passes: network and other time separately."""
    apart = [row for row in rows if "network_seconds" in row]
    if not apart:
        return []
    lines = [
        "",
        f"{apart[0]['part'].capitalize()} of 32 pixels, network and other time separately:",
        "",
        "| variant | network, s | ratio | other, s | ratio | total, s | ratio | FD differs by |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in apart:
        ratios = {
            key: f"{row[key]:.2f} ×" if key in row else ""
            for key in ("network_faster", "other_faster", "faster")
        }
        differ = f"{row['values_differ']:.0e}" if "values_differ" in row else ""
        lines.append(
            f"| {row['way']} | {row['network_seconds']:.3g} | {ratios['network_faster']} | "
            f"{row['other_seconds']:.3g} | {ratios['other_faster']} | {row['seconds']:.3g} | "
            f"{ratios['faster']} | {differ} |"
        )
    return lines
