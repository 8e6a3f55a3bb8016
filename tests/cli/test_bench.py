"""`isoform bench`: the table, the reasons, the JSON, the picture, and one line for what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from isoform import bench_chart, benching, show, show_bench
from isoform.bench_report import BenchReport
from isoform.choosing import Target
from isoform.errors import InputError
from isoform.runtimes.choose.choose import Series, choose
from isoform.runtimes.choose.probe import Machine
from isoform.runtimes.choose.records import Candidate, Measurement, Timing
from isoform.runtimes.choose.work import Weights, with_work
from tests.cli.test_bad_input import refused, run

WORKLOADS = ("prefill 128", "decode", "batch 8", "batch 32", "prefill 1024")
GOOD, BAD = {"kl_mean": (0.004, 0.01)}, {"kl_mean": (0.13, 0.08)}
MACHINE = Machine(
    processor="A processor with a name of 48 letters, as they are",
    cores=2,
    threads=2,
    bandwidth=28e9,
    peaks={"f32": 180e9, "bf16": 420e9, "int8": 800e9},
    noise=1.05,
    missing={"f16": "no kernel"},
)


def measured(
    backend: str, dtype: str, *rates: float, threads: int = 2, proof: Any = GOOD, error: str = "", **more: Any
) -> Measurement:
    names = zip(WORKLOADS, rates, strict=False)
    return Measurement(
        candidate=Candidate(backend=backend, dtype=dtype, threads=threads, **more),
        timings={name: Timing(rate=rate, unit="tokens", spread=1.02) for name, rate in names},
        load_seconds=12.34,
        first_seconds=0.25,
        peak_bytes=12_345_678_901,
        proof=proof,
        error=error,
    )


MEASUREMENTS = (
    measured("torch", "f32", 518, 31, 82, 162, 480, proof={}),
    measured("torch", "bf16", 1180, 55, 240, 411, 1300),
    measured("torch", "int4w", 800, 100, 300, 400, 900, proof=BAD),
    measured("onnxruntime", "q4w", 610, 136, 150, 180, 560),
    measured("onnxruntime", "int8", 1600, 90, 380, 520, 1500),
    measured("openvino", "f32-portable", 12345, 60, 380, 520, 1500, precision="bf16"),
    measured("onnxruntime", "q4w", 420, 111, 150, 180, 560, threads=1),
    measured("torch", "int8", 90, 3, error="stopped after a round: 11.1 times as slow as the best before it"),
    measured("llamacpp", "q4_0", error="its process was ended by SIGSEGV: it wrote no message"),
    measured("llamacpp", "q8_0", error="left out: it needs about 40.1 GB of memory, 20.1 GB are free"),
    measured("llamacpp", "q4_k_m", error="left out: it takes 12 s or more to make and open, 3 of 60 s are left"),
)


def report(quality: str = "small", control: float = 1.02, measurements: Any = MEASUREMENTS) -> BenchReport:
    weights = Weights(parameters=134_515_008, table=28_311_552, tied=True)
    series = Series(taken="2026-11-30", control=control, measurements=with_work(measurements, weights))
    return BenchReport(
        model="someone/a-model-with-a-long-name-of-its-own",
        task="text-generation",
        quality=quality,
        machine=MACHINE,
        series=series,
        choice=choose(series, quality),
        versions={"isoform": "0.1.0", "torch": "2.13.0+cpu"},
        file="/home/somebody/.cache/isoform/measured/0123456789abcdef01234567.json",
    )


def shown(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: Callable[[BenchReport], None],
    about: BenchReport,
    width: int = 80,
) -> list[str]:
    monkeypatch.setattr("isoform.show.out.width", width)
    capsys.readouterr()
    how(about)
    return capsys.readouterr().out.splitlines()


# ------------------------------------------------------------------ the table
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for how in (show_bench.bench, show_bench.why):
        lines = shown(monkeypatch, capsys, how, report(), width)
        assert max(map(len, lines)) <= width


def test_the_table_has_a_row_for_each_candidate_and_the_failures_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, show_bench.bench, report())
    starts = ["* onnxruntime q4w", "onnxruntime int8", "! torch int4w", "torch bf16", "torch f32"]
    starts += ["torch int8, 2 threads: stopped", "llamacpp q4_0, 2 threads: its process was ended by SIGSEGV"]
    starts += ["llamacpp q8_0", "llamacpp q4_k_m", "chosen: onnxruntime q4w, prompts from 11028 tokens"]
    places = [next(n for n, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert places == sorted(places), lines
    row = lines[next(n for n, line in enumerate(lines) if line.startswith("torch f32"))]
    assert row.split()[2:] == ["12.34", "0.25", "12,346", "518", "480", "31.0", "82.0", "162"]
    below = lines[lines.index(row) + 1]
    assert below.split()[2:] == ["61%", "57%", "60%r", "20%r", "24%"]
    text = " ".join(" ".join(lines).split())
    for words in ("2 cores", "28.0 GB/s", "int8 800 Gop/s", "no f16: no kernel", "Rates in tokens/s", "never chosen"):
        assert words in text


def test_a_narrow_terminal_has_a_block_for_each_candidate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, show_bench.bench, report(), 60)
    at = lines.index("torch f32, 2 threads")
    assert lines[at + 1] == "  load 12.34 s, first 0.25 s, 12,346 MB"
    assert "  decode: 31.0 tokens/s, 60% of bandwidth" in lines[at:]


def test_candidates_of_equally_many_threads_do_not_repeat_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(shown(monkeypatch, capsys, show_bench.bench, report(measurements=MEASUREMENTS[:4])))
    assert "all in 2 threads" in text.replace("\n", " ")
    assert text.count("2 threads") == 2, "in the legend and in the choice"


def test_nothing_is_chosen_where_nothing_is_proven(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = report(measurements=MEASUREMENTS[2:3] + MEASUREMENTS[7:])
    for how in (show_bench.bench, show_bench.why):
        text = "\n".join(shown(monkeypatch, capsys, how, nothing))
        assert "nothing: no candidate is proven" in text
    assert "kl_mean 0.13 (limit 0.08)" in text


# ------------------------------------------------------------------ the reasons
def test_why_says_what_is_faster_by_how_much_and_why_the_others_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(" ".join(shown(monkeypatch, capsys, show_bench.why, report())).split())
    for words in (
        "Times as fast as today's choice, torch f32, 2 threads: prefill 128 1.18, prefill 1024 1.17, decode 4.39",
        "Times as fast as the runner-up, onnxruntime int8, 2 threads: prefill 128 0.38",
        "torch int4w, 2 threads: not proven: kl_mean 0.13 (limit 0.08)",
        "llamacpp q4_0, 2 threads: its process was ended by SIGSEGV",
        "llamacpp q8_0, 2 threads: left out: it needs about 40.1 GB of memory",
        "llamacpp q4_k_m, 2 threads: left out: it takes 12 s or more",
        "torch int8, 2 threads: stopped after a round: 11.1 times as slow",
        "torch bf16, 2 threads: 1.9 times as slow",
        "measured: 2026-11-30 with isoform 0.1.0, torch 2.13.0+cpu",
        "kept in: /home/somebody/.cache/isoform/measured/0123456789abcdef01234567.json",
        "reads: 28.0 GB/s",
    ):
        assert words in text, text
    assert "noise" not in text


def test_why_says_that_a_quality_does_not_admit_a_candidate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, show_bench.why, report("exact", measurements=MEASUREMENTS[:2]))
    assert "chosen: torch f32, 2 threads" in lines
    assert "  torch bf16, 2 threads: not exact" in lines
    assert not any("runner-up" in line for line in lines)


def test_why_says_that_the_machine_was_noisy_and_what_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = replace(report(control=1.4), machine=replace(MACHINE, noise=2.0), file="")
    text = " ".join(" ".join(shown(monkeypatch, capsys, show_bench.why, noisy)).split())
    assert "noise: the speed of torch f32 changed by 40% while the others were measured" in text
    assert "the probe's figures may be 2.0 times too low" in text
    assert "set ISOFORM_CACHE" in text


# ------------------------------------------------------------------ JSON
def test_a_report_survives_json() -> None:
    for about in (report(), report(measurements=MEASUREMENTS[7:])):
        data = json.loads(json.dumps(about.to_json()))
        assert BenchReport.from_json(data) == about
    shares = report().to_json()["measurements"][0]["shares"]
    assert shares["decode"]["limit"] == "bandwidth"
    assert shares["decode"]["value"] == pytest.approx(31 * 4 * 134_515_008 / 28e9)


# ------------------------------------------------------------------ the picture
def test_the_picture_is_a_png_of_a_column_for_each_workload(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "bench.png"
    bench_chart.check_chart(path)
    bench_chart.draw(report(), path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as picture:
        assert picture.width > picture.height > 200
    assert [file.name for file in tmp_path.iterdir()] == ["bench.png"]


def test_there_is_no_picture_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no candidate .* has a time"):
        bench_chart.draw(report(measurements=MEASUREMENTS[7:]), tmp_path / "bench.png")


# ------------------------------------------------------------------ what is measured
@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Series]:
    """Made-up measurements of torch: two workloads only, until there is another one in the list."""
    monkeypatch.setenv("ISOFORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = [Series(taken="2026-11-30", measurements=(measured("torch", "f32", 500, 30, proof={}),))]
    monkeypatch.setattr(Target, "measure", lambda *_, **__: found[-1])
    monkeypatch.setattr(benching, "cached_probe", lambda *_, **__: MACHINE)
    return found


def test_a_report_has_the_shares_of_the_model_and_stays_in_the_cache(
    series: list[Series], tiny: Callable[[str], Path]
) -> None:
    from isoform.api import bench_model
    from isoform.reference.model import open_model

    model = open_model(tiny("llama"))
    parameters = sum(prod(weight.shape) for weight in model.weights.values())
    looked_up = 0 if model.tied else prod(model.weights["embed.weight"].shape)
    found = bench_model(tiny("llama"))
    assert (found.task, found.quality) == ("text-generation", "exact")
    assert found.choice is not None and found.choice.candidate.dtype == "f32"
    assert Path(found.file).is_file()
    (one,) = found.series.measurements
    shares = dict(found.shares(one))
    assert one.timings["decode"].bytes == 4 * (parameters - looked_up)
    assert shares["decode"].value == pytest.approx(30 * 4 * (parameters - looked_up) / 28e9)
    assert {share.limit for share in shares.values()} == {"bandwidth", "f32"}
    series.append(replace(series[0], taken="2026-12-01"))
    assert bench_model(tiny("llama"), whole=False).series.taken == "2026-11-30"
    assert bench_model(tiny("llama")).series.taken == "2026-12-01", "a table has more workloads"
    assert bench_model(tiny("llama"), backends=["torch"], again=True).file == ""


def test_a_bundle_without_its_checkpoint_reads_its_files(
    series: list[Series], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    from isoform import api
    from isoform.manifest import Manifest

    folder = tmp_path / "bundle"
    manifest = api.export(tiny("llama"), folder, to="onnx", check=False)
    manifest = Manifest.read(folder)
    manifest.source["path"] = str(tmp_path / "gone")
    manifest.write(folder)
    series.append(replace(series[0], measurements=(measured("onnxruntime", "f32", 500, 30, proof={}),)))
    (one,) = api.bench_model(folder).series.measurements
    assert one.timings["decode"].bytes == sum(file.size for file in manifest.artifacts[0].files)
    assert one.timings["decode"].operations == 0
    assert one.timings["prefill 128"].bytes == 0


# ------------------------------------------------------------------ the command
@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the command asks to be measured; nothing is."""
    found: list[dict[str, Any]] = []

    def measured(source: str, task: str | None, **options: Any) -> BenchReport:
        benching.check_request(task, options["quality"], options["backends"], options["threads"], options["seconds"])
        found.append({"source": source, "task": task, **options})
        return report()

    monkeypatch.setattr(benching, "bench_model", measured)
    monkeypatch.setattr(show.out, "width", 80)
    yield found


def test_the_command_prints_a_table_sentences_json_and_a_picture(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "bench", "m", "--backend", "torch,onnxruntime", "--backend", "llamacpp") == 0
    assert "candidate" in capsys.readouterr().out
    assert asked[0]["backends"] == ["torch", "onnxruntime", "llamacpp"]
    assert not asked[0]["again"]
    assert run(monkeypatch, "bench", "m", "--why", "--again", "--threads", 1, "--quality", "high") == 0
    assert "not taken" in capsys.readouterr().out
    assert (asked[1]["again"], asked[1]["threads"], asked[1]["quality"]) == (True, 1, "high")
    assert run(monkeypatch, "bench", "m", "--json", "--png", tmp_path / "b.png", "--task", "text-generation") == 0
    assert BenchReport.from_json(json.loads(capsys.readouterr().out)) == report()
    assert (tmp_path / "b.png").is_file()


WRONG = {
    "quality": (["--quality", "best"], "choose from exact, high, small"),
    "backend": (["--backend", "tensorrt"], "tensorrt"),
    "task": (["--task", "fortune-telling"], "fortune-telling"),
    "threads": (["--threads", "0"], "threads=0"),
    "seconds": (["--seconds", "nan"], "seconds=nan"),
    "no seconds": (["--seconds", "0"], "seconds=0"),
    "both": (["--why", "--json"], "pass one of them"),
    "ending": (["--png", "b.jpg"], ".png"),
    "folder": (["--png", "nowhere/b.png"], "there is no folder"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_is_one_line_and_nothing_is_measured(
    wrong: str,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, named = WRONG[wrong]
    assert named in refused(monkeypatch, capsys, "bench", "m", *arguments)
    assert not asked


def test_a_picture_is_refused_without_matplotlib_and_where_it_cannot_be_written(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").mkdir()
    assert "is a folder" in refused(monkeypatch, capsys, "bench", "m", "--png", tmp_path / "a.png")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "cannot be written to" in refused(monkeypatch, capsys, "bench", "m", "--png", tmp_path / "b.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "isoform[plots]" in refused(monkeypatch, capsys, "bench", "m", "--png", tmp_path / "b.png")
    assert not asked


def test_a_model_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing-here" in refused(monkeypatch, capsys, "bench", tmp_path / "nothing-here")
