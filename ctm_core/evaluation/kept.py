"""Small results that a killed evaluation finds again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_record, sha256_json, write_record


def kept(folder: Path, key: dict[str, Any], make: Callable[[], Any]) -> Any:
    """What was made for the same key before, or what ``make`` gives, which is then kept.

    Key and result are of JSON types; a new result is returned as it would be read. A file that is
    damaged, edited or of another key is made again.
    """
    digest = sha256_json(key)
    path = folder / f"{digest[:24]}.json"
    try:
        record = read_record(path)
        if record.get("of") == digest:
            return record["result"]
    except (UserError, KeyError):
        pass  # missing or damaged
    made = make()
    write_record(path, {"of": digest, "result": made})
    return json.loads(json.dumps(made))
