"""The model card of a vocoder: what it is, how good it was in validation, how it is used."""

from sf_lightning.audio.mel import MelConfig
from sf_lightning.cli.card import Scores, data_words, license_words, mel_words, under_front, validation_words
from sf_lightning.vocoder.files import CONFIG, WEIGHTS, TrainedVocoder
from sf_lightning.vocoder.generator import context_frames

TAGS = ["bigvgan", "vocoder", "neural-vocoder", "streaming"]

BODY = """
# {name}

A [BigVGAN](https://arxiv.org/abs/2206.04658) for the mel of sf-lightning's decoders: it turns mel-spectrograms into
sound, whole or piece by piece.

{table}

## In validation

Of the clips' own mels (copy-synthesis); *streamed* in chunks of a block, beside Griffin-Lim. {validation}

## Use

```bash
sf-decode --ckpt DECODER --tokens tokens.npy --out out.wav --vocoder {name}
```

```python
import torch
from sf_lightning.audio.mel import MelConfig
from sf_lightning.vocoder.config import VocoderConfig

vocoder = VocoderConfig("{name}").make({mel})
wave = vocoder.decode(torch.zeros(1, 100, {bands}) - 5)  # log-mel [B, T, F] to [B, N]
```

The [bigvgan](https://github.com/NVIDIA/BigVGAN) package's own class takes it as well:

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
    """Returns the card, Markdown under the YAML that the Hugging Face hub reads.

    Args:
        name: Of the folder.
        trained: What is in it.
        scores: Of the last validation before, if they are known.
        license: Identifier as the hub has it, such as "apache-2.0"; None leaves the line to be filled in.
        data: What it was trained on, Markdown; None leaves it to be filled in.
    """
    body = BODY.format(
        name=name,
        mel="MelConfig()" if trained.mel == MelConfig() else repr(trained.mel),
        bands=trained.mel.num_bands,
        table=_table(trained),
        validation=validation_words(trained.of.averaged, scores),
        license=license_words(license),
        data=data_words(data),
        config=CONFIG,
        weights=WEIGHTS,
    )
    return under_front(body, "audio-to-audio", TAGS, license)


def _table(trained: TrainedVocoder) -> str:
    """What the vocoder is, as a table."""
    sizes, mel = trained.generator, trained.mel
    # The norms of the weights count as weights, as in training.
    count = sum(value.numel() for name, value in trained.weights.items() if not name.endswith(".filter"))
    context = context_frames(sizes.hyperparameters(mel))
    rates = " x ".join(map(str, sizes.upsample_rates))
    rows = {
        "parameters": f"{count:,}",
        "training": str(trained.of),
        "mel": mel_words(mel),
        "upsampling": f"{rates}, from {sizes.channels} channels",
        "context": f"{context} frames ({context / mel.frame_rate:g} s) on each side",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])
