"""What a model requires of clips: described once, from its configuration, and checked here alone."""

from dataclasses import dataclass, fields
from typing import Any

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.pretrained import ModelConfig, TokenizerName
from sf_lightning.tokens.base import TokenizerSpec


@dataclass(frozen=True)
class ClipRequirements:
    """What a model requires of the clips that it is trained or evaluated on.

    Args:
        mel: Mel settings of the model.
        block_size: Frames of a block.
        tokens: Tokenizer of the model, with an empty digest where its weights are unknown; None accepts the tokens
            of any tokenizer, for a model that does not read them.
        x_vectors: Name of the speaker encoder whose x-vectors the model reads; empty for none.
        x_vector_width: Width X of an x-vector; 0 for none.
        crop_samples: Samples of a reference crop; 0 for none.
        min_frames: Frames of the shortest clip; shorter ones are skipped and counted.
    """

    mel: MelConfig = MelConfig()
    block_size: int = 24
    tokens: TokenizerSpec | None = None
    x_vectors: str = ""
    x_vector_width: int = 0
    crop_samples: int = 0
    min_frames: int = 0

    @classmethod
    def from_config(cls, config: ModelConfig, tokenizer: TokenizerName) -> "ClipRequirements":
        """Returns the requirements of a decoder that reads the tokens of `tokenizer`."""
        dit, speaker = config.dit, config.speaker
        tokens = TokenizerSpec(tokenizer.name, dit.vocabulary, dit.frames_per_token, tokenizer.digest or "")
        return cls(
            config.mel,
            config.layout.block_size,
            tokens,
            speaker.x_vectors,
            speaker.stored_width,
            speaker.crop_samples(config.mel.sample_rate),
        )

    def check_set(self, shards: ShardSet) -> None:
        """Checks that a shard set holds what the model requires.

        Raises:
            ValueError: with both values and the option to change, if it does not.
        """
        manifest, source = shards.manifest, shards.name
        if self.x_vectors:
            _require_equal(
                source,
                "x-vectors",
                (manifest.x_vectors, manifest.x_vector_width),
                (self.x_vectors, self.x_vector_width),
                "speaker.x_vectors",
            )
        for name in (field.name for field in fields(MelConfig)):
            given, required = getattr(manifest.mel, name), getattr(self.mel, name)
            _require_equal(source, f"mel {name}", given, required, f"mel.{name}")
        self.check_tokenizer(manifest.tokenizer, source)

    def check_tokenizer(self, spec: TokenizerSpec, source: str) -> None:
        """Checks that the model reads the tokens of a tokenizer.

        Args:
            spec: Name, vocabulary, frames per token and digest of the tokenizer.
            source: Shard set or option that has it, for errors.

        Raises:
            ValueError: with both values, if the tokenizer is another one than the model's.
        """
        if (required := self.tokens) is None:
            return
        _require_equal(source, "tokenizer", spec.name, required.name, "tokenizer")
        _require_equal(source, "vocabulary", spec.vocabulary, required.vocabulary, "dit.vocabulary")
        _require_equal(
            source, "frames per token", spec.frames_per_token, required.frames_per_token, "dit.frames_per_token"
        )
        if required.digest and spec.digest != required.digest:
            raise ValueError(
                f"{source} has tokens of {spec.name} with digest {spec.digest}, the model requires digest "
                f"{required.digest}: use clips tokenized with the tokenizer file that the model was trained with"
            )


def _require_equal(source: str, name: str, given: Any, required: Any, option: str) -> None:
    if given != required:
        value = given[0] if isinstance(given, tuple) else given
        raise ValueError(
            f"{source} has {name} {given}, the model requires {required}: use other clips, or train with "
            f"--model.{option}={value}"
        )
