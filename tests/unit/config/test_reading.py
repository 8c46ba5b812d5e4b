"""A mistake in a config file ends in one sentence with its file, key and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny
from fixtures.experiments import CTM, sentence

from ctm_core import config
from ctm_core.config import Experiment
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).parents[3]


def test_the_tiny_experiment_is_valid(tmp_path: Path) -> None:
    loaded = config.load_experiment(tiny.write_experiment(tmp_path / "tiny.yaml"))
    assert loaded == tiny.experiment()
    assert loaded.models["ctm"].training.final_ema == 0.9
    assert loaded.models["ctm"].heun_steps == 3
    assert loaded.models["ctm"].inner == "model"


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "experiments").glob("*.yaml")))
def test_committed_experiments_load(path: Path) -> None:
    experiment = config.load_experiment(path)
    assert experiment.experiment == path.stem
    for protocol in experiment.evaluation.protocols:
        assert (ROOT / "config" / "protocols" / f"{protocol}.yaml").is_file()


def test_committed_schemas_are_those_of_the_models() -> None:
    for name, model in (("config", config.Workflow), ("experiment", Experiment)):
        text = (ROOT / "workflow" / "schemas" / f"{name}.schema.json").read_text()
        assert text == config.json_schema(model), "run `python -m ctm_core.config`"


def test_workflow_lists_experiments(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("experiments: [digits, other.yaml]\n")
    assert config.validated(config.Workflow, config.read_yaml(path), path).experiments == (
        "digits",
        "other.yaml",
    )
    path.write_text("experiments: []\n")
    with pytest.raises(UserError, match="experiments"):
        config.validated(config.Workflow, config.read_yaml(path), path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", 1, "unknown key 'seed'; allowed here: conditional, dataset, diffusion, eval"),
        ("teacher.training.stepz", 9, "unknown key 'teacher.training.stepz'; allowed here: accu"),
        (f"{CTM}.dsm", {"on": 1}, f"unknown key '{CTM}.dsm.on'; allowed here: adaptive, enabled"),
        (
            "evaluation.protocols.tiny",
            [{"model": "ctm", "sampler": "gamma", "nfe": 1, "n": 5}],
            "unknown key 'evaluation.protocols.tiny.0.n'; allowed here: gamma, model, nfe, samp",
        ),
        (
            "dataset.name",
            "cifar11",
            "dataset.name: unknown dataset 'cifar11'; known are cifar10, di",
        ),
        ("dataset.source", "here", "dataset: digits takes no source (given: here)"),
        (f"{CTM}.training", None, f"the key '{CTM}.training' is missing"),
        ("teacher.training.steps", "many", "teacher.training.steps: Input should be a valid inte"),
        ("teacher.training.steps", 2.5, "(given: 2.5)"),
        ("teacher.training.steps", 0, "greater than or equal to 1 (given: 0)"),
        ("teacher.training.steps", True, "teacher.training.steps: true and false (also yes, no"),
        (
            "network.architecture",
            "unet",
            "adm, ddpmpp, ddpmpp_imm, ddpmpp_meanflow, ncsnpp, openai_adm (given: 'unet')",
        ),
        ("network.architecture", "ncsnpp", "ncsnpp has no target time s, so models.ctm (ctm) can"),
        ("network.architecture", "openai_adm", "needs a multiple of 32 channels at every level"),
        (
            "network.num_heads",
            2,
            "ddpmpp has no num_heads; leave it out (it belongs to openai_adm",
        ),
        ("network.resample_filter", [1, 2, 1], "an even number of taps whose sum is not zero"),
        ("network.resample_filter", [1, -1], "an even number of taps whose sum is not zero"),
        ("network.resample_filter", [], "an even number of taps whose sum is not zero"),
        ("network.augment_dim", 0, "greater than or equal to 1 (given: 0)"),
        ("network.channel_mult_emb", True, "true and false (also yes, no"),
        ("network.model_channels", 10, "must be a multiple of 4"),
        ("teacher.training.precision", "fp16", "fp16 is refused"),
        ("teacher.training.learning_rate", float("inf"), "should be a finite number"),
        ("teacher.p_mean", float("nan"), "teacher.p_mean: Input should be a finite number"),
        ("diffusion", {"sigma_min": 90}, "diffusion: sigma_min must be below sigma_max"),
        (f"{CTM}.training.micro_batch", 3, "micro_batch must divide batch_size"),
        (f"{CTM}.training.snapshots", [13], "snapshots lie beyond the last step"),
        (f"{CTM}.training.evaluated_ema", 0.5, "evaluated_ema must be one of ema = [0.9]"),
        (f"{CTM}.max_heun_steps", 4, "max_heun_steps must be at most grid_points - 1"),
        (
            f"{CTM}.distance",
            "lpips",
            "models.ctm.distance: there is no such distance; there are l2, lpips_vgg, "
            "pseudo_huber, stlpips_vgg (given: 'lpips')",
        ),
        (f"{CTM}.distance", "stlpips_vgg", "stlpips_vgg needs perceptual.resize"),
        (
            f"{CTM}.perceptual",
            {"resize": 31},
            "perceptual.resize: Input should be greater than or equal to 32",
        ),
        (f"{CTM}.perceptual", {"resize": 32}, "perceptual belongs to perceptual distances"),
        ("models.Ctm", {}, "models.Ctm"),
        ("models.teacher", tiny.DESCRIPTION["models"]["ctm"], "cannot be a student's"),
        ("seeds", [1, 1], "seeds: duplicate seed: [1, 1]"),
        ("seeds", [-1], "seeds.0: Input should be greater than or equal to 0 (given: -1)"),
        ("evaluation.sample_seeds", [0, 0], "duplicate seed"),
        ("evaluation.samplers.ctm", None, "evaluation.samplers lacks the model 'ctm'"),
        ("evaluation.samplers.cd", [], "evaluation.samplers names the model 'cd'; models are"),
        (
            "evaluation.samplers.teacher",
            [{"sampler": "gamma", "nfe": [1], "gamma": [0]}],
            "evaluation.samplers.teacher: sampler gamma needs a model that jumps",
        ),
        (
            "evaluation.samplers.teacher",
            [{"sampler": "heun", "nfe": [4]}],
            "must be 1, 3, 5, …, not 4",
        ),
        ("evaluation.samplers.ctm", [{"sampler": "gamma", "nfe": [2]}], "needs a gamma"),
        (
            "evaluation.protocols.tiny",
            [{"model": "ctm", "sampler": "gamma", "nfe": 8, "gamma": 1}],
            "names ctm gamma/nfe-8/gamma-1, which evaluation.samplers does not sample",
        ),
        (
            "evaluation.protocols.tiny",
            [{"model": "ctm", "sampler": "gamma", "nfe": 0}],
            "evaluation.protocols.tiny.0.nfe: Input should be greater than or equal to 1",
        ),
    ],
)
def test_mistakes(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    assert expected in sentence(tmp_path, {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher.training.steps", "60"),
        ("teacher.training.learning_rate", "0.002"),
        ("conditional", "yes"),
        ("conditional", "true"),
        ("threads", "2"),
        ("evaluation.sample_seeds", [0, "1"]),
        ("network.num_heads", "2"),
    ],
)
def test_quoted_numbers_and_truth_values_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    said = sentence(tmp_path, {key: value})
    assert said.startswith(f"{key}: this is text, because of its quotes")
    assert "(line " in said


def test_the_line_of_a_mistake_is_that_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    text = tiny.write_experiment(path, {"teacher.training.steps": 0}).read_text()
    lines = text.splitlines()
    teacher = next(n for n, line in enumerate(lines, 1) if line.startswith("teacher:"))
    wanted = next(n for n, line in enumerate(lines, 1) if n > teacher and "steps: 0" in line)
    with pytest.raises(UserError, match=rf"\(line {wanted}\)$"):
        config.load_experiment(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config file .*absent\.yaml is missing"):
        config.load_experiment(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match="is not readable YAML"):
        config.read_yaml(tmp_path / "binary.yaml")
