"""Time of a chunk: with a KV cache, with windows, in Qwen2.5-Omni token2wav, and at several positions of a stream.

    python benchmarks/streaming.py [--json] [--parts token2wav small hour unbounded sizes]

Every part compares modes within one run, alternating chunk by chunk, so that a slow machine affects all of them.
Weights are random. Unless stated otherwise, chunks have one block of 0.24 s and Euler steps are guided.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from train_step import make_token2wav, wait

from sf_lightning.audio.mel import MelConfig
from sf_lightning.flow.guidance import mix
from sf_lightning.flow.solver import Solver
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.qwen import from_qwen
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.griffin_lim import GriffinLim

BLOCK_SECONDS = 0.24
EVALUATIONS, GUIDANCE = 9, 0.5
SR = Layout(22, 24, (0, 20), (10,))
SIZES = {1024: 16, 768: 12, 512: 8}
"""Number of heads by width."""

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def small_model(layout: Layout) -> StreamFlow:
    """Returns a network of the demo's size with random weights."""
    return random_model(layout, DiTConfig(width=192, num_heads=3, token_width=192, vocabulary=1024))


def random_model(layout: Layout, dit: DiTConfig) -> StreamFlow:
    """Returns a network whose output is not zero: untrained ones have zero gates."""
    torch.manual_seed(0)
    model = StreamFlow(layout, dit, MelConfig(), MelScale(), SpeakerConfig(channels=64)).to(device).eval()
    for module in model.dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5 * module.in_features**-0.5)
    return model


class RandomStream:
    """A stream that gets as many random tokens as its next chunk needs."""

    def __init__(self, decoder: StreamingDecoder, config: DecodeConfig) -> None:
        self.decoder, self.config = decoder, config.resolve(decoder.model.layout)
        self.stream = decoder.open(config=config)
        self.random = torch.Generator().manual_seed(0)
        assert self.config.lookahead is not None
        self._feed(self.config.lookahead)

    def _feed(self, blocks: int) -> None:
        count = blocks * self.decoder.tokens_per_block
        vocabulary = self.decoder.model.dit.config.vocabulary
        self.stream.feed(torch.randint(0, vocabulary, (count,), generator=self.random))

    def skip(self, blocks: int) -> None:
        """Skips blocks as if they had been decoded; only for windows, which keep nothing but tokens."""
        self._feed(blocks)
        self.stream.state.emitted += blocks

    def chunk(self) -> None:
        """Decodes the next chunk."""
        self._feed(self.config.chunk)
        assert len(self.decoder.step([self.stream])[0].mel)


def medians(calls: dict[str, Callable[[], object]], repeats: int, warm_up: int = 4) -> dict[str, float]:
    """Returns the median time of each call in seconds; the calls alternate."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + warm_up):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[warm_up:]) for name, seconds in times.items()}


def chunk_calls(model: StreamFlow) -> dict[str, Callable[[], object]]:
    """Returns functions that decode a chunk in each mode, with two iterations of Griffin-Lim in all of them."""
    decoder = StreamingDecoder(model, GriffinLim(MelConfig(), iterations=2).to(device))
    paper = DecodeConfig(steps=EVALUATIONS, guidance=GUIDANCE)
    q = model.layout.lookahead
    configs = {
        f"windowed, look-ahead {q}": DecodeConfig(**{**vars(paper), "mode": "windowed"}),
        f"cached, look-ahead {q}": paper,
        f"cached, look-ahead {q * EVALUATIONS}": DecodeConfig(**{**vars(paper), "lookahead": q * EVALUATIONS}),
    }
    return {name: RandomStream(decoder, config).chunk for name, config in configs.items()}


def token2wav_chunk(token2wav: nn.Module, window: int = 4) -> Callable[[], Tensor]:
    """Returns a function that decodes a chunk as token2wav does: p + 1 + q blocks, of which it keeps one."""
    dtype = next(token2wav.parameters()).dtype
    frames = 24 * window
    solver = Solver(EVALUATIONS)
    times = solver.times.to(device, dtype)
    random = torch.Generator().manual_seed(0)
    reference = torch.randn(1, 200, 80, generator=random).to(device, dtype)
    speaker = torch.randn(1, 1, 192, generator=random).to(device, dtype).expand(1, frames, 192)

    def velocity(x: Tensor, number: int) -> Tensor:
        codes = torch.randint(0, 8193, (1, frames // 2), device=device)
        both = token2wav(x, reference, speaker, codes, times[number], apply_cfg=True)
        return mix(*both.chunk(2), GUIDANCE)

    def chunk() -> Tensor:
        with torch.inference_mode():
            x_0 = torch.randn(1, frames, 80, device=device, dtype=dtype)
            return solver.integrate(velocity, x_0)[:, 48:72]

    return chunk


def print_times(times: dict[str, float], title: str, console: Console) -> None:
    """Prints milliseconds per chunk and the real-time factor."""
    table = Table("mode", "ms per chunk", "real-time factor", title=title)
    for name, cost in times.items():
        table.add_row(name, f"{1000 * cost:.1f}", f"{cost / BLOCK_SECONDS:.2f}")
    console.print(table)


def cache_gain(times: dict[str, float]) -> float:
    """Returns the time of a windowed chunk divided by that of a cached one, at the layout's own look-ahead."""
    windowed, cached = (next(cost for name, cost in times.items() if name.startswith(w)) for w in ("win", "cac"))
    return windowed / cached


def compare_token2wav(repeats: int, console: Console) -> dict[str, float]:
    """Measures the paper's network and token2wav with the same weights, in fp32 and in bf16."""
    token2wav = make_token2wav()
    model = from_qwen(token2wav.state_dict()).to(device)
    results, fp32 = {}, 0.0
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        token2wav.to(dtype), model.dit.to(dtype)
        times = medians({"token2wav, windowed": token2wav_chunk(token2wav)} | chunk_calls(model), repeats)
        print_times(times, f"{sum(p.numel() for p in model.dit.parameters()) / 1e6:.0f} M, {name}", console)
        theirs, _, cached, full = times.values()
        if name == "fp32":
            results["cached_gain"], fp32 = cache_gain(times), theirs
        # Its users run fp32, so that is the reference; bf16 is compared too.
        results |= {f"token2wav_gain_{name}": fp32 / cached, f"token2wav_gain_{name}_full": fp32 / full}
        results[f"token2wav_in_{name}_too"] = theirs / cached
    return results


def small(repeats: int, console: Console) -> dict[str, float]:
    """Measures the modes with a network of the demo's size."""
    model = small_model(Layout(8, 24, (0, 6), (3,)))
    times = medians(chunk_calls(model), 10 * repeats)
    print_times(times, "8 layers of 192, fp32", console)
    return {"cached_gain_small": cache_gain(times)}


def memory_mib() -> float:
    """Returns the resident memory of this process in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def hour(minutes: float, console: Console) -> dict[str, float]:
    """Measures the last minute of an hour-long stream, alternating with the second minute of a new stream."""
    config = DecodeConfig(steps=3, guidance=0.0)
    decoder = StreamingDecoder(small_model(Layout(8, 24, (0, 6), (3,))), GriffinLim(MelConfig()).to(device))
    a_minute = round(60 / BLOCK_SECONDS)
    old, young = RandomStream(decoder, config), RandomStream(decoder, config)
    start, early = time.perf_counter(), memory_mib()
    for number in range(round((minutes - 1) * a_minute)):
        old.chunk()
        if number == 2 * a_minute:
            early = memory_mib()
    elapsed = time.perf_counter() - start
    late = memory_mib()
    for _ in range(a_minute):
        young.chunk()
    times = medians({"last": old.chunk, "second": young.chunk}, a_minute, warm_up=0)
    ratio = times["last"] / times["second"]
    console.print(
        f"a stream of {minutes:g} minutes: real-time factor {elapsed / 60 / (minutes - 1):.3f}; a chunk of the "
        f"last minute {1000 * times['last']:.2f} ms, of the second minute of another stream "
        f"{1000 * times['second']:.2f} ms, ratio {ratio:.3f}; "
        f"memory {early:.0f} MiB after two minutes, {late:.0f} MiB before the last"
    )
    return {"last_minute_over_second": ratio, "memory_growth_mib": late - early}


def unbounded(console: Console) -> dict[str, float]:
    """Measures a bounded receptive field with a KV cache, and an unbounded past as in `chunk_causal`."""
    growing = StreamingDecoder(
        small_model(Layout(8, 24, (), (), "past")), GriffinLim(MelConfig(), iterations=2).to(device)
    )
    flat = StreamingDecoder(
        small_model(Layout(8, 24, (0, 6), (3,))), GriffinLim(MelConfig(), iterations=2).to(device)
    )
    config = DecodeConfig(steps=EVALUATIONS, guidance=GUIDANCE)
    unbounded_stream, cached_stream = RandomStream(growing, config), RandomStream(flat, config)
    table = Table("seconds into the stream", "chunk_causal", "streamflow_sr, cached", title="ms per chunk")
    done, results = 0, {}
    for seconds in (2.4, 4.8, 9.6, 19.2, 38.4):
        unbounded_stream.skip(round(seconds / BLOCK_SECONDS) - done)
        for _ in range(round(seconds / BLOCK_SECONDS) - done):
            cached_stream.chunk()
        times = medians({"all": unbounded_stream.chunk, "some": cached_stream.chunk}, 3, warm_up=1)
        done = round(seconds / BLOCK_SECONDS) + 4
        table.add_row(f"{seconds:g}", *(f"{1000 * cost:.1f}" for cost in times.values()))
        results[f"unbounded_over_cached_{seconds:g}"] = times["all"] / times["some"]
    console.print(table)
    return results


def settings() -> Iterator[tuple[int, torch.dtype, DecodeConfig]]:
    """Yields sizes and decoding settings to try for real time, the slowest first."""
    for width in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            for steps, guidance, chunk, lookahead in (
                (9, GUIDANCE, 1, 1),
                (9, GUIDANCE, 1, 9),
                (4, GUIDANCE, 1, 1),
                (4, GUIDANCE, 4, 1),
                (4, GUIDANCE, 1, 4),
                (4, 0.0, 1, 1),
                (4, 0.0, 4, 1),
            ):
                yield width, dtype, DecodeConfig(steps=steps, guidance=guidance, chunk=chunk, lookahead=lookahead)


def sizes(repeats: int, console: Console) -> dict[str, float]:
    """Finds the largest network that decodes in real time on this machine, without the vocoder."""
    header = ("width", "parameters", "weights", "evaluations", "guided", "chunk", "look-ahead", "real-time factor")
    table = Table(*header, title="22 layers, streamflow_sr")
    largest = 0.0
    for width, dtype, config in settings():
        model = random_model(SR, DiTConfig(width=width, num_heads=SIZES[width]))
        model.dit.to(dtype)
        decoder = StreamingDecoder(model, GriffinLim(MelConfig(), iterations=2).to(device))
        stream = RandomStream(decoder, config)
        for _ in range(2):
            stream.chunk()
        costs = []
        for _ in range(repeats):
            before = decoder.cost.network_seconds
            stream.chunk()
            costs.append(decoder.cost.network_seconds - before)
        factor = statistics.median(costs) / BLOCK_SECONDS / config.chunk
        parameters = sum(p.numel() for p in model.dit.parameters()) / 1e6
        largest = max(largest, parameters if factor < 1 else 0.0)
        cells = (config.steps, "yes" if config.guidance else "no", config.chunk, config.lookahead)
        table.add_row(
            str(width), f"{parameters:.0f} M", str(dtype)[6:], *(str(cell) for cell in cells), f"{factor:.2f}"
        )
    console.print(table)
    return {"largest_real_time_m": largest}


PARTS = ("token2wav", "small", "hour", "unbounded", "sizes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measurements to run")
    parser.add_argument("--repeats", type=int, default=5, help="number of chunks of which the median is taken")
    parser.add_argument("--minutes", type=float, default=60, help="minutes of the long stream")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    console = Console(width=118)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    console.print(f"{name}, torch {torch.__version__}, {EVALUATIONS} evaluations, guidance {GUIDANCE}")
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "token2wav": lambda: compare_token2wav(args.repeats, console),
        "small": lambda: small(args.repeats, console),
        "hour": lambda: hour(args.minutes, console),
        "unbounded": lambda: unbounded(console),
        "sizes": lambda: sizes(args.repeats, console),
    }
    results: dict[str, float] = {}
    for part in args.parts:
        results |= measures[part]()
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
