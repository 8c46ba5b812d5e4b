"""The report's text: computed from the table, complete, and free of anything to load."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fixtures.results_factory import CTM, MODELS, Results, digest
from PIL import Image

from ctm_core.config import Cell, load_experiment
from ctm_core.data.dataset import Dataset
from ctm_core.report.csv_files import csv_text, read_csv
from ctm_core.report.figures import write_figures
from ctm_core.report.page import duration, write_report
from ctm_core.report.statistics import MARKED
from ctm_core.report.tables import write_tables
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, write_record

CIFAR10 = Path(__file__).resolve().parents[3] / "config/experiments/cifar10-uncond.yaml"


class Page(HTMLParser):
    """Tags with their attributes, text, and whether every tag was closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report_of(results: Results, data: Sequence[Path] = ()) -> Page:
    """The report, with figures where data are given."""
    write_tables(results.evaluations, results.root)
    if data:
        figures = results.root / "figures"
        write_figures(results.evaluations, results.trainings, figures, data=data)
    write_report(results.root, results.root / "report.html")
    return Page((results.root / "report.html").read_text())


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Results:
    folder = tmp_path_factory.mktemp("results")
    results = Results(folder, fingerprint=digits.fingerprint).default()
    report_of(results, [digits.path])
    return results


@pytest.fixture(scope="module")
def page(default: Results) -> Page:
    return Page((default.root / "report.html").read_text())


def test_page_is_well_formed_and_loads_nothing(default: Results, page: Page) -> None:
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#"))
            if target is not None and target.startswith("#"):
                assert target[1:] in ids
    text = (default.root / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", text)


def test_first_screen_answers(page: Page) -> None:
    assert "Does it reproduce?" in page.text
    sentence = "Of 8 claims tested here, 7 are reproduced, 1 is contradicted and 0 are undecided."
    assert page.text.index(sentence) < page.text.index("digits: table")
    assert page.text.count("✓") == 7 + 1  # and the explanation of the mark
    assert page.text.count("✗") == 1 + 1
    assert (
        "ctm at NFE 1 lower than 0.5 × teacher at NFE 3: 9.40 [9.15, 9.65] ‡ against" in page.text
    )
    assert "difference -104.10 [-104.22, -103.98] ‡" in page.text
    assert "6 comparisons: 6 reproduced" in page.text
    assert "the table has no FD of cd at NFE 1" in page.text
    assert "Claims that this table cannot test" in page.text
    assert "teacher and students ctm, ctm_nodsm of 0.31 million parameters, 19 cells" in page.text


@pytest.mark.parametrize(
    ("value", "sample_seeds", "sentence", "box"),
    [
        (500.0, (0, 1, 2), "0 are reproduced, 3 are contradicted and 3 are undecided", "no"),
        (20.0, (0, 1, 2), "1 is reproduced, 2 are contradicted and 3 are undecided", "partly"),
        (9.0, (0,), "0 are reproduced, 0 are contradicted and 6 are undecided", "undecided"),
    ],
)
def test_the_answer_follows_the_values(
    tmp_path: Path, value: float, sample_seeds: tuple[int, ...], sentence: str, box: str
) -> None:
    results = Results(tmp_path, sample_seeds=sample_seeds)
    results.evaluation("teacher")
    # Equal but for one γ in the middle, which is a half worse.
    results.evaluation("ctm", dict.fromkeys(CTM, value) | {Cell("gamma", 8, 0.5): 1.5 * value})
    page = report_of(results)
    assert sentence in page.text
    assert {"class": f"answer {box}", "aria-labelledby": "digits-answer"} in page.attributes(
        "section"
    )


def test_every_cell_is_in_the_table_of_its_protocol(page: Page) -> None:
    rows = [row for row in page.rows if len(row) > 8 and row[1] in ("heun", "gamma")]
    assert len(rows) == sum(len(cells) for cells in MODELS.values()) + 3
    alone = "sampling alone: 3 sampling seeds, 1 training run"
    assert MARKED in page.text
    assert ["ctm", "gamma", "4", "0.5", "7.40", "[7.15, 7.65] ‡", "", "7.30", alone] in [
        row[:9] for row in rows
    ]
    best = [
        attributes for attributes in page.attributes("tr") if attributes.get("class") == "best"
    ]
    assert len(best) == 2
    (deficient,) = [row for row in rows if "†" in row[4]]
    assert deficient[:3] == ["teacher", "heun", "35"]
    assert "covariance is rank-deficient" in page.text


def test_without_published_values_one_sentence_says_so(page: Page) -> None:
    assert "names a row of this experiment, so no published value stands beside ours" in page.text
    assert not any("published" in (tag.get("class") or "") for tag in page.attributes("table"))


def published(page: Page) -> list[list[str]]:
    """The rows of the table of published values."""
    start = next(i for i, row in enumerate(page.rows) if "protocol of theirs" in row)
    return page.rows[start + 1 : start + 1 + page.text.count("arXiv 2310.02279 v3, table 1")]


@pytest.mark.parametrize("protocol", ["edm-cifar10", "clean-cifar10"])
def test_published_values_beside_ours(tmp_path: Path, protocol: str) -> None:
    """With a difference under the paper's protocol, and marked as unlike under another."""
    results = Results(tmp_path, experiment="cifar10-uncond", protocol=protocol)
    results.metric = "fid" if protocol == "edm-cifar10" else "fd_inception_50000"
    cells = dict.fromkeys(load_experiment(CIFAR10).cells("ctm_gan", None), 2.1)
    results.evaluation("ctm_gan", cells, dataset="cifar10")
    page = report_of(results)
    one, two = published(page)[:2]
    assert one[:2] == ["ctm_ganNFE 1", "1.98FID"]
    assert two[:2] == ["ctm_ganNFE 2, γ = 0", "1.87FID"]
    assert one[4] == "edm-cifar10"
    assert one[5].startswith("CTM: Kim et al. 2023, arXiv 2310.02279 v3, table 1")
    if protocol == "edm-cifar10":
        assert one[2] == "2.10 [1.85, 2.35] ‡"
        assert one[3] == f"{(2.1 - 1.98) / (4.302652729911275 * 0.1 / 3**0.5):+.1f}"
        assert "\u2260" not in "".join(one)
    else:
        assert one[2] == "\u2260\xa02.10 [1.85, 2.35] ‡FD, another protocol: clean-cifar10"
        assert one[3] == ""


def test_pictures_are_inlined_and_described(page: Page) -> None:
    pictures = page.attributes("img")
    assert len(pictures) == 14
    for picture in pictures:
        assert (picture["src"] or "").startswith("data:image/png;base64,iVBOR")
        assert len(picture["alt"] or "") > 40
    assert any("teacher at NFE 3: 227.00" in (picture["alt"] or "") for picture in pictures)
    for model in MODELS:
        title = f"digits: samples of {model} and the nearest training images"
        assert sum(title in (picture["alt"] or "") for picture in pictures) == 1


def test_provenance_and_cost_are_told(page: Page, digits: Dataset) -> None:
    titles = {attributes.get("title") for attributes in page.attributes("code")}
    for model in MODELS:
        assert digest("digits", model, 0, 500) in titles
        assert digest("digits", model) in titles
    assert digest("reference") in titles
    assert digits.fingerprint in titles
    assert "teacher 2,211,840, student 19,200, target 38,016" in page.text
    assert "1 min 21 s" in page.text
    assert f"Training and evaluation together: {duration(3 * (81.25 + 21.5))}" in page.text
    assert "device Example CPU" in page.text


def test_several_experiments_and_missing_figures(tmp_path: Path) -> None:
    one = Results(tmp_path)
    one.evaluation("teacher")
    one.evaluation("ctm", step=100, shift=1.0)
    one.evaluation("ctm")
    two = Results(tmp_path, experiment="other")
    two.evaluation("ctm_nodsm")
    one.evaluations += two.evaluations
    page = report_of(one)
    assert "Does it reproduce (digits)?" in page.text
    assert "None of the paper's claims can be tested with this table." in page.text
    assert page.text.count("There are no figures of this experiment") == 2
    head = next(row for row in page.rows if "step" in row[1:2])
    assert head[0] == "model"


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    results = Results(tmp_path)
    path = results.evaluation("ctm")
    write_record(path, read_json(path) | {"objective": "<script>alert(1)</script>"})
    page = report_of(results)
    assert len(page.attributes("script")) == 1
    assert "<script>alert(1)</script>" in page.text


def test_own_images_are_shown(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm")
    assert "Images per class" not in report_of(results).text
    folder = tmp_path / "data/digits/train"
    folder.mkdir(parents=True)
    for name in ("contact", "mean"):
        Image.new("RGB", (48, 48)).save(folder / f"{name}.png")
    names = [f"class-{n}" for n in range(22)]
    preparation = {"counts": [1000 + n for n in range(22)]}
    write_record(folder / "manifest.json", {"class_names": names, "preparation": preparation})
    page = report_of(results)
    assert "Images per class: class-0 1,000, class-1 1,001, " in page.text
    assert "class-19 1,019 and 2 more classes." in page.text and "class-20" not in page.text
    shown = {image["alt"] for image in page.attributes("img")}
    assert {"Training images of digits", "Their mean of digits"} <= shown
    (folder / "mean.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"mean\.png is not a picture .* run `ctm data` again"):
        report_of(results)


def test_a_table_that_is_older_than_its_evaluations_is_refused(tmp_path: Path) -> None:
    results = Results(tmp_path)
    path = results.evaluation("ctm")
    report_of(results)
    write_record(path, read_json(path) | {"checkpoint_sha256": digest("new")})
    with pytest.raises(UserError, match="does not fit the evaluations"):
        write_report(tmp_path, tmp_path / "report.html")


def test_a_table_of_an_earlier_version_has_no_times(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm")
    report_of(results)
    frame = read_csv(tmp_path / "runs.csv").drop(columns="times")
    (tmp_path / "runs.csv").write_text(csv_text(frame), encoding="utf-8")
    write_report(tmp_path, tmp_path / "report.html")
    frame.loc[0, "value"] = "1.5"
    (tmp_path / "runs.csv").write_text(csv_text(frame), encoding="utf-8")
    with pytest.raises(UserError, match="does not fit the evaluations"):
        write_report(tmp_path, tmp_path / "report.html")


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.evaluation("ctm")
    (tmp_path / "figures").mkdir()
    picture = tmp_path / "figures/digits-hero.png"
    picture.write_text("no picture")
    with pytest.raises(UserError, match=r"digits-hero\.png is not a picture"):
        report_of(results)
    Image.new("L", (64, 64)).save(picture)
    report_of(results)
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1  # in the compressed pixels, whose checksum follows
    picture.write_bytes(content)
    with pytest.raises(UserError, match=r"digits-hero\.png is not a picture"):
        report_of(results)


def test_equal_results_give_an_equal_report(default: Results) -> None:
    first = (default.root / "report.html").read_bytes()
    write_report(default.root, default.root / "second.html")
    assert (default.root / "second.html").read_bytes() == first


def test_durations() -> None:
    assert duration(8.24) == "8.2 s"
    assert duration(81.4) == "1 min 21 s"
    assert duration(11045) == "3 h 04 min"
