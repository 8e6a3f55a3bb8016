"""Contestants in processes of their own, rounds that alternate between them, and tables of what they did.

A contestant prints a line when it is ready, then answers each line that it gets with a round's costs as JSON (see
`contestants/rounds.py`). Rounds alternate, and ratios are taken within a round, so that a busy machine disturbs all
alike; a table has medians. A contestant that fails is left out, with a line that says why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from tests.clients import environments

ROOT = Path(__file__).parents[1]
CONTESTANTS = Path(__file__).parent / "contestants"
OURS = (sys.executable, "-m", "isoform")
PATIENCE = 900.0
"""Seconds that a contestant may take to get ready, or for a round."""
LAST_WORDS = 5.0
"""Seconds that one may take to say why it ended."""


@dataclass(frozen=True)
class Contestant:
    """A program that takes part. `variables` are added to those of every contestant."""

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def ours(script: str, *arguments: object) -> tuple[str, ...]:
    """The command of a contestant that runs isoform, or packages of this environment."""
    return (sys.executable, str(CONTESTANTS / f"{script}.py"), *map(str, arguments))


def variables(threads: int = 1, tree: Path = ROOT) -> dict[str, str]:
    """The variables of every contestant: no network, this many threads, and isoform from the checkout `tree`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {
        **kept,
        "PYTHONPATH": str(tree / "src"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }


def peer(name: str, install: bool) -> str | None:
    """The interpreter of a peer's environment, or None and a line that says so."""
    found = environments.environment(name) if install else environments.installed(name)
    if found is None:
        print(f"the environment {name} is not installed, its programs are left out (--install makes it)", flush=True)
    return None if found is None else str(found)


def installed(*packages: str) -> bool:
    """Whether this environment has these packages; a line says which one it does not."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        print(f"{missing[0]} is not installed here, its programs are left out", flush=True)
    return not missing


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own: the kernel counts this one's peak memory to the programs it starts."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def prepare(made: Path, *command: object) -> bool:
    """Run a command that makes this file or folder, unless it is there; False, and why, when the command fails."""
    if made.exists():
        return True
    done = subprocess.run([str(part) for part in command], env=variables(), capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(made, ignore_errors=True)
        print(f"{' '.join(map(str, command))} failed:\n{done.stderr[-1500:]}", flush=True)
    return done.returncode == 0


# ------------------------------------------------------------------ rounds
class Failed(Exception):
    """A contestant ended, or took longer than `PATIENCE`; with the last that it printed."""


class Running:
    """A contestant as a process that waits for rounds."""

    def __init__(self, contestant: Contestant, threads: int) -> None:
        self.contestant = contestant
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed with the process)
        self.process = subprocess.Popen(
            contestant.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**variables(threads), **contestant.variables},
            text=True,
        )

    def ready(self) -> str:
        """Wait until it is; returns what it says of itself."""
        return self._line().strip().removeprefix("ready").strip()

    def round(self) -> dict[str, Any]:
        """The costs of a round and the peak memory so far."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the line that does not come says why
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def _line(self) -> str:
        assert self.process.stdout is not None
        limit = threading.Timer(PATIENCE, self.process.kill)
        limit.start()
        line = self.process.stdout.readline()
        limit.cancel()
        if not line:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(LAST_WORDS)
            self.log.seek(0)
            raise Failed(self.log.read()[-1500:].strip())
        return line

    def close(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.communicate()
        self.log.close()


@dataclass
class Outcome:
    """A contestant, what each round cost by part (a count, and the seconds for it), and its peak memory in MB.

    `note` is what it said of itself when it was ready.
    """

    name: str
    rounds: list[Mapping[str, Any]] = field(default_factory=list)
    peak: float = 0.0
    note: str = ""

    def __contains__(self, part: str) -> bool:
        return bool(self.rounds) and part in self.rounds[0]

    def rates(self, part: str) -> list[float]:
        """Items per second, of each round."""
        return [costs[part][0] / costs[part][1] for costs in self.rounds]

    def rate(self, part: str) -> float:
        return median(self.rates(part))

    def spread(self, part: str) -> float:
        """The fastest round's rate over the slowest one's."""
        rates = self.rates(part)
        return max(rates) / min(rates)


def ratio(mine: Outcome, theirs: Outcome, part: str) -> float:
    """How many times as fast `mine` is: the median of the ratios within a round."""
    return median(a / b for a, b in zip(mine.rates(part), theirs.rates(part), strict=True))


def compete(contestants: Sequence[Contestant], rounds: int, threads: int = 1) -> list[Outcome]:
    """The outcomes of those that did not fail, in order, after a round that does not count."""
    outcomes = {contestant.name: Outcome(contestant.name) for contestant in contestants}
    with _running(contestants, threads) as notes:
        started = list(notes)
        for one, note in notes.items():
            outcomes[one.contestant.name].note = note
        for number in range(rounds + 1):
            for one in [*started]:
                try:
                    answer = one.round()
                except Failed as error:
                    _leave_out(one, error)
                    started.remove(one)
                    continue
                outcome = outcomes[one.contestant.name]
                outcome.peak = answer["peak"]
                if number:
                    outcome.rounds.append(answer["costs"])
        return [outcomes[one.contestant.name] for one in started]


def _leave_out(one: Running, error: Failed) -> None:
    one.close()
    print(f"{one.contestant.name} failed and is left out:\n{error}\n", flush=True)


@contextmanager
def _running(contestants: Sequence[Contestant], threads: int) -> Iterator[dict[Running, str]]:
    """Those that are ready, and what they said then. One after another: opening a model may measure, too."""
    started: dict[Running, str] = {}
    try:
        for contestant in contestants:
            one = Running(contestant, threads)
            try:
                started[one] = ""
                started[one] = one.ready()
            except Failed as error:
                del started[one]
                _leave_out(one, error)
        yield started
    finally:
        for one in started:
            one.close()


def first_lines(contestants: Sequence[Contestant], rounds: int, threads: int) -> list[Outcome]:
    """How long a fresh process takes to its first line, in wall seconds ("first"); one round does not count."""
    outcomes = {contestant.name: Outcome(contestant.name) for contestant in contestants}
    for number in range(rounds + 1):
        for contestant in contestants:
            if contestant.name not in outcomes:
                continue
            start = time.perf_counter()
            one = Running(contestant, threads)
            try:
                one.ready()
            except Failed as error:
                outcomes.pop(contestant.name)
                _leave_out(one, error)
                continue
            passed = time.perf_counter() - start
            one.close()
            if number:
                outcomes[contestant.name].rounds.append({"first": (1, passed)})
    return list(outcomes.values())


# ------------------------------------------------------------------ tables
class Table:
    """Prints rows as Markdown and keeps them as data."""

    def __init__(self, title: str, *columns: str) -> None:
        self.title, self.columns = title, columns
        self.rows: list[dict[str, Any]] = []
        print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}", flush=True)

    def add(self, name: str, *values: float) -> None:
        self.rows.append({"name": name, **dict(zip(self.columns, values, strict=True))})
        print(f"| {name} | {' | '.join(brief(value) for value in values)} |", flush=True)


def brief(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write_tables(path: Path, tables: Sequence[Table]) -> None:
    found = [{"title": table.title, "rows": table.rows} for table in tables]
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
