"""Results as tables: plain text where one is printed, HTML in a notebook. Standard library only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Table", "Tabular", "cell"]

_MISSING = "-"


def cell(value: float | None, form: str, factor: float = 1) -> str:
    """Return a number in a format such as ``.2f``; a dash for None."""
    return _MISSING if value is None else format(value * factor, form)


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: Above it; empty for none.
        columns: Headings; the first column is text, the others are set flush right unless ``text`` says otherwise.
        rows: One cell per column.
        text: Headings of further columns that hold text.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: tuple[str, ...] = ()

    @classmethod
    def of_facts(cls, facts: Mapping[str, str]) -> Table:
        """Return a table of two columns: what a fact is about, and the fact."""
        return cls("", ("fact", "value"), tuple(facts.items()), text=("value",))

    def to_text(self) -> str:
        """Return the table with columns padded to their widest cell."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        lines = [self.title] if self.title else []
        for row in (self.columns, *self.rows):
            padded = [
                value.ljust(width) if self._is_text(index) else value.rjust(width)
                for index, (value, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)

    def to_html(self) -> str:
        """Return the table as an HTML fragment; every cell is escaped."""
        head = "".join(self._html_cell("th", index, value) for index, value in enumerate(self.columns))
        body = "".join(
            "<tr>" + "".join(self._html_cell("td", index, value) for index, value in enumerate(row)) + "</tr>"
            for row in self.rows
        )
        caption = f'<caption style="text-align:left">{escape(self.title)}</caption>' if self.title else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _is_text(self, index: int) -> bool:
        return index == 0 or self.columns[index] in self.text

    def _html_cell(self, tag: str, index: int, value: str) -> str:
        return f'<{tag} style="text-align:{"left" if self._is_text(index) else "right"}">{escape(value)}</{tag}>'


class Tabular(ABC):
    """A result that shows itself as tables: when printed, and in a notebook."""

    @abstractmethod
    def tables(self) -> Sequence[Table]:
        """Return the tables, the most important first."""

    def __repr__(self) -> str:
        return "\n\n".join(table.to_text() for table in self.tables())

    def _repr_html_(self) -> str:
        return "\n".join(table.to_html() for table in self.tables())
