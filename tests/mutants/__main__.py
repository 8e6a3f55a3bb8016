"""Every planted fault in every form it fits into: `python -m tests.mutants [--only WORDS] [--form FORM] [--explain]`.

Prints a line per fault, then the share that was killed and the share that was bisected to the right place, by form.
Exits with 1 when a mutant survives, is not found, or an honest bundle is called wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests.mutants.faults import FAULTS, WAITING
from tests.mutants.hunt import Outcome, hunt, is_honest
from tests.mutants.planting import FORMS, Sources

SIGNS = {(True, True): "+", (True, False): "?", (False, False): "SURVIVES", (False, True): "SURVIVES"}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--only", default="", help="faults with this in their names")
    options.add_argument("--form", default="", help="forms with this in their names")
    options.add_argument("--explain", action="store_true", help="print what the report says about each departure")
    asked = options.parse_args()
    faults = [fault for fault in FAULTS if asked.only in fault.name]
    outcomes: list[Outcome] = []
    wrong = 0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sources = Sources(Path(folder))
        for source, form in dict.fromkeys((f.source, form) for f in faults for form in f.forms if asked.form in form):
            report = is_honest(sources, source, form)
            if not report.same:
                wrong += 1
                print(f"{source}, {form} is honest, and fails: {[r for r in report.results if not r.passed][:2]}")
        for fault in faults:
            for form in fault.forms:
                if asked.form not in form:
                    continue
                outcome = hunt(sources, fault, form)
                outcomes.append(outcome)
                for line in outcome.lines if asked.explain else ():
                    print(f"{fault.name}, {form}: {line}", flush=True)
                if not (outcome.killed and outcome.found):
                    print(f"{fault.name}, {form}: {outcome.levels} {outcome.place}", flush=True)
    table(outcomes)
    print(f"{len(outcomes)} mutants in {time.perf_counter() - start:.0f} s; {wrong} honest bundles called wrong")
    for name, reason in WAITING.items():
        print(f"waiting: {name}: {reason}")
    return int(wrong > 0 or any(not (o.killed and o.found) for o in outcomes))


def table(outcomes: list[Outcome]) -> None:
    """A Markdown table: + killed and found, ? killed only."""
    by = {(o.fault.name, o.form): SIGNS[o.killed, o.found] for o in outcomes}
    print(f"| fault | {' | '.join(FORMS)} |")
    print(f"|---|{'---|' * len(FORMS)}")
    for name in dict.fromkeys(o.fault.name for o in outcomes):
        print(f"| {name} | {' | '.join(by.get((name, form), '') for form in FORMS)} |")
    for title, attribute in (("killed", "killed"), ("bisected", "found")):
        shares = []
        for form in FORMS:
            mine = [getattr(o, attribute) for o in outcomes if o.form == form]
            shares.append(f"{sum(mine)} of {len(mine)}")
        print(f"| **{title}** | {' | '.join(shares)} |")


if __name__ == "__main__":
    sys.exit(main())
