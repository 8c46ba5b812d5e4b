"""The grammar of metric names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctm_core.config.metric_registry import FAMILIES
from ctm_core.evaluation.metrics import names
from ctm_core.evaluation.metrics.names import MetricName, parse

NAMES = [
    ("fid", "fid", "", None, "lower", "FID", ""),
    (
        "fd_classifier_digits_1024",
        "fd",
        "classifier_digits",
        1024,
        "lower",
        "FD",
        "classifier digits, 1,024 samples",
    ),
    ("fd_inception_inf", "fd", "inception", None, "lower", "FD∞", "inception"),
    ("kid_dinov2_50000", "kid", "dinov2", 50000, "lower", "KID", "dinov2, 50,000 samples"),
    ("is_x_10", "is", "x", 10, "higher", "IS", "x, 10 samples"),
    ("precision_x_10", "precision", "x", 10, "higher", "Precision", "x, 10 samples"),
    ("recall_x_10", "recall", "x", 10, "higher", "Recall", "x, 10 samples"),
    ("density_x_10", "density", "x", 10, "higher", "Density", "x, 10 samples"),
    ("coverage_x_10", "coverage", "x", 10, "higher", "Coverage", "x, 10 samples"),
    ("trajectory_error_256", "trajectory_error", "", 256, "lower", "Trajectory error", None),
    ("bpd_32", "bpd", "", 32, "lower", "Bits/dim", "32 images"),
    ("memorisation_10", "memorisation", "", 10, "", "Memorisation", "10 samples"),
    ("memorisation_ratio_10", "memorisation_ratio", "", 10, "", "Memorisation ratio", None),
]


@pytest.mark.parametrize(
    ("name", "family", "features", "n", "direction", "display", "detail"), NAMES
)
def test_parsed_built_and_described(
    name, family, features, n, direction, display, detail
):  # one row of the table above
    assert parse(name) == MetricName(family, features, n)
    assert str(MetricName(family, features, n)) == name
    assert names.direction(name) == direction
    assert names.display(name) == display
    if detail is not None:
        assert names.detail(name) == detail


@given(
    st.sampled_from([f for f, known in FAMILIES.items() if known.with_features]),
    st.from_regex(r"[a-z0-9][a-z0-9_-]*[a-z-]", fullmatch=True),
    st.integers(1, 10**7),
)
def test_round_trip(family, features, n):
    name = MetricName(family, features, n)
    assert parse(str(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fd",
        "fd_",
        "fd_10",
        "fd_inf",
        "fd_x_",
        "fd_x_ten",
        "fd_x_0",
        "fd_x_010",
        "fid_x_50000",
        "fid_50000",
        "kid_x_inf",
        "bpd",
        "bpd_x_10",
        "memorisation_inf",
        "trajectory_10",
        "loss",
    ],
)
def test_other_names_are_refused_and_come_last_without_a_winner(name):
    with pytest.raises(ValueError, match="metric"):
        parse(name)
    assert names.direction(name) == "" and not names.ranks_samples(name)
    assert names.in_order([name, "memorisation_5"])[-1] == name


def test_spatial_distance_is_called_sfid_only_by_the_published_protocol():
    assert names.display("sfid_inception_50000") == "sFID"
    assert names.display("sfid_inception_49999") == "sFD"
    assert names.display("sfid_classifier_digits_50000") == "sFD"


def test_order_of_columns():
    wanted = [
        "fid",
        "fd_x_1024",
        "fd_a_512",
        "fd_x_512",
        "fd_x_256",
        "fd_x_inf",
        "kid_x_1024",
        "is_x_1024",
        "precision_x_1024",
        "recall_x_1024",
        "trajectory_error_64",
        "bpd_32",
        "memorisation_1024",
        "nobody knows it",
    ]
    assert names.in_order([*reversed(wanted), "fid"]) == wanted


def test_metrics_that_rank_samples():
    ranking = {name for name, *_ in NAMES if names.ranks_samples(name)}
    others = {"trajectory_error_256", "bpd_32", "memorisation_10", "memorisation_ratio_10"}
    assert ranking == {name for name, *_ in NAMES} - others


def test_axis_label():
    assert names.label("fd_x_1024") == "FD (x, 1,024 samples)"
    assert names.label("fid") == "FID"
