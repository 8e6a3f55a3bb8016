"""Reading sound, its features, and recognition frame by frame: isoform and transformers in one run.

    python -m benchmarks.sound [--sections reading,features,ctc] [--rounds N] [--json FILE] [--folder DIR]

reading    CPU seconds and peak memory for an hour of FLAC (44.1 kHz, stereo) to 16 kHz mono, and to log-mel features
features   CPU milliseconds for the log-mel features of 30 s, here and in transformers' extractor (torch)
ctc        seconds of sound recognized per CPU second, with random weights in the shapes of wav2vec2-base (95M
           parameters) and wav2vec2-large-lv60 (315M)

Every contestant is a process of its own with one thread. Rounds alternate between them: a table has the median, and the
ratio is the median of the ratios within a round. Whisper is in audio.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import OURS, Contestant, Table, apart, compete, ours, prepare, ratio, write_tables

RATE = 16000
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}


# ------------------------------------------------------------------ reading
def reading(folder: Path, rounds: int) -> Iterator[Table]:
    path = folder / "hour.flac"
    if not path.exists():
        apart(write_hour, path)
    table = Table("An hour of FLAC, 44.1 kHz stereo", "CPU s", "MB over an idle process")
    for name, wanted in (("to 16 kHz mono, block by block", False), ("to log-mel features, 80 bands (115 MB)", True)):
        costs = [apart(read_hour, path, wanted) for _ in range(max(rounds // 3, 1))]
        table.add(name, median(cpu for cpu, _ in costs), median(peak for _, peak in costs))
    yield table


def write_hour(path: Path) -> None:
    import numpy as np
    import soundfile

    random = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 44100, 2, "PCM_16") as file:
        second = np.sin(np.arange(44100)[:, None] * 0.03) * 0.3 + random.normal(0, 0.01, (44100, 2))
        for n in range(3600):
            file.write(second * np.sin(n))


def read_hour(path: Path, wanted: bool) -> tuple[float, float]:
    """CPU seconds, and MB more than before; `wanted`: the features too."""
    import resource
    import time

    from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel_blocks
    from isoform.runtimes.preprocess.audio.recordings import audio_blocks

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

    first = next(audio_blocks(path, RATE))
    log_mel_blocks([first[:RATE]], LogMelSettings())  # imports, and the filter bank
    before, start = peak(), time.process_time()
    if wanted:
        log_mel_blocks(audio_blocks(path, RATE), LogMelSettings())
    else:
        for _ in audio_blocks(path, RATE):
            pass
    return time.process_time() - start, peak() - before


# ------------------------------------------------------------------ features
def features(folder: Path, rounds: int) -> Iterator[Table]:
    table = Table("Log-mel features of 30 s (CPU ms)", "80 bands", "128 bands")
    costs = [apart(extract) for _ in range(rounds)]
    for name in costs[0]:
        table.add(name, *(median(cost[name][n] for cost in costs) for n in range(2)))
    yield table


def extract() -> dict[str, list[float]]:
    """CPU milliseconds by contestant, for 80 and 128 bands."""
    import time

    import numpy as np
    import torch
    from transformers import WhisperFeatureExtractor

    from isoform.runtimes.preprocess.audio.log_mel import LogMelSettings, log_mel

    torch.set_num_threads(1)
    samples = np.random.default_rng(0).normal(0, 0.1, 30 * RATE).astype(np.float32)
    found: dict[str, list[float]] = {"isoform": [], "transformers": []}
    for mels in (80, 128):
        settings, extractor = LogMelSettings(feature_size=mels), WhisperFeatureExtractor(feature_size=mels)

        def ours(settings: LogMelSettings = settings) -> Any:
            return log_mel(samples, settings)

        def theirs(extractor: Any = extractor) -> Any:
            return extractor(samples, sampling_rate=RATE, return_tensors="np")

        for name, run in (("isoform", ours), ("transformers", theirs)):
            run()
            start = time.process_time()
            for _ in range(10):
                run()
            found[name].append((time.process_time() - start) * 100)
    return found


# ------------------------------------------------------------------ ctc
def ctc(folder: Path, rounds: int) -> Iterator[Table]:
    sound = folder / "sound.npy"
    if not sound.exists():
        apart(write_noise, sound)
    shapes: dict[str, dict[str, Any]] = {"base": {}, "large-lv60": LARGE}
    for name, settings in shapes.items():
        source, bundle = folder / f"wav2vec2-{name}", folder / f"wav2vec2-{name}-bundle"
        if not source.exists():
            apart(write_ctc, source, settings)
        prepare(bundle, *OURS, "export", source, "--to", "onnx,torchscript", "--out", bundle, "--no-check")
        contestants = [
            Contestant(f"isoform, {backend}", ours("ctc_isoform", backend, bundle, sound))
            for backend in ("onnxruntime", "torchscript")
        ]
        contestants.append(Contestant("transformers' pipeline", ours("ctc_transformers", source, sound)))
        outcomes = compete(contestants, rounds)
        table = Table(
            f"The shape of wav2vec2-{name}, ten seconds of sound (seconds per CPU second)",
            *("seconds/s", "isoform's / this", "peak MB"),
        )
        for one in outcomes:
            table.add(one.name, one.rate("recognize"), ratio(outcomes[0], one, "recognize"), one.peak)
        yield table


def write_noise(path: Path) -> None:
    import numpy as np

    np.save(path, np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype(np.float32))


def write_ctc(path: Path, settings: dict[str, Any]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(vocab_size=32, **settings)).save_pretrained(path)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    (path / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    transformers.Wav2Vec2CTCTokenizer(str(path / "vocab.json")).save_pretrained(path)
    masked = settings.get("feat_extract_norm") == "layer"
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked).save_pretrained(path)


SECTIONS: dict[str, Callable[[Path, int], Iterator[Table]]] = {"reading": reading, "features": features, "ctc": ctc}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the tables to this file as well")
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    given = parser.parse_args()
    chosen = given.sections.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    with tempfile.TemporaryDirectory(prefix="isoform-sound-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tables = [table for name in chosen for table in SECTIONS[name](folder, given.rounds)]
    if given.json:
        write_tables(given.json, tables)


if __name__ == "__main__":
    main()
