"""What a chunk costs: remembered past against windows, against the public sibling, and against position.

    python benchmarks/streaming.py [--json] [--parts sibling small hour unbounded sizes]

Every part compares ways within one run, chunk by chunk in turn, so that a slow spell of the machine meets all.
Weights are random. Costs are those of one-block chunks of 0.24 s unless said otherwise, guided, Euler.
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
from train_step import make_sibling, wait

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
"""Width and heads."""

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def small_model(layout: Layout) -> StreamFlow:
    """A network of the demo's size, random in every weight."""
    return random_model(layout, DiTConfig(width=192, num_heads=3, token_width=192, vocabulary=1024))


def random_model(layout: Layout, dit: DiTConfig) -> StreamFlow:
    """A network that says something: fresh ones have zero gates."""
    torch.manual_seed(0)
    model = StreamFlow(layout, dit, MelConfig(), MelScale(), SpeakerConfig(channels=64)).to(device).eval()
    for module in model.dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5 * module.in_features**-0.5)
    return model


class Talk:
    """A stream that is given random tokens, as many as its next chunk needs."""

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
        """Goes on as if so many blocks had been decoded; only for windows, which remember tokens alone."""
        self._feed(blocks)
        self.stream.state.emitted += blocks

    def chunk(self) -> None:
        """Decodes the next chunk."""
        self._feed(self.config.chunk)
        assert len(self.decoder.step([self.stream])[0].mel)


def medians(calls: dict[str, Callable[[], object]], repeats: int, warm_up: int = 4) -> dict[str, float]:
    """The median time of each call in seconds, the calls taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + warm_up):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[warm_up:]) for name, each in times.items()}


def ways(model: StreamFlow) -> dict[str, Callable[[], object]]:
    """A chunk of each way of decoding, sound by two rounds of Griffin-Lim, which costs all the same."""
    decoder = StreamingDecoder(model, GriffinLim(MelConfig(), iterations=2).to(device))
    paper = DecodeConfig(steps=EVALUATIONS, guidance=GUIDANCE)
    q = model.layout.lookahead
    configs = {
        f"windowed, look-ahead {q}": DecodeConfig(**{**vars(paper), "mode": "windowed"}),
        f"cached, look-ahead {q}": paper,
        f"cached, look-ahead {q * EVALUATIONS}": DecodeConfig(**{**vars(paper), "lookahead": q * EVALUATIONS}),
    }
    return {name: Talk(decoder, config).chunk for name, config in configs.items()}


def sibling_chunk(sibling: nn.Module, window: int = 4) -> Callable[[], Tensor]:
    """The sibling's way: p + 1 + q blocks integrated from noise, the middle one kept."""
    dtype = next(sibling.parameters()).dtype
    frames = 24 * window
    solver = Solver(EVALUATIONS)
    times = solver.times.to(device, dtype)
    random = torch.Generator().manual_seed(0)
    reference = torch.randn(1, 200, 80, generator=random).to(device, dtype)
    spoken = torch.randn(1, 1, 192, generator=random).to(device, dtype).expand(1, frames, 192)

    def velocity(x: Tensor, number: int) -> Tensor:
        codes = torch.randint(0, 8193, (1, frames // 2), device=device)
        both = sibling(x, reference, spoken, codes, times[number], apply_cfg=True)
        return mix(*both.chunk(2), GUIDANCE)

    def chunk() -> Tensor:
        with torch.inference_mode():
            x_0 = torch.randn(1, frames, 80, device=device, dtype=dtype)
            return solver.integrate(velocity, x_0)[:, 48:72]

    return chunk


def table_of(times: dict[str, float], title: str, console: Console) -> None:
    """Prints milliseconds a chunk and the real-time factor."""
    table = Table("way", "ms a chunk", "real-time factor", title=title)
    for name, cost in times.items():
        table.add_row(name, f"{1000 * cost:.1f}", f"{cost / BLOCK_SECONDS:.2f}")
    console.print(table)


def gain_of_cache(times: dict[str, float]) -> float:
    """Windowed over cached at the layout's own look-ahead."""
    windowed, cached = (next(cost for name, cost in times.items() if name.startswith(w)) for w in ("win", "cac"))
    return windowed / cached


def against_sibling(repeats: int, console: Console) -> dict[str, float]:
    """The paper's network, the same weights in both, in fp32 and in bf16."""
    sibling = make_sibling()
    model = from_qwen(sibling.state_dict()).to(device)
    results, fp32 = {}, 0.0
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        sibling.to(dtype), model.dit.to(dtype)
        times = medians({"the sibling's windows": sibling_chunk(sibling)} | ways(model), repeats)
        table_of(times, f"{sum(p.numel() for p in model.dit.parameters()) / 1e6:.0f} M, {name}", console)
        theirs, _, cached, full = times.values()
        if name == "fp32":
            results["cached_gain"], fp32 = gain_of_cache(times), theirs
        # What its users run is fp32; the same weights in bf16 are compared as well.
        results |= {f"sibling_gain_{name}": fp32 / cached, f"sibling_gain_{name}_full": fp32 / full}
        results[f"sibling_in_{name}_too"] = theirs / cached
    return results


def small(repeats: int, console: Console) -> dict[str, float]:
    """The same ways at the demo's size."""
    model = small_model(Layout(8, 24, (0, 6), (3,)))
    times = medians(ways(model), 10 * repeats)
    table_of(times, "8 layers of 192, fp32", console)
    return {"cached_gain_small": gain_of_cache(times)}


def memory_mib() -> float:
    """Resident memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def hour(minutes: float, console: Console) -> dict[str, float]:
    """A stream an hour long; its last minute beside the second minute of a stream that began just now."""
    config = DecodeConfig(steps=3, guidance=0.0)
    decoder = StreamingDecoder(small_model(Layout(8, 24, (0, 6), (3,))), GriffinLim(MelConfig()).to(device))
    a_minute = round(60 / BLOCK_SECONDS)
    old, young = Talk(decoder, config), Talk(decoder, config)
    begun, early = time.perf_counter(), memory_mib()
    for number in range(round((minutes - 1) * a_minute)):
        old.chunk()
        if number == 2 * a_minute:
            early = memory_mib()
    spent = time.perf_counter() - begun
    late = memory_mib()
    for _ in range(a_minute):
        young.chunk()
    times = medians({"last": old.chunk, "second": young.chunk}, a_minute, warm_up=0)
    ratio = times["last"] / times["second"]
    console.print(
        f"a stream of {minutes:g} minutes: real-time factor {spent / 60 / (minutes - 1):.3f}; a chunk of the "
        f"last minute {1000 * times['last']:.2f} ms, of a second minute beside it {1000 * times['second']:.2f} ms, "
        f"ratio {ratio:.3f}; memory {early:.0f} MiB after two minutes, {late:.0f} MiB before the last"
    )
    return {"last_minute_over_second": ratio, "memory_growth_mib": late - early}


def unbounded(console: Console) -> dict[str, float]:
    """The remembered past of a bounded field against all of the past, as `chunk_causal` attends to it."""
    growing = StreamingDecoder(
        small_model(Layout(8, 24, (), (), "past")), GriffinLim(MelConfig(), iterations=2).to(device)
    )
    flat = StreamingDecoder(
        small_model(Layout(8, 24, (0, 6), (3,))), GriffinLim(MelConfig(), iterations=2).to(device)
    )
    config = DecodeConfig(steps=EVALUATIONS, guidance=GUIDANCE)
    all_past, some_past = Talk(growing, config), Talk(flat, config)
    table = Table("seconds into the stream", "all of the past", "streamflow_sr, cached", title="ms a chunk")
    done, results = 0, {}
    for seconds in (2.4, 4.8, 9.6, 19.2, 38.4):
        all_past.skip(round(seconds / BLOCK_SECONDS) - done)
        for _ in range(round(seconds / BLOCK_SECONDS) - done):
            some_past.chunk()
        times = medians({"all": all_past.chunk, "some": some_past.chunk}, 3, warm_up=1)
        done = round(seconds / BLOCK_SECONDS) + 4
        table.add_row(f"{seconds:g}", *(f"{1000 * cost:.1f}" for cost in times.values()))
        results[f"unbounded_over_cached_{seconds:g}"] = times["all"] / times["some"]
    console.print(table)
    return results


def settings() -> Iterator[tuple[int, torch.dtype, DecodeConfig]]:
    """Sizes and ways of decoding to try for real time, the dearest first."""
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
    """Which sizes keep up with speech here, network alone."""
    header = ("width", "parameters", "weights", "evaluations", "guided", "chunk", "look-ahead", "real-time factor")
    table = Table(*header, title="22 layers, streamflow_sr")
    largest = 0.0
    for width, dtype, config in settings():
        model = random_model(SR, DiTConfig(width=width, num_heads=SIZES[width]))
        model.dit.to(dtype)
        decoder = StreamingDecoder(model, GriffinLim(MelConfig(), iterations=2).to(device))
        talk = Talk(decoder, config)
        for _ in range(2):
            talk.chunk()
        costs = []
        for _ in range(repeats):
            before = decoder.cost.network_seconds
            talk.chunk()
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


PARTS = ("sibling", "small", "hour", "unbounded", "sizes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--repeats", type=int, default=5, help="chunks of which the median counts")
    parser.add_argument("--minutes", type=float, default=60, help="length of the long stream")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    console = Console(width=118)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    console.print(f"{name}, torch {torch.__version__}, {EVALUATIONS} evaluations, guidance {GUIDANCE}")
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "sibling": lambda: against_sibling(args.repeats, console),
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
