"""The model card of an exported decoder: settings, validation scores, usage."""

import math
from pathlib import Path

from sf_lightning.cli.card import (
    Scores,
    add_metadata,
    data_text,
    license_text,
    mel_text,
    name_texts,
    validation_text,
)
from sf_lightning.files.records import from_plain
from sf_lightning.files.tables import markdown_table
from sf_lightning.files.text import markdown_text, printable
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import Description, Pretrained
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import GRIFFIN_LIM, VocoderConfig, shipped

TAGS = ["streamflow", "streaming", "flow-matching", "speech-token-decoder", "vocoder"]

TEXT = """
# {title}

A [StreamFlow](https://arxiv.org/abs/2506.23986) decoder of sf-lightning: it decodes a stream of speech tokens into
audio while they arrive. It does not produce tokens: they come from a language model or a tokenizer.

{table}

## Attention of its layers

    {picture}

## Validation

{validation}

## Use

```python
import torch
from sf_lightning.streaming.loading import load_decoder

stream = load_decoder("{name}").open()  # this folder, or OWNER/NAME of the hub that it was uploaded to
wave = torch.cat([stream.push(torch.arange({tokens})), stream.flush()])  # any number of tokens at a time
```

`stream.decoder.model` is the network alone. On the command line:

```bash
sf-decode --ckpt {path} --tokens tokens.npy --speaker voice.wav --out out.wav  # or --ckpt OWNER/NAME
```
{not_included}
## License and data

{license}

{data}
"""


def decoder_card(
    name: str, trained: Pretrained, scores: Scores | None, license: str | None, data: str | None
) -> str:
    """Returns the card, Markdown below the YAML that the Hugging Face hub reads.

    Args:
        name: Name of the folder.
        trained: The decoder.
        scores: Scores of the last validation before the checkpoint, if they are known.
        license: Identifier of the license on the hub, such as "apache-2.0"; None leaves the line to be filled in.
        data: What it was trained on, Markdown; None leaves it to be filled in.
    """
    text = TEXT.format(
        **name_texts(name),
        table=_settings_table(trained),
        picture=trained.model.layout.picture().replace("\n", "\n    "),
        validation=validation_text(trained.description.weights.averaged, scores),
        tokens=min(trained.model.dit.config.vocabulary, 50),
        not_included=_not_included(trained.description),
        license=license_text(license),
        data=data_text(data),
    )
    return add_metadata(text, "text-to-speech", TAGS, license)


def _settings_table(trained: Pretrained) -> str:
    """Returns the table of the decoder's settings."""
    model, description = trained
    mel, dit, layout = model.mel.config, model.dit.config, model.layout
    decode = from_plain(DecodeConfig, description.decode, "decode")
    tokenizer = description.tokenizer.name
    if description.tokenizer.digest is not None:
        tokenizer += f" (digest `{description.tokenizer.digest}`)"
    speaker = f"from {model.speaker.crop_seconds:g} s of audio"
    if model.speaker.x_vectors:
        speaker += f" and an x-vector of {model.speaker.x_vectors} [{model.speaker.x_vector_width}]"
    facts = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,} in {layout.num_layers} layers",
        "training": str(description.weights),
        "tokens": f"{tokenizer}, {dit.vocabulary} codes, {mel.frame_rate / dit.frames_per_token:g} per second",
        "mel": mel_text(mel),
        "receptive field": field_text(layout, mel.frame_rate),
        "first chunk needs": first_chunk_text(layout, decode, mel.frame_rate),
        "speaker": speaker,
        "vocoder": vocoder_text(from_plain(VocoderConfig, description.vocoder, "vocoder")),
        "default decoding": f"{decode.mode}, {decode.steps} steps of {decode.method}, guidance "
        f"{decode.guidance:g}, temperature {decode.temperature:g}",
    }
    return markdown_table(None, [*facts.items()])


def field_text(layout: Layout, frame_rate: float) -> str:
    """Returns the receptive field of one network evaluation, in words.

    >>> field_text(Layout(), 100)
    '2 blocks back, 1 ahead; a block is 240 ms'
    """
    back, ahead = (f"{n:.0f}" if math.isfinite(n) else "all" for n in (layout.field.back, layout.field.ahead))
    return f"{back} blocks back, {ahead} ahead; a block is {1000 * layout.block_size / frame_rate:g} ms"


def first_chunk_text(layout: Layout, decode: DecodeConfig, frame_rate: float) -> str:
    """Returns how many tokens must have arrived before the first chunk is decoded, in words.

    >>> first_chunk_text(Layout(), DecodeConfig(), 100)
    '480 ms of tokens'
    """
    if decode.mode == "offline":
        return "all tokens"
    decode = decode.resolve(layout)
    return f"{layout.wait_ms(decode.chunk_end(0), decode.lookahead, frame_rate):g} ms of tokens"


def vocoder_text(vocoder: VocoderConfig) -> str:
    """Returns which vocoder it is, in words; only the last part of a path, because the rest is private."""
    if vocoder.name == GRIFFIN_LIM:
        return f"Griffin-Lim, {vocoder.iterations} iterations"
    if vocoder.name in shipped():
        return f"`{vocoder.name}`, shipped with sf-lightning"
    return f"{_code(Path(vocoder.name).name)}, not in this folder"


def _code(name: str) -> str:
    """Returns a name as code in Markdown."""
    quoted = printable(name).replace("`", "'")
    return f"`{quoted}`"


def missing_vocoder(description: Description) -> str | None:
    """Returns the vocoder that a user of the folder needs besides it; None if sf-lightning ships it."""
    name = from_plain(VocoderConfig, description.vocoder, "vocoder").name
    return None if name in (GRIFFIN_LIM, *shipped()) else name


def _not_included(description: Description) -> str:
    """Returns the paragraphs on the tokenizer and the vocoder, which are not in the folder."""
    lines = [
        f"**TO BE FILLED IN: tokenizer.** Where to find the {markdown_text(description.tokenizer.name)} tokenizer."
    ]
    if (vocoder := missing_vocoder(description)) is not None:
        lines.append(f"**TO BE FILLED IN: vocoder.** Where to find {_code(Path(vocoder).name)}, for `--vocoder`.")
    return "\n" + "\n\n".join(lines) + "\n"
