"""Update the table of docs/assets.md: ``python -m ctm_core.data.assets``."""

from ctm_core.config.asset_listing import LIST, ROOT, load, table
from ctm_core.runtime.files import write_text

if __name__ == "__main__":
    page = ROOT / "docs" / "assets.md"
    head, start, rest = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, end, tail = rest.partition("<!-- end -->\n")
    listed = load(ROOT / LIST, pinned=False)
    write_text(page, head + start + table(listed) + end + tail)
