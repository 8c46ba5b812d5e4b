"""A mistake in a config file ends in one sentence; hashes cover what decides a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny

from ctm_core import config
from ctm_core.config import Cell, Experiment
from ctm_core.config.optimization import suits_channels_last
from ctm_core.config.yaml_text import line_of
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).parents[3]
CTM = "models.ctm"


def sentence(tmp_path: Path, changes: tiny.Changes) -> str:
    """What loading a changed file says, without the file's name."""
    path = tiny.write_experiment(tmp_path / "tiny.yaml", changes)
    with pytest.raises(UserError) as error:
        config.load_experiment(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


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
    ("section", "expected"),
    [
        ({"architecture": "adm", "resample_filter": [1, 1]}, "adm has no resample_filter"),
        ({"architecture": "openai_adm", "augment_dim": 9}, "openai_adm has no augment_dim"),
        ({"architecture": "openai_adm", "channel_mult_emb": 4}, "has no channel_mult_emb"),
        (
            {"architecture": "openai_adm", "num_heads": 4, "num_head_channels": 8},
            "give num_heads or num_head_channels, not both",
        ),
        (
            {"architecture": "openai_adm", "model_channels": 48, "channel_mult": [2, 1]},
            "not 48 (model_channels * channel_mult)",
        ),
    ],
)
def test_keys_of_other_architectures(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as error:
        config.validated(config.Network, section, "x.yaml")
    assert expected in str(error.value)


def test_a_network_records_only_what_was_given() -> None:
    # Keys that another architecture gains must not move the hashes of runs that do not use them.
    assert set(config.Network().model_dump(mode="json")) == {
        *("architecture", "model_channels", "channel_mult", "num_blocks"),
        *("attn_resolutions", "dropout"),
    }
    network = config.Network(architecture="openai_adm", num_heads=2)
    assert config.Network.model_validate(network.model_dump(mode="json")) == network
    assert network.model_dump()["num_heads"] == 2


def test_global_matching_has_no_inner_map(tmp_path: Path) -> None:
    changes = {f"{CTM}.matching": "global", f"{CTM}.target_inner": "ema"}
    assert "leave target_inner out" in sentence(tmp_path, changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is not readable YAML"),
        ("a: 1\nb: 2\na: 3\n", "duplicate key 'a'"),
        ("x: {a: 1, a: 2}\n", "duplicate key 'a'"),
        ("? [1, 2]\n: 3\n", "the key [1, 2] is not text"),
        ("- 1\n- 2\n", "must hold a mapping of keys, not list"),
        ("", "must hold a mapping of keys, not NoneType"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not readable YAML"),
    ],
)
def test_yaml_mistakes(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"file\.yaml") as error:
        config.read_yaml(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-3", 0.002), ("2E-3", 0.002), ("+1e2", 100), ("1e5", 100_000), ("-.5e1", -5.0),
        ("2.0e-3", 0.002), ("1e400", float("inf")), ("12", 12), ("e5", "e5"), ("1e", "1e"),
        ("0x1e5", 0x1E5), ("'2e-3'", "2e-3"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(f"a: {text}\n")
    made = config.read_yaml(path)["a"]
    assert made == value and type(made) is type(value)


def test_an_exponent_without_a_dot_hashes_as_its_number(tmp_path: Path) -> None:
    path = tiny.write_experiment(tmp_path / "tiny.yaml")
    text = path.read_text()
    assert "learning_rate: 0.002" in text and "steps: 12" in text
    path.write_text(
        text.replace("learning_rate: 0.002", "learning_rate: 2e-3").replace(
            "steps: 12", "steps: 12e0"
        )
    )
    loaded, plain = config.load_experiment(path), tiny.experiment()
    assert loaded == plain
    for model in ("teacher", "ctm"):
        assert loaded.train_hash(model) == plain.train_hash(model)


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


def test_the_line_of_a_merged_key(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: &a\n  x: {y: 1}\nb:\n  <<: *a\n  z: [1, 2]\n")
    assert line_of(path, ["b", "x", "y"]) == 2
    assert line_of(path, ["b", "z", 1]) == 5
    assert line_of(path, ["b", "gone"]) == 3
    assert line_of(path, ["gone"]) is None


BOMB = "\n".join(
    ["a0: &a0 {x: 1}"]
    + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 30)]
)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2026-02-31", "a: 0x_", "a: !!int abc", "a: !!float x", "a: !!bool maybe",
        "a: !!timestamp no", "a: " + "1" * 5000, "a: " + "[" * 5000, "a: &a [*a]", BOMB,
        "a: b\x00", "a: \x1b[31m", "a: !!binary $", "<<: 1", "a: !!map 3", "? [a]\n: b",
    ],
)  # fmt: skip
def test_yaml_that_python_cannot_hold_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    try:
        loaded = config.read_yaml(path)
        assert set(loaded) == {"a"}
        config.validated(Experiment, loaded, path)
    except UserError as error:
        assert str(path) in str(error) and str(error).isprintable()
        assert len(str(error)) < 600
    else:
        raise AssertionError("an experiment was made of it")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config file .*absent\.yaml is missing"):
        config.load_experiment(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match="is not readable YAML"):
        config.read_yaml(tmp_path / "binary.yaml")


def test_yaml_anchors_and_merges_work(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: *x\n")
    assert config.read_yaml(path) == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 3},
        "c": {"p": 1, "q": 2},
    }


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


# -- cells -------------------------------------------------------------------------------------


def test_gamma_is_empty_at_one_evaluation() -> None:
    experiment = tiny.experiment()
    assert experiment.cells("ctm") == [
        Cell("gamma", 1, None),
        Cell("gamma", 2, 0.0),
        Cell("gamma", 2, 1.0),
    ]
    assert experiment.cells("teacher") == [Cell("heun", 3, None)]
    assert Cell("gamma", 2, 0.5).label == "gamma/nfe-2/gamma-0.5"
    assert Cell("heun", 3, None).label == "heun/nfe-3/gamma-none"
    assert Cell("gamma", 3, 1.0, (20.0, 0.8)).label == "gamma/nfe-3/gamma-1/times-20_0.8"


def test_protocols_choose_cells() -> None:
    experiment = tiny.experiment()
    assert experiment.protocols("teacher") == {"tiny": [Cell("heun", 3, None)]}
    assert experiment.protocols("ctm") == {
        "tiny": experiment.cells("ctm"),
        "tiny-pooled": [Cell("gamma", 2, 1.0)],
    }


def test_runs_and_unknown_students() -> None:
    experiment = tiny.experiment({"seeds": [3, 5]})
    assert list(experiment.runs()) == [("teacher", 0), ("ctm", 3), ("ctm", 5)]
    with pytest.raises(UserError, match="has no student 'cd'; its students are ctm"):
        experiment.training("cd")


@pytest.mark.parametrize(
    ("variant", "given", "inner"),
    [
        ("released", None, "model"),
        ("printed", None, "ema"),
        ("released", "ema", "ema"),
        ("printed", "model", "model"),
    ],
)
def test_inner_map_of_the_variants(variant: str, given: str | None, inner: str) -> None:
    changes = {f"{CTM}.variant": variant}
    if given is not None:
        changes[f"{CTM}.target_inner"] = given
    assert tiny.experiment(changes).models["ctm"].inner == inner


# -- hashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.keep", 7),
        ("training.snapshots", [2]),
        ("training.log_every", 3),
        ("training.preview_every", 2),
        ("training.checkpoint_every", 5),
    ],
)
def test_what_cannot_change_weights_is_not_hashed(key: str, value: Any) -> None:
    plain = tiny.experiment()
    changed = tiny.experiment({f"teacher.{key}": value, f"{CTM}.{key}": value})
    assert changed != plain
    for model in ("teacher", "ctm"):
        assert changed.train_hash(model) == plain.train_hash(model)


def test_where_files_came_from_is_not_hashed() -> None:
    plain = {"dataset.name": "fashion-mnist"}
    changed = tiny.experiment({**plain, "dataset.source": "/some/folder", "threads": 2})
    assert changed.train_hash("ctm") == tiny.experiment(plain).train_hash("ctm")


@pytest.mark.parametrize(
    ("key", "value", "models"),
    [
        ("dataset.name", "fashion-mnist", {"teacher", "ctm"}),
        ("conditional", False, {"teacher", "ctm"}),
        ("network.dropout", 0.0, {"teacher", "ctm"}),
        ("diffusion", {"sigma_min": 0.003}, {"teacher", "ctm"}),
        ("teacher.training.steps", 13, {"teacher", "ctm"}),
        ("teacher.p_std", 1.0, {"teacher", "ctm"}),
        (f"{CTM}.training.learning_rate", 1e-3, {"ctm"}),
        (f"{CTM}.training.micro_batch", 4, {"ctm"}),
        (f"{CTM}.target_ema", 0.7, {"ctm"}),
        (f"{CTM}.matching", "local", {"ctm"}),
        (f"{CTM}.variant", "printed", {"ctm"}),
        ("evaluation.batch_size", 32, set()),
        ("seeds", [0, 1], set()),
    ],
)
def test_what_decides_weights_is_hashed(key: str, value: Any, models: set[str]) -> None:
    plain, changed = tiny.experiment(), tiny.experiment({key: value})
    differing = {m for m in ("teacher", "ctm") if plain.train_hash(m) != changed.train_hash(m)}
    assert differing == models


def test_evaluation_hash() -> None:
    plain = tiny.experiment()
    for key, value in (
        ("evaluation.batch_size", 32),
        ("evaluation.sample_seeds", [1]),
        ("evaluation.sampling_precision", "bf16"),
        ("evaluation.samplers.ctm", [{"sampler": "gamma", "nfe": [2], "gamma": [1]}]),
    ):
        assert tiny.experiment({key: value}).evaluation_hash("ctm") != plain.evaluation_hash("ctm")
    longer = tiny.experiment({"teacher.training.steps": 13})
    assert longer.evaluation_hash("ctm") == plain.evaluation_hash("ctm")


def test_precision_auto_is_resolved_before_hashing() -> None:
    auto = tiny.experiment({f"{CTM}.training.precision": "auto"})
    resolved = auto.resolved("bf16")
    assert resolved.models["ctm"].training.precision == "bf16"
    assert resolved.teacher.training.precision == "fp32"
    fp32 = auto.resolved("fp32").train_hash("ctm")
    assert fp32 == tiny.experiment().train_hash("ctm") != resolved.train_hash("ctm")


@pytest.mark.parametrize(
    ("width", "precision", "expected"),
    [(8, "fp32", True), (128, "fp32", True), (8, "bf16", False), (128, "bf16", False)],
)
def test_channels_last_auto_is_resolved_by_size_and_precision(
    width: int, precision: str, expected: bool
) -> None:
    keys = {f"{CTM}.training.channels_last": "auto", f"{CTM}.training.precision": "auto"}
    made = tiny.experiment(keys | {"network.model_channels": width}).resolved(precision)
    assert made.models["ctm"].training.channels_last is expected
    assert made.teacher.training.channels_last is False
    explicit = {f"{CTM}.training.channels_last": expected, f"{CTM}.training.precision": precision}
    same = tiny.experiment(explicit | {"network.model_channels": width})
    assert made.train_hash("ctm") == same.train_hash("ctm")


@pytest.mark.parametrize(
    ("width", "side", "expected"),
    [(128, 32, True), (128, None, True), (64, 32, False), (128, 16, False)],
)
def test_channels_last_auto_in_bf16_is_for_wide_networks_and_large_images(
    width: int, side: int | None, expected: bool
) -> None:
    assert suits_channels_last(width, side, "bf16") is expected


def test_text_is_no_memory_layout() -> None:
    for value in ("yes", "Auto", 1):
        with pytest.raises(ValueError, match="channels_last"):
            tiny.experiment({f"{CTM}.training.channels_last": value})


def test_frozen_precision_is_hashed_unless_it_is_what_bf16_does_anyway() -> None:
    lower = {f"{CTM}.training.frozen_precision": "bf16"}
    assert tiny.experiment(lower).train_hash("ctm") != tiny.experiment().train_hash("ctm")
    both = tiny.experiment(lower | {f"{CTM}.training.precision": "auto"}).resolved("bf16")
    plain = tiny.experiment({f"{CTM}.training.precision": "bf16"})
    assert both.train_hash("ctm") == plain.train_hash("ctm")
    with pytest.raises(ValueError, match="leave frozen_precision out"):
        tiny.experiment(lower | {f"{CTM}.training.precision": "bf16"})
    with pytest.raises(ValueError, match="has no frozen networks"):
        tiny.experiment({"teacher.training.frozen_precision": "bf16"})


def test_cells_on_the_grid_keep_their_hashes() -> None:
    """As they were before cells had times of their own."""
    made = tiny.experiment()
    assert made.evaluation_hash("ctm").startswith("ba1c050dfe5d4f906dddeb38")
    assert made.evaluation_hash("teacher").startswith("0ed2d20166b1624234538")
    cell = Cell("gamma", 2, 1.0)
    assert json.dumps([cell.key, cell.record]) == (
        '[["gamma", 2, 1.0], {"sampler": "gamma", "gamma": 1.0, "nfe": 2}]'
    )
