"""sf-lightning trains, sweeps and judges StreamFlow decoders the way they are used: streaming.

The road, and the floor on which each step lives::

    tokens 25 Hz ──► frames 100 Hz ──► velocity ──► mel [T, 80] ──► wave 16 kHz
       tokens/          model/           flow/      streaming/       vocoder/

    files/      atomic writes, digests, records, tables
    audio/      waves and mel spectrograms
    tokens/     what turns speech into tokens
    model/      layouts, and the diffusion transformer on a list of blocks
    flow/       conditional flow matching: path, loss, guidance, solver, noise
    vocoder/    mel to wave
    streaming/  a stream of tokens to a stream of sound, chunk by chunk
    data/       WebDataset shards, lanes and packs
    metrics/    PESQ-WB, STOI, ViSQOL, mel distance, seam, jumps
    evaluation/ decoders side by side: tables, a page to hear, a listening test
    training/   the LightningModule, the data module, callbacks
    sweeps/     many trainings at one question, by workers that share a folder
    cli/        sf-fit, sf-shards, sf-decode, sf-eval, sf-export, sf-sweep

Each floor imports only floors above it in this list; Lightning lives in training and cli alone.

The letters, everywhere: B utterances (or clips), U utterances of a list of blocks, M blocks, W frames
of a block, L tokens, K tokens of a block, T frames, F mel bands, N samples, D width, H heads,
S speaker width.
"""

__version__ = "0.1.0"
