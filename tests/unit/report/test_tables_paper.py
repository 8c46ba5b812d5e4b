"""The paper's tables for experiments of ours, with published values of the same protocol."""

import csv
from pathlib import Path

import pytest
from fixtures.results_factory import Results, protocol
from test_tables_latex import check_structure

from ctm_core.config import Cell
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.report.selection import ranked
from ctm_core.report.tables import write_tables
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, write_record

ONE, TWO, FOUR = Cell("gamma", 1, None), Cell("gamma", 2, 0.0), Cell("gamma", 4, 0.0)
HEUN = Cell("heun", 35, None)


def table(root: Path, number: int, ending: str = "md") -> str:
    return (root / f"paper/table{number}.{ending}").read_text()


def lines(root: Path, number: int) -> list[dict[str, str]]:
    with (root / f"paper/table{number}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Two experiments of CIFAR-10, one with a likelihood."""
    uncond = Results(tmp_path, experiment="cifar10-uncond", metric="fid", protocol="edm-cifar10")
    uncond.evaluation("teacher", {HEUN: 2.02}, dataset="cifar10")
    ctm = {ONE: 5.3, TWO: 4.9, Cell("gamma", 18, 0.0): 3.1, Cell("gamma", 18, 0.6): 3.2}
    ctm |= {Cell("gamma", 18, 1.0): 6.6, Cell("gamma", 35, 0.0): 2.3, Cell("heun", 35, None): 2.2}
    ctm |= {Cell("gamma", 35, 0.9): 5.5, Cell("gamma", 35, 1.0): 10.5}
    path = uncond.evaluation("ctm", ctm, dataset="cifar10")
    record = read_json(path)
    bits = uncond.score(
        Cell("ode", 60, None), 2.5, metric="bpd_32", protocol="likelihood", n=32,
        standard_error=0.05, freedom=31,
    )  # fmt: skip
    record["rows"].append(bits)
    record["protocols"]["likelihood"] = {"images": 32, "split": "test"}
    write_record(path, record)
    gan = {ONE: 1.99, TWO: 1.9, Cell("gamma", 18, 0.0): 2.2}
    uncond.evaluation("ctm_gan", gan, dataset="cifar10")
    cond = Results(tmp_path, experiment="cifar10-cond", metric="fid", protocol="edm-cifar10")
    cond.evaluation("ctm_gan", {ONE: 1.75, TWO: 1.6}, dataset="cifar10")
    write_tables([*uncond.evaluations, *cond.evaluations], tmp_path)
    return tmp_path


def test_table_1_has_the_papers_layout_with_published_values_beside(cifar: Path) -> None:
    text = table(cifar, 1)
    head = next(line for line in text.splitlines() if line.startswith("| method"))
    assert head == (
        "| method | NFE | cifar10-cond FID (edm-cifar10) | cifar10-uncond FID (edm-cifar10) "
        "| cifar10-uncond Bits/dim (likelihood) |"
    )
    assert "| teacher | 35 |  | 2.02 [1.77, 2.27] ‡ (2.01) |  |" in text
    gan = "| ctm_gan | 1 | 1.75 [1.50, 2.00] ‡ (1.73) | 1.99 [1.74, 2.24] ‡ (1.98) |  |"
    assert gan in text
    # The likelihood is the model's, whatever the NFE of its samples, and has no published value.
    assert "| ctm | 1 |  | 5.30 [5.05, 5.55] ‡ (5.19) | **2.50 [2.40, 2.60] ‡** |" in text
    # Of γ only 0 is a row of this table, and so is no Heun solve of a student.
    assert "10.50 [" not in text and "| ctm | 35 |  | 2.30 [2.05, 2.55] ‡ (2.25) |" in text
    assert text.count("**1.60 [1.35, 1.85] ‡**") == 1
    assert check_structure(table(cifar, 1, "tex")) == 4


def test_others_stand_under_their_own_protocol(cifar: Path) -> None:
    known, rounded, unknown = table(cifar, 1).split("## Published for cifar10: ")[1:]
    assert known.startswith("protocol edm-cifar10\n")
    assert rounded.startswith("protocol edm-cifar10-rounded\n") and "| SiD | " in rounded
    assert unknown.startswith("protocols not known or not ours\n")
    assert "| CD (retrained by CTM's authors) | without classes | 1 | 10.53 |" in known
    assert "StyleGAN-XL" in unknown and "StyleGAN-XL" not in known
    assert "| CTM | without classes | 1 |  | 2.43 | distillation gan | read |" in unknown
    assert "imagenet" not in known + unknown
    rows = lines(cifar, 1)
    theirs = [row for row in rows if not row["experiment"]]
    assert all(row["value"] == "" and row["published"] and row["confidence"] for row in theirs)
    (ours,) = [row for row in rows if row["experiment"] == "cifar10-cond" and row["nfe"] == "1"]
    assert (ours["method"], ours["value"], ours["published"]) == ("ctm_gan", "1.75", "1.73")
    assert ours["protocol"] == "edm-cifar10" and "table 1" in ours["published_source"]


def test_table_3_sets_the_adversary_beside_its_absence(cifar: Path) -> None:
    text = table(cifar, 3)
    assert "## cifar10-uncond" in text and "## cifar10-cond" not in text
    assert "| without GAN | 1 | 5.30 [5.05, 5.55] ‡ (5.19) |" in text
    assert "| with GAN | 18 | 2.20 [1.95, 2.45] ‡ (2.23) |" in text
    assert check_structure(table(cifar, 3, "tex")) == 1
    methods = [(row["method"], row["nfe"]) for row in lines(cifar, 3)]
    assert methods == [(f"{w} GAN", n) for n in ("1", "2", "18") for w in ("without", "with")]


def test_published_columns_and_deltas_of_the_whole_table(cifar: Path) -> None:
    with (cifar / "table.csv").open(newline="") as file:
        rows = {
            (r["experiment"], r["model"], r["sampler"], r["nfe"], r["gamma"]): r
            for r in csv.DictReader(file)
        }
    row = rows["cifar10-cond", "ctm_gan", "gamma", "1", ""]
    half = 4.302652729911275 * 0.1 / 3**0.5
    assert row["fid_published"] == "1.73" and "table 1" in row["fid_published_source"]
    assert float(row["fid_delta"]) == pytest.approx(0.02 / half, rel=1e-6)
    plotted = rows["cifar10-uncond", "ctm", "gamma", "35", "1"]
    assert (plotted["fid_published"], plotted["fid_delta"]) == ("10.5", "")
    assert rows["cifar10-uncond", "ctm", "ode", "60", ""]["bpd_32_ci_method"] == "subsampling"
    assert rows["cifar10-uncond", "ctm", "ode", "60", ""]["bpd_32_published"] == ""
    text = (cifar / "table.md").read_text()
    assert "| 1.73 (Kim et al. 2023, arXiv 2310.02279 v3, table 1) | +0.1 |" in text


def test_table_md_has_the_published_values_of_further_metrics(tmp_path: Path) -> None:
    results = Results(tmp_path, experiment="imagenet64", metric="fid", protocol="adm-imagenet64")
    path = results.evaluation("ctm_gan", {ONE: 2.0, TWO: 1.8}, dataset="imagenet64")
    record = read_json(path)
    for cell, value in {ONE: 69.0, TWO: 65.0}.items():
        for i, seed in enumerate((0, 1, 2)):
            made = results.score(cell, value + i - 1, sample_seed=seed, n=50000)
            record["rows"].append(made | {"metric": "is_inception_50000"})
    write_record(path, record)
    write_tables([path], tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| is_inception_50000 [low, high] | published | Δ |" in text
    source = "Kim et al. 2023, arXiv 2310.02279 v3, table 2"
    assert f"| **69.0 [66.5, 71.5] ‡** | 70.38 ({source}) | -0.6 |" in text
    assert f"| 65.0 [62.5, 67.5] ‡ | 64.29 ({source}) | +0.3 |" in text


def test_the_tables_work_for_any_experiment(tmp_path: Path) -> None:
    results = Results(tmp_path).default()
    results.evaluation("cd", {ONE: 12.0, Cell("gamma", 2, 1.0): 11.0})
    results.evaluation("ctm_gan", {ONE: 9.0, FOUR: 7.0})
    write_tables(results.evaluations, tmp_path)
    text = table(tmp_path, 1)
    assert "| cd | 2 | 11.00 [10.75, 11.25] ‡ |" in text  # the only γ that it knows
    assert "| ctm | 4 | 7.50 [7.25, 7.75] ‡ |" in text
    assert "Published" not in text
    assert "| with GAN | 4 | **7.00 [6.75, 7.25] ‡** |" in table(tmp_path, 3)
    alone = Results(tmp_path / "alone")
    alone.evaluation("ctm")
    write_tables(alone.evaluations, alone.root)
    assert "No experiment of this table has both ctm and ctm_gan." in table(alone.root, 3)
    assert check_structure(table(alone.root, 3, "tex")) == 0


def test_table_2_shows_inception_score_and_recall(tmp_path: Path) -> None:
    results = Results(tmp_path, experiment="imagenet64", metric="fid", protocol="adm-imagenet64")
    path = results.evaluation("ctm_gan", {ONE: 1.95, TWO: 1.75}, dataset="imagenet64")
    record = read_json(path)
    record["rows"] += [
        row | {"metric": metric, "value": value}
        for row in record["rows"]
        for metric, value in (("is_inception_50000", 70.5), ("recall_inception_50000", 0.57))
    ]
    write_record(path, record)
    write_tables([path], tmp_path)
    text = table(tmp_path, 2)
    assert (
        "| ctm_gan | 1 | 1.95 [1.70, 2.20] ‡ (1.92) | **70.5000 [70.5000, 70.5000] ‡** (70.38) |"
        in text
    )
    known = text.split("protocol adm-imagenet64\n")[1].split("## ")[0]
    took = "distillation gan with lpips, pretrained features, teacher initialisation"
    assert f"| CTM | with classes | 1 | 1.92 | 70.38 | 0.57 | {took} | secondary |" in known
    assert "verified by Schwartz-Zha/ctm: 1.949 with the released file" in known


def test_protocols_never_share_a_column(tmp_path: Path) -> None:
    one = Results(tmp_path, protocol="desk-digits")
    two = Results(tmp_path, experiment="other", protocol="desk-other")
    one.evaluation("ctm", {ONE: 9.0})
    path = two.evaluation("ctm", {ONE: 1.0})
    write_record(path, read_json(path) | {"protocols": {"desk-other": protocol("desk-other")}})
    rows = aggregate(read_evaluations([*one.evaluations, *two.evaluations]))
    with pytest.raises(UserError) as caught:
        ranked(rows, one.metric)
    assert str(caught.value) == (
        "values of fd_classifier_digits_1024 under the protocols desk-digits and desk-other may "
        "not share a column; make a table of each"
    )
    write_tables([*one.evaluations, *two.evaluations], tmp_path)
    for name in ("table.md", "paper/table1.md"):
        assert (tmp_path / name).read_text().count("**") == 4  # a winner each


def test_a_gan_is_compared_on_the_grid_alone(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for model, value in (("ctm", 12.0), ("ctm_gan", 11.0)):
        own = TWO._replace(times=(0.8,))
        results.evaluation(model, {TWO: value, own: value - 5, FOUR: value + 5})
    write_tables(results.evaluations, tmp_path)
    values = {(line["nfe"], line["value"]) for line in lines(tmp_path, 3)}
    assert values == {("2", "12"), ("2", "11"), ("4", "17"), ("4", "16")}
    assert "| ctm_gan (σ = 0.8) | 2 | **6.00" in table(tmp_path, 1)
