"""Synthetic speech-like audio."""

from pathlib import Path

import numpy as np
import soundfile

from sf_lightning.audio.wave import Wave


def synthetic_voice(seconds: float, pitch_hz: float = 120.0, seed: int = 0) -> Wave:
    """Returns speech-like audio at 16 kHz, `[N]`: syllables of a gliding, slightly noisy pulse train."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.2 * np.sin(2 * np.pi * (0.5 + random.random()) * time))) / 16000
    tilt = 1 + 0.5 * np.sin(2 * np.pi * (1 + random.random()) * time)
    buzz = sum(np.sin(k * phase) / k**tilt for k in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * (2 + random.random()) * time + random.random()), 0, None)
    wave = 0.2 * syllables * buzz + 0.002 * random.standard_normal(len(time))
    return (0.6 * wave / np.abs(wave).max()).astype(np.float32)


def write_corpus(folder: Path, clips: int, speakers: int = 2, seconds: float = 1.5) -> Path:
    """Writes WAV files of `speakers` synthetic voices, one directory per voice, and returns `folder`."""
    for i in range(clips):
        speaker = i % speakers
        path = folder / f"voice{speaker}" / f"clip{i:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = synthetic_voice(seconds + 0.13 * (i % 5), 100 + 60 * speaker, seed=i)
        soundfile.write(path, wave, 16000, subtype="PCM_16")
    return folder
