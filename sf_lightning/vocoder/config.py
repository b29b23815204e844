"""The choice of a vocoder by configuration."""

from dataclasses import dataclass
from pathlib import Path

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.hub import local_path
from sf_lightning.files.identify import VOCODERS, Kind, require_kind
from sf_lightning.vocoder.base import Vocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim

SHIPPED = Path(__file__).parent / "weights"
"""Folders of the vocoders that are shipped with the package; their names can be given for a checkpoint."""

GRIFFIN_LIM = "griffin_lim"
"""Value of `VocoderConfig.checkpoint` for Griffin-Lim."""

MAX_ITERATIONS = 1000
"""Largest accepted number of iterations of Griffin-Lim."""

DEFAULT = GRIFFIN_LIM
"""The default vocoder: Griffin-Lim, or the name of a shipped one."""


@dataclass(frozen=True)
class VocoderConfig:
    """Which vocoder converts mels to waves.

    Args:
        checkpoint: "griffin_lim", which needs no weights; the name of a vocoder that is shipped with the package,
            such as "small" (`./small` is a folder of yours); a checkpoint of `sf-fit --trains=vocoder`, of which
            the averaged weights are used, or the folder that `sf-export` made of it; a checkpoint of the `bigvgan`
            package (a file with its `config.json` beside it, or their folder); the folder, a safetensors file or a
            state dict of Qwen2.5-Omni, whose BigVGAN outputs 24 kHz; or `OWNER/NAME` or `OWNER/NAME@REVISION` of
            one of these folders on the Hugging Face hub (HF_TOKEN and HF_HOME set access token and cache).
        iterations: Number of iterations of Griffin-Lim.
    """

    checkpoint: str | None = DEFAULT
    iterations: int = 32

    def __post_init__(self) -> None:
        if self.checkpoint is None:  # how Griffin-Lim was stored before it had a name
            object.__setattr__(self, "checkpoint", GRIFFIN_LIM)
        if not 1 <= self.iterations <= MAX_ITERATIONS:
            raise ValueError(f"vocoder.iterations is {self.iterations}: expected 1 to {MAX_ITERATIONS}")

    @property
    def name(self) -> str:
        """The checkpoint, which is never None."""
        return self.checkpoint or GRIFFIN_LIM

    def make(self, mel: MelConfig) -> Vocoder:
        """Returns the vocoder for a mel.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            ValueError: if it is damaged, not a vocoder, or was trained on another mel.
        """
        if self.name == GRIFFIN_LIM:
            return GriffinLim(mel, self.iterations)
        # The package imports librosa and numba: only where a checkpoint is used.
        from sf_lightning.vocoder.bigvgan import BigVGANVocoder
        from sf_lightning.vocoder.qwen import load_qwen

        try:
            path = vocoder_path(self.name)
            if require_kind(path, *VOCODERS) is Kind.QWEN:
                return load_qwen(path, mel)
            return BigVGANVocoder.from_checkpoint(path, mel)
        except FileNotFoundError as error:
            names = " or ".join([GRIFFIN_LIM, *shipped()])
            raise FileNotFoundError(f"vocoder: {error}; or a name: {names}") from error
        except ValueError as error:
            hint = f"; it is the default, {GRIFFIN_LIM} accepts any mel" if self.name == DEFAULT else ""
            raise ValueError(f"vocoder: {error}{hint}") from error


def vocoder_path(name: str) -> Path:
    """Returns the path of a vocoder: of a shipped one by its name, else as `local_path`.

    Raises:
        FileNotFoundError: as `local_path`.
    """
    return SHIPPED / name if name in shipped() else local_path(name)


def shipped() -> list[str]:
    """Returns the names of the vocoders that are shipped with the package."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()) if SHIPPED.is_dir() else []
