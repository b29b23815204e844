"""espeak-ng as a function: from voice and sentence to samples, the same for the same seed.

espeak-ng is under the GPL-3, so it is not a core dependency: the extra `sf-lightning[demo]` installs it.
"""

import ctypes
import shutil
import tempfile
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak language, one of its voice variants, pitch and speed."""

    language: str
    variant: str
    pitch: int
    """0 to 99; 50 is the variant's own pitch."""
    pitch_range: int
    """0 (monotone) to 99; 50 is the variant's own. Low values flatten the tones of Mandarin."""
    words_per_minute: int

    @property
    def name(self) -> str:
        """Name of the speaker's folder, such as `en-us_m3`."""
        return f"{self.language}_{self.variant}"

    @property
    def grammar(self) -> str:
        """Name of the grammar of the voice's language: "en" or "cmn"."""
        return self.language.partition("-")[0]


class Espeak:
    """A private copy of espeak-ng with samples at 16 kHz.

    espeak-ng keeps flutter, phase and noise in C globals that no call resets, not even terminating and initializing
    it again, so that the same sentence differs from one call to the next. A copy of the library file is loaded
    instead, with fresh globals: the samples then depend on the seed and the order of the sentences alone.

    Args:
        seed: Seed of espeak's breath noise.

    Raises:
        ImportError: if espeak-ng is not installed.
        RuntimeError: if it cannot read its data.
    """

    # Names and numbers of espeak-ng's speak_lib.h.
    _OUTPUT_SYNCHRONOUS, _INITIALIZE_DONT_EXIT = 2, 0x8000
    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
    _CHARS_UTF8, _END_PAUSE = 1, 0x1000
    _Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    _VOLUME_PERCENT = 70
    """At 100 the louder voices almost reach full scale."""
    _PEAKS = (1_000, 30_000)
    """Accepted peaks of 16-bit samples: below, a clip counts as silent; above, resampling might clip it."""

    def __init__(self, seed: int) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ImportError(
                "the demo corpus needs espeak-ng (package espeakng-loader): pip install 'sf-lightning[demo]'"
            ) from error
        # Windows cannot delete a library in use: the copy stays in the temporary folder there.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        data = espeakng_loader.get_data_path()
        self._native_rate: int = self._library.espeak_Initialize(
            self._OUTPUT_SYNCHRONOUS, 0, data.encode(), self._INITIALIZE_DONT_EXIT
        )
        if self._native_rate <= 0:
            raise RuntimeError(
                f"espeak-ng could not read its data at {data} ({len(data)} characters long): reinstall "
                "espeakng-loader, at a shorter path if this one has more than 180 characters"
            )
        self._chunks: list[NDArray[np.int16]] = []
        self._callback = self._Callback(self._collect)  # kept, because C has only a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def synthesize(self, voice: Voice, text: str) -> NDArray[np.int16]:
        """Returns the samples [N] of a text at `SAMPLE_RATE`, ending in a short pause.

        Raises:
            RuntimeError: if espeak-ng lacks the voice, fails, or its peak is not within `_PEAKS`.
        """
        name = f"{voice.language}+{voice.variant}"
        if status := self._library.espeak_SetVoiceByName(name.encode()):
            raise RuntimeError(f"espeak-ng has no voice {name} (status {status})")
        for parameter, value in (
            (self._RATE, voice.words_per_minute),
            (self._VOLUME, self._VOLUME_PERCENT),
            (self._PITCH, voice.pitch),
            (self._RANGE, voice.pitch_range),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)

        self._chunks.clear()
        utf8 = text.encode()
        size = ctypes.c_size_t(len(utf8) + 1)
        flags = self._CHARS_UTF8 | self._END_PAUSE  # without the pause the last vowel is cut off
        if status := self._library.espeak_Synth(utf8, size, 0, 1, 0, flags, None, None):
            raise RuntimeError(f"espeak-ng's {name} could not read {text!r} (status {status})")
        native = np.concatenate([np.zeros(0, np.int16), *self._chunks]).astype(np.float32)
        peak = np.abs(native).max(initial=0.0)
        if not self._PEAKS[0] < peak < self._PEAKS[1]:
            raise RuntimeError(f"espeak-ng's {name} peaks at {peak:.0f}, not in {self._PEAKS}: {text!r}")
        resampled: NDArray[np.float32] = soxr.resample(native, self._native_rate, SAMPLE_RATE)
        return np.round(resampled).astype(np.int16)

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", num_samples: int, _events: object) -> int:
        """Keeps a copy of the samples of espeak-ng's callback; the last call has none."""
        if samples and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0  # continue

    def close(self) -> None:
        """Frees espeak-ng's memory; the object cannot be used afterwards."""
        self._library.espeak_Terminate()
