"""JUnit: a suite for every model, backend and level, a test case for every result. For CI systems that count tests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from xml.etree import ElementTree as xml

if TYPE_CHECKING:
    from isoform.validators.report.records import Report, Result, Skip

_FORBIDDEN = re.compile(
    "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # characters that XML has no way to say


def junit(report: Report) -> str:
    """The report as one XML document; the time of a case is given with the first of its results."""
    seconds = {tuple(e.fields().values()): e.seconds for e in report.evidence}
    root = xml.Element("testsuites", name="isoform")
    suites: dict[tuple[str, str, str], xml.Element] = {}

    def suite(entry: Result | Skip) -> xml.Element:
        key = (entry.model, entry.backend, entry.level)
        if key not in suites:
            suites[key] = xml.SubElement(root, "testsuite", name=_name(key))
        return suites[key]

    for result in report.results:
        parent = suite(result)
        spent = seconds.pop(tuple(result.fields().values()), 0.0)
        case = _case(parent, result, f"{result.where} [{result.metric}]", spent)
        text = f"{result.metric} {result.value:.6g}, limit {result.limit:.6g}"
        if not result.passed:
            message = _clean(f"{text}: {result.note}" if result.note else text)
            xml.SubElement(case, "failure", type=result.metric, message=message).text = message
        elif result.note:
            xml.SubElement(case, "system-out").text = _clean(f"{text}: {result.note}")
    for skip in report.skipped:
        xml.SubElement(_case(suite(skip), skip, skip.where, 0.0), "skipped", message=_clean(skip.reason))
    for element in suites.values():
        _count(element, [element])
    _count(root, suites.values())
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _case(parent: xml.Element, entry: Result | Skip, name: str, seconds: float) -> xml.Element:
    place = _name((entry.model, entry.backend, entry.level))
    return xml.SubElement(parent, "testcase", classname=place, name=_clean(name), time=f"{seconds:.3f}")


def _name(key: Iterable[str]) -> str:
    """Dots would be read as a hierarchy."""
    return _clean(".".join(part.replace(".", "_") for part in key if part))


def _count(element: xml.Element, suites: Iterable[xml.Element]) -> None:
    cases = [case for suite in suites for case in suite.findall("testcase")]
    element.set("tests", str(len(cases)))
    element.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    element.set("errors", "0")
    element.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    element.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.3f}")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
