"""The parts a page is made of: plain tables, blocks and sections of text.

Here: the frozen values the template walks over. Elsewhere: what is put in them (page.py, tables.py, statement.py) and
how they look (templates/). Every string is printed as text, never as markup; only a Drawing carries SVG.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from safesynthdp.reporting.facts import Text
from safesynthdp.reporting.figures import Drawing


@dataclass(frozen=True, kw_only=True)
class Column:
    """The head of one column; numbers stand right."""

    title: str
    is_number: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table; ``tone`` is "strong", "bad", "faint", "group" or empty."""

    cells: tuple[str, ...]
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a caption that says what it shows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line of a list of facts."""

    name: str
    value: str
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One heading and what stands under it, in the order of the fields."""

    slug: str
    title: str
    missing: str = ""
    lead: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    texts: tuple[tuple[str, tuple[Text, ...]], ...] = ()
    facts: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The box at the top: what is promised to whom, and the three numbers side by side."""

    about: str
    epsilon: str
    terms: tuple[str, ...]
    releases: Table | None
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Article:
    """One finetune run and what was made from it, or the overview of several."""

    slug: str
    title: str
    subtitle: str
    verdict: Verdict | None
    """None for the overview of several runs."""
    sections: tuple[Section, ...]
    links: tuple[tuple[str, str], ...] = ()
    """Other articles: their slug and title."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole page. ``dropped`` says what a public page leaves out."""

    title: str
    is_public: bool
    articles: tuple[Article, ...]
    dropped: tuple[str, ...] = field(default=())

    @property
    def drawings(self) -> tuple[Drawing, ...]:
        """Every figure, in the order of the page."""
        return tuple(drawing for a in self.articles for section in a.sections for drawing in section.drawings)


def table(caption: str, titles: Sequence[str], rows: Sequence[Row], *, words: Sequence[str]) -> Table:
    """Return a table of numbers; the columns titled in ``words``, and the first, hold text."""
    columns = tuple(Column(title=title, is_number=title not in (titles[0], *words)) for title in titles)
    return Table(caption=caption, columns=columns, rows=tuple(rows))
