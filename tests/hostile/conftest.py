"""One watch for all tests of hostile files."""

from __future__ import annotations

import pytest
from hostile.corpus.make import valid_archive, valid_legacy, valid_pickle
from hostile.watch import Watch

from ctm_core.models import foreign


@pytest.fixture(scope="session")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """Made after everything that valid files need has been imported."""
    folder = tmp_path_factory.mktemp("warm")
    for data in (valid_pickle(), valid_archive(), valid_legacy()):
        (folder / "file").write_bytes(data)
        foreign.convert(folder / "file", folder / "out")
    return Watch()
