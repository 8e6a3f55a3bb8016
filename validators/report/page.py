"""One page that holds everything: no script, nothing from the network, light or dark as the reader has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from math import isfinite
from typing import TYPE_CHECKING, Any

from isoform.validators.report import charts
from isoform.validators.report.evidence import LOWEST, PER_DECADE
from isoform.validators.report.layers import by_layer
from isoform.validators.report.records import use, worst
from isoform.validators.report.remarks import remarks

if TYPE_CHECKING:
    from isoform.validators.report.evidence import Evidence
    from isoform.validators.report.records import Report, Result

BLUES = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c")
"""Light to dark: told apart by everyone, in print too. What failed has another hue, a cross and its number."""
FAILED = "#a8320a"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Report) -> str:
    """The report as one HTML page."""
    sections = [
        ("summary", "Summary", _summary),
        ("heat", "Cases", _heat),
        ("layers", "Layers", _layers),
        ("errors", "Errors by size", _errors),
        ("scatter", "Wanted and got", _scatter),
        ("kl", "Divergence by position", _divergence),
        ("time", "Time", _time),
        ("results", "Every result", _results),
    ]
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{make(report)}</section>'
        for name, title, make in sections
    )
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    title = f"isoform: {_verdict(report)}"
    css = (files(__package__) / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#summary">Skip to the summary</a>\n'
        f"<header>{_head(report)}</header>\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _verdict(report: Report) -> str:
    return "the same" if report.same else "not the same"


def _head(report: Report) -> str:
    about, failed = report.about, sum(not result.passed for result in report.results)
    name = about.get("bundle") or about.get("config") or "parity report"
    mark = (
        '<span class="verdict good">✓ the same</span>'
        if report.same
        else '<span class="verdict bad">✗ not the same</span>'
    )
    facts: dict[str, str] = {
        "source": str(about.get("source", "")),
        "model": ", ".join(str(about[key]) for key in ("family", "task") if key in about),
        "results": f"{len(report.results)}, of which {failed} failed; {len(report.skipped)} skipped",
        "time": f"{about['seconds']:.1f} s" if "seconds" in about else "",
        "versions": ", ".join(f"{key} {value}" for key, value in about.get("versions", {}).items()),
    }
    rows = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items() if value)
    return f"<h1>{escape(str(name))}: {mark}</h1><dl>{rows}</dl>"


def _summary(report: Report) -> str:
    shown = _result_table(report, worst(report.results), "The result of each group that is nearest to its limit")
    items = "".join(f"<li>{escape(str(line))}</li>" for line in remarks(report))
    return shown + (f'<ul class="plain">{items}</ul>' if items else "")


def _result_table(report: Report, results: Sequence[Result], name: str) -> str:
    several = any(result.model for result in report.results)
    head = [*(["model"] if several else []), "backend", "level", "case", "metric"]
    rows = []
    for result in results:
        share = use(result)[1]
        texts = [*([result.model] if several else []), result.backend, result.level, result.where, result.metric]
        verdict = '<span class="good">✓ ok</span>' if result.passed else '<span class="bad">✗ fail</span>'
        used = f"{share:.0%}" if result.limit and isfinite(share) else ""
        numbers = "".join(f'<td class="n">{text}</td>' for text in (_number(result.value), _number(result.limit), used))
        cells = "".join(f'<td class="{name}">{escape(text)}</td>' for name, text in zip(head, texts, strict=True))
        rows.append(f'<tr>{cells}{numbers}<td>{verdict}</td><td class="note">{escape(result.note)}</td></tr>')
    numeric = "".join(f'<th scope="col" class="n">{text}</th>' for text in ("value", "limit", "used"))
    columns = "".join(f'<th scope="col">{text}</th>' for text in head)
    top = f'<tr>{columns}{numeric}<th scope="col">verdict</th><th scope="col">note</th></tr>'
    return _table(name, top, rows)


def _heat(report: Report) -> str:
    """Case by form: how much of its limit the worst metric used."""
    found: dict[tuple[str, str], Result] = {}
    for result in report.results:
        if result.level in ("graph", "deployment"):
            form = " ".join(filter(None, (result.model, result.backend, result.dtype)))
            key = (result.title or result.where, form)
            if key not in found or use(result) > use(found[key]):
                found[key] = result
    if not found:
        return "<p>Nothing ran.</p>"

    def cell(result: Result) -> tuple[float, str]:
        failed, share = use(result)
        text = f"{share:.0%}" if isfinite(share) and result.limit else ("✓" if not failed else "")
        return (2.0 if failed else share), (f"✗ {text}".strip() if failed else text)

    rows, columns = (list(dict.fromkeys(key[n] for key in found)) for n in (0, 1))
    about = "The worst metric of a case, as a share of its limit; ✗ marks what is beyond it."
    return f"<p>{about}</p>" + heat_table("Cases by form", rows, columns, {key: cell(r) for key, r in found.items()})


def _layers(report: Report) -> str:
    """Layer by form, and every module in the details."""
    profiles = {profile.column: (profile.where, profile.places) for profile in report.layers}
    for departure in report.departures:
        if departure.profile:
            profiles.setdefault(departure.column, (departure.where, departure.profile))
    if not profiles:
        return "<p>Not measured: <code>isoform check --layers</code> looks into every module.</p>"
    whole: dict[tuple[str, str], tuple[float, str]] = {}
    each: dict[tuple[str, str], tuple[float, str]] = {}
    for form, (_, places) in profiles.items():
        whole |= {(layer, form): _share(worst.share) for layer, worst in by_layer(places).items()}
        each |= {(one.place, form): _share(one.share) for one in places}
    about = "The module outputs of the backend against the reference's, as shares of what torch's own error allows: "
    about += "the worst of a layer. " + "; ".join(f"{form}: {where}" for form, (where, _) in profiles.items())
    rows, modules = (list(dict.fromkeys(key[0] for key in cells)) for cells in (whole, each))
    return (
        f"<p>{escape(about)}.</p>{heat_table('Layers by form', rows, list(profiles), whole)}"
        f"<details><summary>{len(modules)} modules</summary>"
        f"{heat_table('Modules by form', modules, list(profiles), each)}</details>"
    )


def _share(share: float) -> tuple[float, str]:
    text = f"{share:.0%}" if isfinite(share) else "not finite"
    return (2.0, f"✗ {text}") if share > 1 else (share, text)


def heat_table(
    name: str, rows: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, str], tuple[float, str]]
) -> str:
    """A table whose cells are coloured by their first entry, 0 to 1, and beyond: failed. The second is shown."""
    top = "<tr><td></td>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in columns) + "</tr>"
    body = []
    for row in rows:
        line = f'<tr><th scope="row">{escape(row)}</th>'
        for column in columns:
            share, text = cells.get((row, column), (-1.0, ""))
            style = f' style="background:{colour(share)};color:{ink(colour(share))}"' if share >= 0 else ""
            line += f"<td{style}>{escape(text)}</td>"
        body.append(line + "</tr>")
    return _table(name, top, body, "heat")


def colour(share: float) -> str:
    """The colour of a share of the limit."""
    return FAILED if share > 1 else BLUES[min(len(BLUES) - 1, int(share * len(BLUES)))]


def ink(ground: str) -> str:
    """Black or white, whichever reads better on this colour."""
    red, green, blue = (int(ground[n : n + 2], 16) / 255 for n in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "#ffffff"


def _by_form(report: Report) -> dict[str, list[Evidence]]:
    forms: dict[str, list[Evidence]] = {}
    for evidence in report.evidence:
        forms.setdefault(evidence.column, []).append(evidence)
    return forms


def _figures(
    report: Report, about: str, none: str, make: Callable[[str, list[Evidence]], tuple[str, str] | None]
) -> str:
    """A chart for every form: `make` gives it and its caption, or None when there is nothing to show."""
    drawn = [
        f"<figure><h3>{escape(form)}</h3>{made[0]}<figcaption>{escape(made[1])}</figcaption></figure>"
        for form, found in _by_form(report).items()
        if (made := make(form, found))
    ]
    return f'<p>{about}</p><div class="charts">{"".join(drawn)}</div>' if drawn else f"<p>{none}</p>"


def _errors(report: Report) -> str:
    def make(form: str, found: list[Evidence]) -> tuple[str, str] | None:
        counted = [evidence.counts for evidence in found if evidence.counts]
        if not counted:
            return None
        exact = sum(evidence.exact for evidence in found)
        counts = [sum(column) for column in zip(*counted, strict=True)]
        total = exact + sum(counts)
        label = f"{form}: histogram of absolute errors, {total} values, {exact / total:.0%} without an error"
        return charts.histogram(
            counts, LOWEST, PER_DECADE, exact, label
        ), f"{total:,} values, {exact / total:.0%} exact"

    about = (
        "Absolute errors of the first output, over all cases; two bars for a factor of ten, values without any at 0."
    )
    return _figures(report, about, "No values were compared.", make)


def _scatter(report: Report) -> str:
    def make(form: str, found: list[Evidence]) -> tuple[str, str] | None:
        points = [point for evidence in found for point in evidence.points]
        if not points:
            return None
        step = -(-len(points) // 400)
        port = found[0].port
        label = f"{form}: {port}, wanted against got; on the dashed line they agree"
        return charts.scatter(points[::step], label), f"{port}: wanted across, got up"

    return _figures(
        report, "Some values of the first output, against the reference's.", "No values were compared.", make
    )


def _divergence(report: Report) -> str:
    def make(form: str, found: list[Evidence]) -> tuple[str, str] | None:
        with_kl = [evidence for evidence in found if evidence.kl]
        if not with_kl:
            return None
        longest = max(with_kl, key=lambda evidence: len(evidence.kl))
        mean = sum(nats for _, nats in longest.kl) / len(longest.kl)
        label = f"{form}: Kullback-Leibler divergence by position, mean {mean:.1e} nats"
        return charts.line(longest.kl, label), f"{longest.where}; mean {mean:.1e} nats"

    about = "How far the distribution over the next token is from the reference's, in nats, along one row."
    return _figures(report, about, "The outputs are no logits.", make)


def _time(report: Report) -> str:
    found = [evidence for evidence in report.evidence if evidence.seconds > 0]
    if not found:
        return "<p>Nothing was timed.</p>"
    longest = max(evidence.seconds for evidence in found)
    rows = []
    for evidence in found:
        cells = f"<td>{escape(evidence.who)} {escape(evidence.where)}</td>"
        number = f'<td class="n">{evidence.seconds:.3f}</td>'
        bar = f'<td class="fill"><span class="bar" style="width:{evidence.seconds / longest:.1%}"></span></td>'
        rows.append(f"<tr>{cells}{number}{bar}</tr>")
    head = '<th scope="col">case</th><th scope="col" class="n">seconds</th><th scope="col">share of the longest</th>'
    top = f"<tr>{head}</tr>"
    return "<p>The backend's own time for each case, without the reference.</p>" + _table("Seconds by case", top, rows)


def _results(report: Report) -> str:
    whole = _result_table(report, report.results, "Every result")
    return f"<details><summary>{len(report.results)} results</summary>{whole}</details>"


def _table(name: str, top: str, rows: Iterable[str], kind: str = "") -> str:
    """A table that scrolls by itself when it is too wide, with the keyboard too."""
    style = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name, quote=True)}">'
        f"<table{style}><thead>{top}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(value: Any) -> str:
    return f"{value:.2g}" if isfinite(value) else "not finite"
