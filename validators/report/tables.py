"""The table of a report: a line for the worst result of every group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoform.validators.report.records import Report, use, worst

if TYPE_CHECKING:
    from rich.table import Table


def tables(report: Report) -> list[Table]:
    """A table for each model."""
    models = dict.fromkeys(result.model for result in report.results)
    return [table(Report([r for r in report.results if r.model == model]), model) for model in models]


def table(report: Report, model: str = "") -> Table:
    """The worst result of every group; `remarks` has what there is to say about them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = Text(f"parity: {model}" if model else "parity")
    rows = Table(header_style="bold", title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    rows.padding = (0, 1, 0, 0)  # fits 80 columns
    for column in ("backend", "level", "cases", "metric"):
        rows.add_column(column, overflow="fold")
    for column in ("value", "limit", "used"):
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("", no_wrap=True)
    before: tuple[str, ...] = ()
    for result in worst(report.results):
        failed, share = use(result)
        here = (result.backend, result.level)
        shown = [name if here[: n + 1] != before[: n + 1] else "" for n, name in enumerate(here)]
        before = here
        rows.add_row(
            *map(Text, shown),
            Text(result.kind),
            Text(result.metric),
            f"{result.value:.2g}",
            f"{result.limit:.2g}",
            f"{share:.0%}" if result.limit else "",
            Text("FAIL", "red") if failed else Text("ok", "green"),
        )
    return rows
