"""Thirty kills at random moments: see harness.py."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from fixtures.workplace import Workplace, prepare

from kill.harness import Harness, draw, table, timed

SEED = 20231004
#: What the moments aim at, for one process and for two.
ALONE = ["checkpoint"] * 5 + ["discriminator"] * 4 + ["anywhere"] * 3 + ["delay"] * 3
PAIR = ["checkpoint"] * 3 + ["discriminator"] * 3 + ["anywhere"] * 2 + ["delay"] * 2
EVALUATION = ["evaluation"] * 5  # by calls alone: a delay may end before the first


def test_thirty_kills(tmp_path: Path, shown: list[str]) -> None:
    prepared = prepare(tmp_path)
    log = []
    for processes, aims in ((1, ALONE), (2, PAIR)):
        undisturbed = Workplace(tmp_path / f"undisturbed-{processes}", prepared, processes)
        seconds = timed(undisturbed.train)
        disturbed = Workplace(tmp_path / f"disturbed-{processes}", prepared, processes)
        harness = Harness(disturbed, undisturbed)
        mixed = random.Random(SEED + processes).sample(aims, len(aims))
        harness.train(draw(SEED + processes, mixed, processes, seconds))
        if processes == 1:
            ended = undisturbed.evaluate()
            assert ended.code == 0, ended
            harness.evaluate(draw(SEED, EVALUATION))
        log += harness.log
        shown += [f"{processes} processes: {harness.finished} finished and compared"]
    text = table(log)
    (tmp_path / "moments.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    shown += text.splitlines()

    assert len(log) == 30
    phases = Counter(entry.phase for entry in log)
    assert phases["checkpoint"] >= 5, text
    assert phases["discriminator"] >= 5, text
    assert phases["evaluation"] >= 5, text
    several = [entry for entry in log if entry.processes == 2]
    assert len(several) >= 10, text
    assert {"checkpoint", "discriminator"} <= {entry.phase for entry in several}, text
    steps = ("generator", "discriminator", "checkpoint")
    died = [entry for entry in log if entry.code == -9 and entry.phase in steps]
    assert all(entry.resumed_from <= entry.step for entry in died if entry.processes == 1), text
    assert any(entry.moment.kill is None for entry in log)
    assert any(entry.resumed_from > 0 for entry in log)
