"""Loss terms are read as what they were: the same float64 means, in the order of the record."""

from __future__ import annotations

import pytest
import torch

from ctm_core.training.terms import Terms, floats


def test_means_are_those_of_the_single_numbers() -> None:
    parts: list[dict[str, torch.Tensor | float]] = [
        {"loss": torch.tensor(0.1), "k": 3.0, "dsm": torch.tensor(0.7, dtype=torch.float64)},
        {"loss": torch.tensor(0.2), "k": 3.0, "dsm": torch.tensor(0.6, dtype=torch.float64)},
        {"loss": torch.tensor(1e-7), "k": 3.0, "dsm": torch.tensor(0.5, dtype=torch.float64)},
    ]
    terms, expected = Terms(), dict.fromkeys(parts[0], 0.0)
    for part in parts:
        terms.add(part)
        for name, value in floats(part).items():
            expected[name] += value / len(parts)
    terms.send(torch.tensor(5.0), torch.tensor(torch.nan))
    means, (norm, spoilt) = terms.read()
    assert means == expected and list(means) == ["loss", "k", "dsm"]
    assert norm == 5.0 and spoilt != spoilt


def test_a_term_that_one_micro_batch_lacks_is_shared_by_all() -> None:
    terms = Terms()
    terms.add({"loss": torch.tensor(1.0), "more": torch.tensor(4.0)})
    terms.add({"loss": torch.tensor(3.0)})
    terms.send(torch.tensor(0.0))
    assert terms.read() == ({"loss": 2.0, "more": 2.0}, [0.0])


def test_reading_comes_after_sending() -> None:
    with pytest.raises(AssertionError, match="nothing was sent"):
        Terms().read()
