"""Published values beside ours, and only beside their like."""

from pathlib import Path

import pytest
from fixtures.results_factory import Results

from ctm_core.config import Cell, Literature, load_experiment
from ctm_core.config.published import check_keys
from ctm_core.report.literature import Joined, beside, joined, load_literature
from ctm_core.report.scores import aggregate, read_evaluations
from ctm_core.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
ONE, TWO = Cell("gamma", 1, None), Cell("gamma", 2, 0.0)
OURS = {"experiment": "cifar10-uncond", "model": "ctm_gan", "nfe": 1}


def listed(*, group: dict[str, object] | None = None, **row: object) -> Literature:
    """A list of one entry."""
    entry = {
        "key": "theirs",
        "method": "M",
        "nfe": 1,
        "values": {"fid": 2.0},
        "cost_class": "distillation",
        "ours": OURS,
    }
    whole = {
        "source": "Somebody 2023",
        "table": "table 1",
        "dataset": "cifar10",
        "protocol": "edm-cifar10",
        "samples": 50000,
        "confidence": "read",
        "rows": [entry | row],
    }
    return Literature.model_validate({"groups": [whole | (group or {})]})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path, experiment="cifar10-uncond", metric="fid", protocol="edm-cifar10")
    made.evaluation("ctm_gan", {ONE: 2.1, TWO: 1.9}, dataset="cifar10")
    return made


def found(results: Results, literature: Literature) -> dict[tuple[int, str], object]:
    rows = aggregate(read_evaluations(results.evaluations))
    compared = beside(rows, literature, "published.yaml")
    return {(key.cell.nfe, metric): value for (key, metric), value in compared.items()}


# -- the committed list --------------------------------------------------------------------------


def test_the_list_covers_the_papers_tables_and_the_field() -> None:
    literature = load_literature(ROOT / "config/published.yaml")
    entries = list(literature.entries())
    assert len(entries) > 250
    assert all(entry.source and entry.confidence and entry.row.cost_class for entry in entries)
    by_key = {entry.key: entry for entry in entries}
    values = {
        "ctm-cifar10-uncond-1": {"fid": 1.98},
        "ctm-cifar10-cond-2": {"fid": 1.63},
        "ctm-cifar10-uncond-1-nll": {"bpd": 2.43},
        "ctm-imagenet64-1": {"fid": 1.92, "is": 70.38, "recall": 0.57},
        "ctm-nogan-cifar10-18": {"fid": 3.00},
        "schwartz-imagenet64-2": {
            "fid": 1.739, "is": 63.64, "sfid": 3.81, "precision": 0.782, "recall": 0.585,
        },
        "dgtwfd-cifar10-cond-1-5k": {"fd": 6.44},
        "sct-imagenet64-2": {"fid": 1.48},
        "sida-cifar10-cond-1": {"fid": 1.396},
        "sida-plain-cifar10-cond-1": {"fid": 1.44},
        "dmd2-fastgen-cifar10-cond-1": {"fid": 1.99},
        "ccm-cifar10-1": {"fid": 1.64},
        "imf-imagenet256-2": {"fid": 1.54},
        "freeflow-imagenet512-1": {"fid": 1.49},
    }  # fmt: skip
    assert {key: by_key[key].row.values for key in values} == values
    # A figure that nobody could confirm is there without one, and says so.
    assert by_key["ayf-imagenet64"].row.values == {}
    # Bits per dimension have a protocol that none of ours agrees with.
    assert all(entry.protocol is None for entry in entries if "bpd" in entry.row.values)


def test_what_papers_report_is_not_what_others_measured() -> None:
    by_key = {e.key: e for e in load_literature(ROOT / "config/published.yaml").entries()}
    for key in ("dmd2-cifar10-cond-1", "f-distill-cifar10-cond-1", "f-distill-imagenet64-1"):
        assert by_key[key].group.measured_by == "authors"
        assert by_key[key].confidence == "secondary"
        fastgen = by_key[key.replace("dmd2", "dmd2-fastgen").replace("still", "still-fastgen")]
        assert fastgen.group.measured_by == "third party"
        assert fastgen.row.values != by_key[key].row.values
    assert by_key["meanflow-cifar10-1"].source.startswith("MeanFlow, arXiv")


def test_every_protocol_is_the_one_that_measured() -> None:
    entries = list(load_literature(ROOT / "config/published.yaml").entries())
    protocols = {path.stem for path in (ROOT / "config/protocols").glob("*.yaml")}
    assert {entry.protocol for entry in entries} - {None} <= protocols
    # EDM's evaluator rounds and has a reference of its own; CTM's truncates and, on ImageNet,
    # takes ADM's.
    for method, dataset, protocol in (
        ("EDM's README", "cifar10", "edm-cifar10-rounded"),
        ("SiD", "cifar10", "edm-cifar10-rounded"),
        ("SiD", "imagenet64", "edm-imagenet64"),
        ("DMD2", "imagenet64", "edm-imagenet64"),
        ("Kim et al. 2023, arXiv 2310.02279 v3, table 1", "cifar10", "edm-cifar10"),
    ):
        found = {
            entry.protocol
            for entry in entries
            if entry.source.startswith(method)
            and entry.group.dataset == dataset
            and "fid" in entry.row.values
        }
        assert protocol in found and found <= {protocol, None}, method


def test_training_from_a_teachers_weights_is_said() -> None:
    by_key = {e.key: e for e in load_literature(ROOT / "config/published.yaml").entries()}
    for key in ("sct-cifar10-1", "sct-cifar10-2", "sct-imagenet64-1", "sct-imagenet64-2"):
        assert "teacher_initialisation" in by_key[key].row.extras


def test_every_key_of_the_list_names_a_row_that_is_made() -> None:
    files = sorted((ROOT / "config/experiments").glob("*.yaml"))
    experiments = {path.stem: load_experiment(path) for path in files}
    literature = load_literature(ROOT / "config/published.yaml")
    check_keys(literature, experiments, (), "published.yaml")
    named = [entry for entry in literature.entries() if entry.ours is not None]
    assert len(named) > 25
    for entry in named:
        assert entry.ours is not None
        protocols = experiments[entry.ours.experiment].protocols(entry.ours.model, entry.ours.step)
        assert entry.ours.cell in protocols[str(entry.protocol)]


# -- joining -------------------------------------------------------------------------------------


def test_delta_is_in_half_widths_of_our_interval(results: Results) -> None:
    (key,) = compared = found(results, listed())
    value = compared[key]
    assert key == (1, "fid")
    half = 4.302652729911275 * 0.1 / 3**0.5
    assert value.value == 2.0  # type: ignore[attr-defined]
    assert value.delta == pytest.approx(0.1 / half)  # type: ignore[attr-defined]
    assert value.source == "Somebody 2023, table 1"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "literature",
    [
        listed(group={"protocol": "adm-imagenet64"}),
        listed(values={"is": 9.0}),
        listed(values={"fd": 2.0}),
        listed(ours=None),
        listed(ours=OURS | {"experiment": "cifar10-cond"}),
    ],
)
def test_nothing_unlike_is_compared(results: Results, literature: Literature) -> None:
    assert found(results, literature) == {}


def test_other_metrics_need_the_same_number_of_samples(results: Results) -> None:
    results.metric = "is_inception_50000"
    results.evaluations.clear()
    results.evaluation("ctm_gan", {ONE: 9.9}, dataset="cifar10")
    assert list(found(results, listed(values={"is": 9.8}))) == [(1, "is_inception_50000")]
    assert found(results, listed(values={"is": 9.8}, samples=10000)) == {}


def test_a_value_read_off_a_plot_has_no_delta(results: Results) -> None:
    (value,) = found(results, listed(confidence="plot")).values()
    assert value.delta is None  # type: ignore[attr-defined]
    assert value.source.endswith("table 1, read off the plot")  # type: ignore[attr-defined]


def test_without_an_interval_there_is_no_delta(results: Results) -> None:
    results.evaluations.clear()
    results.sample_seeds = (0,)
    results.evaluation("ctm_gan", {ONE: 2.1}, dataset="cifar10")
    (value,) = found(results, listed()).values()
    assert (value.value, value.delta) == (2.0, None)  # type: ignore[attr-defined]


# -- every value that names a row ----------------------------------------------------------------


def all_joined(results: Results, literature: Literature) -> list[Joined]:
    return joined(aggregate(read_evaluations(results.evaluations)), literature, "published.yaml")


def test_a_joined_value_has_its_like_beside_it(results: Results) -> None:
    (one,) = all_joined(results, listed())
    assert (one.kind, one.value, one.metric, one.why) == ("fid", 2.0, "fid", "")
    assert one.row.cell == ONE
    (value,) = found(results, listed()).values()
    assert one.beside == value


@pytest.mark.parametrize(
    ("changes", "metric", "why"),
    [
        ({"group": {"protocol": "adm-imagenet64"}}, "fid", "another protocol: edm-cifar10"),
        ({"values": {"fd": 2.0}}, "fid", "another number of samples"),
        ({"values": {"is": 9.0}}, "", "not measured here"),
    ],
)
def test_what_is_unlike_says_why(
    results: Results, changes: dict[str, object], metric: str, why: str
) -> None:
    literature = listed(**changes)  # type: ignore[arg-type]
    (one,) = all_joined(results, literature)
    assert (one.metric, one.beside, one.why) == (metric, None, why)
    assert found(results, literature) == {}


def test_fewer_samples_are_told(results: Results) -> None:
    results.metric = "is_inception_10000"
    results.evaluations.clear()
    results.evaluation("ctm_gan", {ONE: 9.9}, dataset="cifar10")
    (one,) = all_joined(results, listed(values={"is": 9.8}))
    assert (one.metric, one.why) == ("is_inception_10000", "ours of 10,000 samples")


def test_only_rows_of_the_table_are_joined(results: Results) -> None:
    assert all_joined(results, listed(ours=None)) == []
    assert all_joined(results, listed(ours=OURS | {"model": "cd"})) == []
    with pytest.raises(UserError, match="theirs names"):
        all_joined(results, listed(ours=OURS | {"nfe": 18, "gamma": 0}))


# -- mistakes ------------------------------------------------------------------------------------


def test_a_key_with_no_match_is_one_sentence(results: Results) -> None:
    with pytest.raises(UserError) as caught:
        found(results, listed(ours=OURS | {"nfe": 18, "gamma": 0}))
    assert str(caught.value) == (
        "published.yaml: theirs names cifar10-uncond ctm_gan gamma/nfe-18/gamma-0, which "
        "the table does not have; correct its `ours`, or remove it"
    )
    with pytest.raises(UserError, match="ctm_gan step 500 gamma/nfe-18/gamma-0"):
        found(results, listed(ours=OURS | {"nfe": 18, "gamma": 0, "step": 500}))
    # A table of a part of the experiment's models and steps is no mistake.
    assert found(results, listed(ours=OURS | {"model": "cd"})) == {}
    assert found(results, listed(ours=OURS | {"step": 7})) == {}


def test_an_entry_of_a_step_goes_before_one_of_the_last_step(results: Results) -> None:
    groups = [
        listed(key="at", values={"fid": 3.0}, ours=OURS | {"step": 500}).model_dump()["groups"][0],
        listed().model_dump()["groups"][0],
    ]
    (value,) = found(results, Literature.model_validate({"groups": groups})).values()
    assert value.value == 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"experiment": "cifar"}, "names the experiment cifar, and there is none"),
        ({"model": "gan"}, "has the models .*ctm_gan.* only"),
        ({"nfe": 3, "gamma": 0}, "does not sample that"),
        ({"step": 7}, "evaluates no step 7 of ctm_gan"),
    ],
)
def test_a_wrong_key_is_told_before_anything_runs(
    changes: dict[str, object], sentence: str
) -> None:
    experiment = load_experiment(ROOT / "config/experiments/cifar10-uncond.yaml")
    known = {"cifar10-uncond": experiment}
    check_keys(listed(), known, (), "published.yaml")
    check_keys(listed(ours=OURS | {"experiment": "other"}), known, ["other"], "published.yaml")
    with pytest.raises(UserError, match=f"published.yaml: theirs .*{sentence}"):
        check_keys(listed(ours=OURS | changes), known, ["other"], "published.yaml")


def test_mistakes_in_the_list_are_one_sentence(tmp_path: Path) -> None:
    text = """
groups:
  - source: S
    dataset: cifar10
    confidence: read
    samples: 5000
    rows:
      - {key: a, method: M, nfe: 1, values: {VALUES}, cost_class: gan}
"""
    path = tmp_path / "published.yaml"
    for values, sentence in (
        ("{fid: 2.0}", "5000 samples are too few for `fid`; call it `fd`"),
        ("{}", "a has no values; say why in `note`"),
        ("{fib: 2.0}", "groups.0.rows.0.values.fib"),
    ):
        path.write_text(text.replace("{VALUES}", values))
        with pytest.raises(UserError, match=sentence) as caught:
            load_literature(path)
        assert str(path) in str(caught.value)
    path.write_text(text.replace("cifar10", "imagenet256").replace("{VALUES}", "{fd: 2.0}"))
    with pytest.raises(UserError, match="unknown dataset 'imagenet256'; known are cifar10, digi"):
        load_literature(path)
    path.write_text("other_datasets: [imagenet256]\n" + path.read_text())
    assert load_literature(path).groups[0].dataset == "imagenet256"
    with pytest.raises(ValueError, match="names a row of ours but no protocol"):
        listed(group={"protocol": None})
    whole = listed().model_dump()
    with pytest.raises(ValueError, match="duplicate key theirs"):
        Literature.model_validate({"groups": whole["groups"] * 2})
    second = listed(key="other").model_dump()["groups"]
    with pytest.raises(ValueError, match="other and theirs name the same row of ours"):
        Literature.model_validate({"groups": [*whole["groups"], *second]})
