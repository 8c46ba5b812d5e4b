"""Every image once an epoch, flips by sample, cuts that change nothing."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch

from ctm_core.config import Training
from ctm_core.data.dataset import Dataset
from ctm_core.runtime import distributed
from ctm_core.runtime.errors import UserError
from ctm_core.training.batches import Batches


def batches(digits: Dataset, *, labels: bool = True, **section: object) -> Batches:
    return Batches(
        "t",
        digits,
        Training.model_validate({"steps": 10, "batch_size": 8, "ema": [0.5]} | section),
        labels=labels,
        seed=3,
        device=torch.device("cpu"),
    )


def test_every_epoch_shows_each_image_once(digits: Dataset) -> None:
    made = batches(digits, batch_size=599, steps=6)
    count, seen = len(digits), []
    assert count == 3 * 599
    for step in range(6):
        indices = made.indices(step, 0, 599)
        images, labels = digits.batch(indices)
        batch = made.draw(step, 0, 599)
        assert torch.equal(batch.images, images.float() / 127.5 - 1)
        assert batch.labels is not None and torch.equal(batch.labels, labels)
        seen += indices
    assert sorted(seen[:count]) == sorted(seen[count:]) == list(range(count))
    assert seen[:count] != seen[count:]


def test_a_batch_across_two_epochs_takes_from_both(digits: Dataset) -> None:
    made = batches(digits, batch_size=1000)
    straddling = made.indices(1, 0, 1000)
    assert sorted(made.indices(0, 0, 1000) + straddling[:797]) == list(range(1797))
    # Asking for an earlier step again gives the same, whatever was asked in between.
    again = made.indices(1, 0, 1000)
    assert again == straddling


def test_groups_share_a_number_however_the_batch_is_cut(digits: Dataset) -> None:
    made = batches(digits, micro_batch=4)
    parts = [made.draw(5, start, 4) for start in made.starts]
    drawn = torch.cat([part.group_uniform("t", 2) for part in parts])
    assert torch.equal(drawn, batches(digits).draw(5, 0, 8).group_uniform("t", 2))
    assert torch.equal(drawn[::2], drawn[1::2]) and len(set(drawn.tolist())) == 4
    assert [part.images_seen for part in parts] == [40, 40]


def test_a_cut_through_a_group_is_refused(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = Training.model_validate({"steps": 1, "batch_size": 8})
    arguments = ("t", digits, section, True, 0, torch.device("cpu"))
    assert Batches(*arguments, group=4).micro_batch == 8
    monkeypatch.setattr(distributed, "count", lambda: 4)
    with pytest.raises(UserError, match="t: 4 consecutive samples share a draw, but each of 4 pr"):
        Batches(*arguments, group=4)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_cuts_change_nothing(digits: Dataset, micro_batch: int) -> None:
    whole = batches(digits).draw(5, 0, 8)
    made = batches(digits, micro_batch=micro_batch)
    parts = [made.draw(5, start, made.micro_batch) for start in made.starts]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert [part.start for part in parts] == list(range(0, 8, micro_batch))


def test_processes_share_a_batch_side_by_side(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "count", lambda: 2)
    starts = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        starts.append(list(batches(digits, micro_batch=2).starts))
    assert starts == [[0, 4], [2, 6]]


def test_flips_are_drawn_by_sample(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = batches(digits, batch_size=64)
    straight = plain.draw(0, 0, 64).images
    monkeypatch.setattr(Dataset, "flip", True)
    flipped = plain.draw(0, 0, 64).images
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, straight, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, straight, strict=True)]
    assert all(a or b for a, b in zip(turned, kept, strict=True))
    assert 16 < sum(turned) < 48
    assert torch.equal(plain.draw(0, 32, 32).images, flipped[32:])


def test_labels_are_given_only_where_wanted(digits: Dataset) -> None:
    assert batches(digits, labels=False).draw(0, 0, 8).labels is None


def test_channels_last_changes_the_layout_alone(digits: Dataset) -> None:
    plain, strided = batches(digits), batches(digits, channels_last=True)
    ours, theirs = strided.draw(2, 0, 8).images, plain.draw(2, 0, 8).images
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("processes", "section", "message"),
    [
        (3, {}, "t: a batch of 8 cannot be shared by 3 processes; change batch_size or"),
        (
            2,
            {"batch_size": 12, "micro_batch": 4},
            "t: micro_batch 4 does not divide the 6",
        ),
    ],
)
def test_uneven_cuts_are_refused(
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    section: dict[str, int],
    message: str,
) -> None:
    monkeypatch.setattr(distributed, "count", lambda: processes)
    with pytest.raises(UserError) as error:
        batches(digits, **section)
    assert str(error.value).startswith(message)


# -- drawn ahead -------------------------------------------------------------------------------


def test_what_is_drawn_ahead_is_what_is_drawn_when_asked(digits: Dataset) -> None:
    """Order, epochs and every kind of random numbers, over several steps."""
    ahead, plain = (batches(digits, batch_size=600, micro_batch=200) for _ in range(2))
    with contextlib.closing(ahead):
        for step in range(5):
            for start in ahead.starts:
                ours, theirs = ahead.next(step, start), plain.draw(step, start, 200)
                assert torch.equal(ours.images, theirs.images)
                for batch in (ours, theirs):
                    # From the third micro-batch on, a thread has drawn them.
                    expected = {"uniform", "shared", "normal"} if step else set()
                    known = {kind for kind, _ in batch.drawn}
                    assert step == 0 or known == (expected if batch is ours else set())
                assert torch.equal(ours.normal("a"), theirs.normal("a"))
                assert torch.equal(ours.uniform("b"), theirs.uniform("b"))
                assert torch.equal(ours.shared_uniform("k"), theirs.shared_uniform("k"))
                assert torch.equal(ours.normal("a"), theirs.normal("a"))


def test_each_phase_has_its_own_numbers_drawn_ahead(digits: Dataset) -> None:
    made = batches(digits)
    made.period = 2
    with contextlib.closing(made):
        for step in range(6):
            batch = made.next(step, 0)
            if step > 3:
                assert {name for _, name in batch.drawn} == {"even" if step % 2 == 0 else "odd"}
            batch.normal("even" if step % 2 == 0 else "odd")


def test_a_second_pass_over_a_step_sees_the_same(digits: Dataset) -> None:
    made = batches(digits, micro_batch=2)
    with contextlib.closing(made):
        passes = [[made.next(3, start).images for start in made.starts] for _ in range(2)]
        after = made.next(4, 0).images
    for one, other in zip(*passes, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(after, batches(digits).draw(4, 0, 2).images)


def test_an_error_of_the_thread_is_raised_where_the_batch_is_asked_for(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, original = batches(digits), Dataset.batch
    calls: list[int] = []

    def batch(self: Dataset, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(calls))
        if len(calls) == 3:
            raise UserError("images.npy is corrupt: fetch it again")
        return original(self, indices)

    monkeypatch.setattr(Dataset, "batch", batch)
    with contextlib.closing(made):
        made.next(0, 0)
        made.next(1, 0)
        with pytest.raises(UserError, match=r"^images.npy is corrupt: fetch it again$"):
            made.next(2, 0)
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
