"""Write the tables of the documents again from the results on disk.

python -m benchmarks.tables
"""

from __future__ import annotations

import sys

from benchmarks.suites.arguments import command_parser
from benchmarks.suites.tables import render_documents


def main() -> int:
    """Write every table that has results."""
    command_parser("tables", __doc__).parse_args()
    render_documents()
    return 0


if __name__ == "__main__":
    sys.exit(main())
