"""The model card of an exported vocoder: settings, validation scores, usage."""

from sf_lightning.audio.mel import MelConfig
from sf_lightning.cli.card import (
    Scores,
    add_metadata,
    data_text,
    license_text,
    mel_text,
    name_texts,
    validation_text,
)
from sf_lightning.files.identify import VOCODER_CONFIG, VOCODER_WEIGHTS
from sf_lightning.files.tables import markdown_table
from sf_lightning.vocoder.files import TrainedVocoder
from sf_lightning.vocoder.generator import context_frames

TAGS = ["bigvgan", "vocoder", "neural-vocoder", "streaming"]

TEXT = """
# {title}

A [BigVGAN](https://arxiv.org/abs/2206.04658) for the mel of sf-lightning's decoders: it converts mel-spectrograms
to waves, whole or chunk by chunk.

{table}

## Validation

Copy-synthesis of the clips' own mels; *streamed* in chunks of one block, beside Griffin-Lim. {validation}

## Use

```bash
sf-decode --ckpt DECODER --tokens tokens.npy --out out.wav --vocoder {path}
```

```python
import torch
from sf_lightning.audio.mel import MelConfig
from sf_lightning.vocoder.config import VocoderConfig

vocoder = VocoderConfig("{name}").make({mel})
wave = vocoder.decode(torch.zeros(1, 100, {bands}) - 5)  # log-mel [B, T, F] to [B, N]
```

The class of the [bigvgan](https://github.com/NVIDIA/BigVGAN) package loads it too:

```python
from bigvgan import BigVGAN
from bigvgan.bigvgan import load_hparams_from_json
from safetensors.torch import load_file

generator = BigVGAN(load_hparams_from_json("{name}/{config}"))
generator.load_state_dict(load_file("{name}/{weights}"))
```

## License and data

{license}

{data}
"""


def vocoder_card(
    name: str, trained: TrainedVocoder, scores: Scores | None, license: str | None, data: str | None
) -> str:
    """Returns the card of a vocoder; arguments as in `decoder_card`."""
    text = TEXT.format(
        **name_texts(name),
        mel="MelConfig()" if trained.mel == MelConfig() else repr(trained.mel),
        bands=trained.mel.num_bands,
        table=_settings_table(trained),
        validation=validation_text(trained.origin.averaged, scores),
        license=license_text(license),
        data=data_text(data),
        config=VOCODER_CONFIG,
        weights=VOCODER_WEIGHTS,
    )
    return add_metadata(text, "audio-to-audio", TAGS, license)


def _settings_table(trained: TrainedVocoder) -> str:
    """Returns the table of the vocoder's settings."""
    sizes, mel = trained.generator, trained.mel
    # The norms of the weights count as weights, as in training.
    count = sum(value.numel() for name, value in trained.weights.items() if not name.endswith(".filter"))
    context = context_frames(sizes.hyperparameters(mel))
    rates = " x ".join(map(str, sizes.upsample_rates))
    facts = {
        "parameters": f"{count:,}",
        "training": str(trained.origin),
        "mel": mel_text(mel),
        "upsampling": f"{rates}, from {sizes.channels} channels",
        "context": f"{context} frames ({context / mel.frame_rate:g} s) on each side",
    }
    return markdown_table(None, [*facts.items()])
