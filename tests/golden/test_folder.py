"""The golden suite itself: it reads everything, and it can fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.edm_pickle import edm_pickle

from ctm_core import verification
from ctm_core.runtime.files import load_tensors, save_tensors, write_json
from ctm_core.verification import Result
from ctm_core.verification.golden import DOUBLE, SINGLE, Folder

from .conftest import METHODS, folder_of, path

METHOD_FILES = ("ayf", "ect", "meanflow", "scm", "tcm")

#: A case, and the pattern of a value's name, the last of which is damaged.
DAMAGED = [
    ("ctm_sampling:ctm_variants", r"[^/]+/final", DOUBLE),
    ("ctm_sampling:ctm_variants", r"[^/]+/t", SINGLE),
    ("ctm_student_cifar:jumps", "out32/G", SINGLE),
    ("ctm_student_cifar:jumps", "out64/F", DOUBLE),
    ("ctm_student_sony:openai_jumps", "out32/G", SINGLE),
    ("ctm_student_sony:openai_solve", "heun/out64/estimate", DOUBLE),
    ("ctm_training:maps", r"out64/heun_n\d+/x_u", DOUBLE),
    ("ctm_training:l2_adaptive", "out32/l2_adaptive/lambda_dsm", SINGLE),
    ("ctm_training:l2_adaptive", "grad_l2_adaptive/.+", DOUBLE),
    ("ctm_training:gan_g", "out64/gan_g/lambda_gan_before_clip", DOUBLE),
    ("ctm_training:eight_steps", "train8/target_after_8/.+", SINGLE),
    ("discriminator:discriminator", ".*/discriminator_param_count", SINGLE),
    ("edm_adm:adm", "out64/D", DOUBLE),
    ("edm_augment:edm_augment", "out32/images", SINGLE),
    ("edm_blocks:blocks", "[^/]+/out64/y", SINGLE),
    ("edm_ddpmpp:ddpmpp", "out32/D", SINGLE),
    ("edm_ncsnpp:ncsnpp", "out32/F", SINGLE),
    ("edm_pickle_expected:importer", "out32/D", SINGLE),
    ("edm_sampler:edm_heun", "out64/x_all.*", DOUBLE),
    ("grids_and_draws:diffaugment_", "diffaug/y", SINGLE),
    ("grids_and_draws:noise_level_law", "dsm_sigma/grid_half_quantiles", DOUBLE),
    ("grids_and_draws:index_laws", "index_hist/.*/marginal_prob_s", DOUBLE),
    ("grids_and_draws:coefficients", "scalings/inner_cm/c_out", SINGLE),
    ("grids_and_draws:weights", "weight/.+", DOUBLE),
    *((f"{name}:losses", "out64/[^/]+/loss", DOUBLE) for name in METHOD_FILES),
    ("analytic:pairs", "ect/conditional_mean_over_dt", DOUBLE),
    ("architectures:released_imm", "out32/imm/F", SINGLE),
    ("architectures:released_meanflow", "out64/meanflow/u.*", DOUBLE),
    ("imm:losses", "out64/[^/]+/mmd", DOUBLE),
    ("imm:losses", "out64/[^/]+/grad/.+weight", DOUBLE),
    ("imm:losses", "out32/[^/]+/y_st", SINGLE),
    ("imm:maps", "map/w_.+", DOUBLE),
    ("imm:samplers", "out32/sample/.+", SINGLE),
]


@pytest.mark.parametrize(
    ("name", "pattern", "precision"), DAMAGED, ids=[f"{d[0]}:{d[1]}" for d in DAMAGED]
)
def test_a_damaged_value_fails(name: str, pattern: str, precision: torch.dtype) -> None:
    (case,) = (found for found in verification.cases() if found.name == name)
    golden = (folder := Folder(folder_of(case).path)).load(case.file)
    key = golden.keys(pattern)[-1]
    golden.tensors[key] = damaged(golden.tensors[key])
    result = verification.check(case, folder, precision)
    assert result.problem is None
    assert not result.passed, key


def damaged(value: object) -> object:
    """One number of a tensor's last sample, by 1 % of the sample; or a JSON number, by one."""
    if not isinstance(value, torch.Tensor):
        assert isinstance(value, int)
        return value + 1
    value = value.clone()
    sample = value[-1] if value.ndim else value
    # 100 times the loosest tolerance of a network's value, 2 times the one of stored quantiles.
    sample.view(-1)[0] += 0.01 * sample.double().norm()
    return value


@pytest.mark.parametrize("state", ["absent", "empty"])
def test_an_absent_or_empty_folder_fails(state: str, tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    if state == "empty":
        folder.mkdir()
    suite = Path(__file__).with_name("test_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)],
        env={**os.environ, "CTM_GOLDEN": str(folder), "CTM_GOLDEN_METHODS": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert "failed" in summary
    assert "passed" not in summary
    assert "skipped" not in summary
    assert f"the golden folder {folder} is absent or holds no golden file" in done.stdout


@pytest.mark.parametrize("name", ["ect", "imm"])
def test_a_file_missing_from_the_methods_fails(name: str, tmp_path: Path) -> None:
    for file in METHODS.glob("*.safetensors"):
        if file.stem != name:
            (tmp_path / file.name).symlink_to(file)
    folder = Folder(tmp_path)
    cases = verification.cases(folder)
    assert {case.file for case in cases} <= verification.METHODS
    missing = [case for case in cases if case.file == name]
    assert missing
    for case in missing:
        problem = verification.check(case, folder, case.precisions[0]).problem
        assert problem is not None and f"{name}.safetensors" in problem


@pytest.mark.parametrize("missing", ["out32/simple_edm_k15/mmd", r"out\d\d/simple_edm_k15/.+"])
def test_values_missing_from_a_file_fail(missing: str, tmp_path: Path) -> None:
    tensors, meta = load_tensors(METHODS / "imm.safetensors")
    tensors = {key: value for key, value in tensors.items() if not re.fullmatch(missing, key)}
    save_tensors(tmp_path / "imm.safetensors", tensors, meta)
    folder = Folder(tmp_path)
    (case,) = (c for c in verification.cases(folder) if c.name == "imm:both_precisions")
    assert not verification.check(case, folder, DOUBLE).passed


def test_a_foreign_tensor_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "golden"
    copy.mkdir()
    name = "edm_ddpmpp.safetensors"
    tensors, meta = load_tensors(path() / name)
    save_tensors(copy / name, tensors | {"out64/foreign": torch.zeros(2)}, meta)
    shutil.copy(path() / "edm_sampler.safetensors", copy)
    save_tensors(copy / "stranger.safetensors", {"x": torch.zeros(1)})
    write_json(copy / "hollow.json", {})
    folder, results = run(copy, "edm_ddpmpp")
    assert all(result.passed for result in results)
    found = verification.uncovered(folder)
    assert found["edm_ddpmpp"] == ["out64/foreign"]
    assert found["stranger"] == ["x"]
    assert found["hollow"] == []
    assert len(found["edm_sampler"]) == len(load_tensors(copy / "edm_sampler.safetensors")[0])


def test_a_pickle_of_the_set_goes_through_the_importer(tmp_path: Path) -> None:
    name = "edm_pickle_expected"
    shutil.copy(path() / f"{name}.safetensors", tmp_path)
    golden = Folder(tmp_path).load(name)
    state = golden.weights("state")
    pickle = tmp_path / "edm_pickle_example.pkl"
    pickle.write_bytes(edm_pickle(state, golden.meta["kwargs"]))
    _, (result,) = run(tmp_path, name)
    assert result.passed, (result.problem, *map(str, result.checks))
    assert len(result.checks) == 2 * (len(state) + 2)

    other = state | {next(iter(state)): next(iter(state.values())) + 1}
    pickle.write_bytes(edm_pickle(other, golden.meta["kwargs"]))
    assert not run(tmp_path, name)[1][0].passed
    pickle.write_bytes(b"\x80\x04N.")
    assert "was refused" in str(run(tmp_path, name)[1][0].problem)


def run(place: Path, file: str) -> tuple[Folder, list[Result]]:
    """Run the cases of one file."""
    folder = Folder(place)
    found = [case for case in verification.cases() if case.file == file]
    runs = [verification.check(case, folder, p) for case in found for p in case.precisions]
    return folder, runs
