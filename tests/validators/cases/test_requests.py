"""Every pipeline task has a request."""

from __future__ import annotations

from isoform.runtimes.pipelines import TASKS
from isoform.validators.cases.requests import OF_PIPELINE, REQUESTS


def test_every_task_has_one_request() -> None:
    assert sorted([*REQUESTS, *OF_PIPELINE]) == sorted(TASKS)
