"""The pages under docs/ against the code: configurations, the quickstart."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ctm_core.config import Student, load_experiment
from ctm_core.config.gan import down_blocks
from ctm_core.config.protocols import load_protocol

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_configurations_in_the_docs_are_valid(tmp_path: Path) -> None:
    text = (DOCS / "running.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.S)]
    experiments = [block for block in blocks if block.startswith("experiment:")]
    assert experiments
    for block in experiments:
        file = tmp_path / "experiment.yaml"
        file.write_text(block, encoding="utf-8")
        experiment = load_experiment(file)
        for name in experiment.evaluation.protocols:
            load_protocol(ROOT / "config" / "protocols" / f"{name}.yaml")
    for block in set(blocks) - set(experiments):
        profile = yaml.safe_load(block)
        ours = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text(encoding="utf-8"))
        assert not set(profile) & set(ours), "profiles/default would win"


def test_protocols_are_all_explained() -> None:
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    for file in (ROOT / "config" / "protocols").glob("*.yaml"):
        assert "smoke" in file.stem or f"`{file.stem}`" in text, f"results.md lacks {file.stem}"


def test_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path(str(DOCS / "quickstart.py"))
    rows = made["rows"]
    assert all(picture.shape == (10, 1, 8, 8) for picture in rows.values())
    # One jump, drawn by the sampler and written out, is the same picture.
    by_hand = ((made["at_once"].clamp(-1, 1) + 1) * 127.5).byte()
    assert int((by_hand.int() - rows["1 jump"].int()).abs().max()) <= 1
    with Image.open(tmp_path / "results" / "quickstart.png") as picture:
        assert picture.size[0] > 500


def test_losses_page_runs() -> None:
    text = (DOCS / "losses.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    images = torch.zeros(4, 1, 8, 8)
    made = {"torch": torch, "images": images, "generated": images + 0.1}
    exec(code, made)
    assert torch.isfinite(made["loss"])
    for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.S):
        for section in yaml.safe_load(block)["models"].values():
            Student.model_validate(section | {"training": {"steps": 1, "batch_size": 1}})
    rows = re.findall(r"^\| (\d+)[^|]*\| ([\d, ]+) \| 4 · (\d)² \|$", text, flags=re.M)
    assert len(rows) == 6
    for side, downs, last in rows:
        counts = [int(count) for count in downs.split(", ")]
        assert down_blocks(int(side)) == tuple(counts)
        # The finest map has half the side; a 4 x 4 kernel without padding closes the head.
        assert all((int(side) >> n + 1 >> down) - 3 == int(last) for n, down in enumerate(counts))
