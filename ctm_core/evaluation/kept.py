"""Small results that a killed evaluation finds again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json, sha256_json, write_json


def kept(folder: Path, key: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What was made for the same key before, or what ``make`` gives, which is then kept.

    Key and result are of JSON types; a new result is returned as it would be read.
    """
    path = folder / f"{sha256_json(key)[:24]}.json"
    if path.exists():
        try:
            return read_json(path)
        except UserError:
            pass  # damaged: made again
    made = make()
    write_json(path, made)
    return json.loads(json.dumps(made))
