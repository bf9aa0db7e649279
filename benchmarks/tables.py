"""Write the tables of the documents again from the results on disk.

python -m benchmarks.tables
"""

from __future__ import annotations

import sys

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.paths import BENCHMARKS_PAGE, ROOT
from benchmarks.suites.tables import render_document

__all__ = ["DOCUMENTS"]

DOCUMENTS = (BENCHMARKS_PAGE, ROOT / "README.md")


def main() -> int:
    """Write every table that has results."""
    command_parser("tables", __doc__).parse_args()
    for document in DOCUMENTS:
        document.write_text(render_document(document.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
