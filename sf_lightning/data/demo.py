"""Synthesises the demo corpus: a small English and Mandarin one, in seconds, with nothing to download.

A grammar draws the sentences, espeak-ng reads them in twelve voices, soxr brings them to 16 kHz, and the
folder looks like any other corpus of recordings: one folder per speaker.

    out/train/<voice>/<voice>_0000.wav     16 kHz, 16 bit, mono; 2 to 4.5 s each
    out/dev/<voice>/<voice>_0000.wav       sentences that train never says
    out/sentences.tsv                      what each file says: path, tab, text
    out/corpus.json                        settings and figures; written last, so a corpus with it is complete

It knows nothing about shards, features or models; any folder of recordings can stand in its place.

espeak-ng is under the GPL-3, so it is never a core dependency: the extra `sf-lightning[demo]` brings it.
"""

import ctypes
import json
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from rich.progress import Progress

SAMPLE_RATE = 16_000
CLIP_SECONDS = (2.0, 4.5)
"""The shortest and the longest clip that is kept."""

MAX_DRAWS = 1_000
"""Sentences drawn for one clip before the grammar is called exhausted."""

ENGLISH = {
    "sentence": """{who} {did} {what} | where did {who} {do} {what}? | {when}, {who} {did} {what} {where}
        | {who} {did} {what} {where}, because {reason} | {who} said that {reason}, and {did} {what}
        | why would {who} {do} {what} {where}? | could {who} {do} {what} {where}? | {who} {did} {what} {when}
        | {number} {creatures} {moved} {where}, while {who} {did} {what}
        | whenever {reason}, {number} {creatures} {moved} {where}""",
    "when": """early this morning | late last night | on a quiet Sunday | after the thunderstorm
        | just before lunch | during the long voyage | every other Thursday | at half past seven | as usual
        | to our great surprise""",
    "who": """the old fisherman | my younger sister | a cheerful baker | our new neighbour
        | the village doctor | the night watchman | his favourite cousin | a tired engineer
        | the shy librarian | their youngest boy | a famous judge | the woman with the glasses""",
    "did": """painted | carried | measured | borrowed | described | photographed | repaired | discovered
        | wrapped up | looked for | gave away | weighed""",
    "do": """choose | throw out | polish | sketch | buy | hide | sell | examine | ask for | think about
        | bring | join""",
    "what": "{how} {thing}",
    "how": """the tiny | an enormous | a rusty | the golden | this peculiar | a thick | her yellow
        | that smooth | the forgotten | a half-finished | the usual | a very cheap""",
    "thing": """telescope | violin | jar of honey | wooden boat | leather suitcase | birthday cake
        | alarm clock | map of the city | engine | feather pillow | teapot | sheep fence | treasure box
        | picture book""",
    "where": """in the garden | beside the river | under the bridge | at the railway station
        | near the lighthouse | behind the school | across the valley | outside the theatre | up in the attic
        | along the beach | by the village church | through the thin fog""",
    "reason": """the weather was changing | nobody else had time | it was cheaper than ever
        | the children were asleep | everything was covered with snow | the last bus never came
        | the zoo had to close | the music grew louder | they could hear thunder | the voyage was over""",
    "number": """two | three | five | eight | eleven | thirteen | twenty-six | forty-nine | seventy
        | a hundred""",
    "creatures": """geese | wild horses | sheep | foxes | butterflies | jackdaws | small frogs | young wolves
        | bees""",
    "moved": """wandered | rushed | slept | gathered | were chasing each other | jumped about | moved slowly
        | vanished""",
}

# Characters that espeak-ng reads right: not 熊, for one, which comes out as the English word "xiong".
MANDARIN = {
    "sentence": """{who}{did}{what}。 | {when}，{who}{where}{did}{what}。
        | {who}{where}{did}{what}，因为{reason}。 | {who}说{reason}，所以{did}{what}。
        | {who}为什么{where}{did}{what}？ | {when}{reason}，{who}却{did}{what}。 | {when}，{who}{did}{what}。
        | {who}还没有找到{what}。 | 你知道{who}{where}{did}{what}吗？
        | {where}的{number}{creatures}，把{who}吓了一跳。""",
    "when": """今天早上 | 昨天晚上 | 去年冬天 | 下雨以后 | 吃饭之前 | 星期六下午 | 八月十五 | 放学的时候
        | 每个周末 | 天黑之后""",
    "who": """我的妹妹 | 那位老医生 | 隔壁的邻居 | 年轻的工程师 | 小李和小王 | 两个学生 | 图书馆的管理员
        | 卖水果的阿姨 | 爱唱歌的司机 | 他的外公 | 聪明的女儿 | 三年级的老师""",
    "did": """买了 | 修好了 | 找到了 | 画了 | 打开了 | 借走了 | 拍下了 | 送来了 | 忘记了 | 丢了 | 洗干净了
        | 仔细看了 | 想起了""",
    "what": """一辆红色的自行车 | 三本旧书 | 一把黑色的雨伞 | 两箱新鲜的苹果 | 一张很大的地图 | 一件漂亮的毛衣
        | 一只安静的小猫 | 半杯热咖啡 | 一封奇怪的信 | 四双布鞋 | 六个月饼 | 九条鱼 | 女儿的绿裙子
        | 一块普通的石头""",
    "where": """在河边 | 在火车站 | 在学校门口 | 在山顶上 | 在厨房里 | 在博物馆 | 在大桥下面 | 在湖边的公园
        | 在窗户旁边 | 在村子西边 | 在日出的海边 | 在热闹的广场""",
    "reason": """天气突然变冷了 | 大家都很高兴 | 明天要去旅行 | 没有人愿意帮忙 | 路上的雪太厚了
        | 外面刮起了大风 | 这里的风景特别美 | 朋友们就要来了 | 飞机又晚点了 | 月亮从云里出来了""",
    "number": "两群 | 三群 | 五群 | 七群 | 八群 | 十二群 | 二十六群 | 四十九群",
    "creatures": "白鹅 | 蝴蝶 | 小松鼠 | 青蛙 | 绵羊 | 狐狸 | 乌鸦 | 海豚 | 蜜蜂",
}

GRAMMARS = {"en": ENGLISH, "cmn": MANDARIN}


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak language, one of its voice variants, and how they speak."""

    language: str
    variant: str
    pitch: int
    """0 to 99; 50 is the variant's own pitch."""
    pitch_range: int
    """0 (monotone) to 99; 50 is the variant's own. Low values would flatten the tones of Mandarin."""
    words_per_minute: int

    @property
    def name(self) -> str:
        """The speaker's folder, such as `en-us_m3`."""
        return f"{self.language}_{self.variant}"

    @property
    def grammar(self) -> dict[str, str]:
        """The sentences of this voice's language."""
        return GRAMMARS[self.language.partition("-")[0]]


# English and Mandarin, men and women by turns: the first few voices of even a toy corpus are a fair mix.
VOICES = (
    Voice("en-us", "m3", pitch=46, pitch_range=50, words_per_minute=165),
    Voice("cmn", "f1", pitch=48, pitch_range=75, words_per_minute=200),
    Voice("en-us", "f2", pitch=62, pitch_range=45, words_per_minute=175),
    Voice("cmn", "m1", pitch=58, pitch_range=75, words_per_minute=215),
    Voice("en-us", "m7", pitch=60, pitch_range=65, words_per_minute=185),
    Voice("cmn", "f3", pitch=74, pitch_range=65, words_per_minute=225),
    Voice("en-gb-x-rp", "f4", pitch=72, pitch_range=60, words_per_minute=165),
    Voice("cmn", "m4", pitch=50, pitch_range=80, words_per_minute=195),
    Voice("en-gb-x-rp", "m8", pitch=44, pitch_range=40, words_per_minute=155),
    Voice("cmn", "f2", pitch=58, pitch_range=75, words_per_minute=190),
    Voice("en-gb-scotland", "f1", pitch=40, pitch_range=70, words_per_minute=180),
    Voice("cmn", "m6", pitch=74, pitch_range=70, words_per_minute=230),
)


@dataclass(frozen=True)
class Clip:
    """A file that was written: where, and who says what for how long."""

    split: str
    voice: Voice
    path: Path
    text: str
    seconds: float


def synthesise(out: Path, *, minutes: float = 24.0, held_out: int = 16, seed: int = 0) -> dict[str, float]:
    """Writes the demo corpus to `out`, unless it is there already, and returns its figures.

    The same arguments give the same bytes. Everything is written to `<out>.partial` and renamed at the end:
    a run that was killed leaves that folder and no `out`, and the next run clears it and starts again.

    Args:
        out: folder to make; it may exist if it is empty, or holds the corpus of the same arguments.
        minutes: speech in `train`, shared equally among the voices; half of it English, half Mandarin.
        held_out: clips in `dev`, on top of `minutes`, dealt to the voices in turn.
        seed: of the sentences, and of espeak's breath noise.

    Returns:
        `train_minutes`, `dev_minutes`, `english_minutes`, `mandarin_minutes`, `train_clips`, `dev_clips`,
        and `speakers`, the number of voices in `train`.

    Raises:
        ImportError: espeak-ng is not installed.
        ValueError: `minutes` or `held_out` is out of range, or `out` holds something else.
        RuntimeError: espeak-ng refused a voice, clipped or was silent, or the grammar ran out of sentences.
    """
    if not (0 < minutes < float("inf") and held_out >= 0):
        raise ValueError(f"minutes must be finite and above 0, held_out at least 0, got {minutes=} and {held_out=}")
    out = out.absolute()
    asked = {"seed": seed, "minutes": minutes, "held_out": held_out}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _read_figures(out, asked)

    partial = out.with_name(f"{out.name}.partial")
    with closing(Espeak(seed)) as espeak:
        if partial.exists():
            shutil.rmtree(partial)
        clips = _write_clips(partial, espeak, minutes, held_out, random.Random(seed))
    figures = _figures_of(clips)
    sentences = "".join(f"{clip.path.relative_to(partial).as_posix()}\t{clip.text}\n" for clip in clips)
    (partial / "sentences.tsv").write_text(sentences, encoding="utf-8")
    (partial / "corpus.json").write_text(json.dumps({**asked, "figures": figures}, indent=2), encoding="utf-8")
    if out.exists():
        out.rmdir()  # Windows renames onto nothing, not even onto an empty folder
    partial.rename(out)
    return figures


def _read_figures(out: Path, asked: Mapping[str, float]) -> dict[str, float]:
    """Reads the figures of a complete corpus that was made as `asked`; refuses anything else."""
    if not (out / "corpus.json").is_file():
        raise ValueError(f"{out} exists and is no demo corpus (it has no corpus.json): choose another folder")
    found = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    figures: dict[str, float] = found.pop("figures", {})
    if found != asked:
        raise ValueError(
            f"{out} holds a demo corpus of {found}, but {asked} was asked for: delete it or choose another folder"
        )
    return figures


def _write_clips(folder: Path, espeak: "Espeak", minutes: float, held_out: int, rng: random.Random) -> list[Clip]:
    """Writes `dev`, then `train`, always giving the word to the voice that has spoken least."""
    clips: list[Clip] = []
    said: set[str] = set()
    turns: Counter[tuple[str, Voice]] = Counter()

    def write(split: str, voice: Voice) -> float:
        text, samples = _new_sentence(espeak, voice, rng, said)
        path = folder / split / voice.name / f"{voice.name}_{turns[split, voice]:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        turns[split, voice] += 1
        clips.append(Clip(split, voice, path, text, seconds=len(samples) / SAMPLE_RATE))
        return clips[-1].seconds

    for turn in range(held_out):
        write("dev", VOICES[turn % len(VOICES)])
    spoken = dict.fromkeys(VOICES, 0.0)
    with Progress(transient=True) as progress:
        task = progress.add_task("synthesising the demo corpus", total=60 * minutes)
        while sum(spoken.values()) < 60 * minutes:
            voice = min(VOICES, key=spoken.__getitem__)
            spoken[voice] += write("train", voice)
            progress.update(task, completed=sum(spoken.values()))
    return clips


def _figures_of(clips: Iterable[Clip]) -> dict[str, float]:
    """Counts the clips and adds up their minutes."""

    def minutes(counted: Iterable[Clip]) -> float:
        return sum(clip.seconds for clip in counted) / 60

    train = [clip for clip in clips if clip.split == "train"]
    dev = [clip for clip in clips if clip.split == "dev"]
    return {
        "train_minutes": minutes(train),
        "dev_minutes": minutes(dev),
        "english_minutes": minutes(clip for clip in clips if clip.voice.grammar is ENGLISH),
        "mandarin_minutes": minutes(clip for clip in clips if clip.voice.grammar is MANDARIN),
        "train_clips": float(len(train)),
        "dev_clips": float(len(dev)),
        "speakers": float(len({clip.voice for clip in train})),
    }


def _new_sentence(
    espeak: "Espeak", voice: Voice, rng: random.Random, said: set[str]
) -> tuple[str, NDArray[np.int16]]:
    """Lets `voice` say what is not in `said`, drawing again until the length fits `CLIP_SECONDS`."""
    shortest, longest = CLIP_SECONDS
    for _ in range(MAX_DRAWS):
        text = draw_sentence(voice.grammar, rng)
        if text in said:
            continue
        said.add(text)
        samples = espeak.say(voice, text)
        if shortest <= len(samples) / SAMPLE_RATE <= longest:
            return text, samples
    raise RuntimeError(
        f"{MAX_DRAWS} draws gave {voice.name} no new sentence of {shortest} to {longest} s: "
        "ask for fewer minutes or add words to the grammar"
    )


def draw_sentence(grammar: Mapping[str, str], rng: random.Random) -> str:
    """Draws one sentence: an alternative of `sentence`, its `{slots}` filled in the same way.

    >>> draw_sentence({"sentence": "the {animal} sleeps", "animal": "cat"}, random.Random(0))
    'The cat sleeps.'
    """

    def draw(symbol: str) -> str:
        alternative = rng.choice(grammar[symbol].split("|")).strip()
        return re.sub(r"{(\w+)}", lambda slot: draw(slot[1]), alternative)

    text = draw("sentence")
    return text[0].upper() + text[1:] + ("" if text.endswith(("?", "。", "？")) else ".")


class Espeak:
    """A private espeak-ng: a voice and a sentence in, 16 kHz samples out.

    espeak-ng keeps flutter, phase and noise in C globals that no call resets, not even terminating it and
    initialising it again, so the same sentence differs from one call to the next. A copy of the library is
    loaded as a library of its own, with fresh globals: the seed and the order of the sentences are then all
    that matters, not what else the process made espeak-ng say before.
    """

    # Names and numbers of espeak-ng's speak_lib.h.
    _OUTPUT_SYNCHRONOUS, _INITIALIZE_DONT_EXIT = 2, 0x8000
    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
    _CHARS_UTF8, _END_PAUSE = 1, 0x1000
    _Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    _VOLUME_PERCENT = 70
    """At espeak's own level the louder voices come within a hair of full scale."""
    _PEAKS = (1_000, 30_000)
    """Of 16-bit samples. A clip that peaks lower counts as silent; higher, and resampling might clip it."""

    def __init__(self, seed: int) -> None:
        """Loads espeak-ng; raises ImportError if it is not installed."""
        try:
            import espeakng_loader
        except ImportError as error:
            raise ImportError(
                "the demo corpus needs espeak-ng (package espeakng-loader): pip install 'sf-lightning[demo]'"
            ) from error
        # Windows cannot delete a library in use: there the copy is left in the temporary folder.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        data = espeakng_loader.get_data_path()
        self._native_rate: int = self._library.espeak_Initialize(
            self._OUTPUT_SYNCHRONOUS, 0, data.encode(), self._INITIALIZE_DONT_EXIT
        )
        if self._native_rate <= 0:
            raise RuntimeError(
                f"espeak-ng could not read its data at {data} ({len(data)} characters long): reinstall "
                "espeakng-loader, in a shorter path if this one has more than 180 characters"
            )
        self._chunks: list[NDArray[np.int16]] = []
        self._callback = self._Callback(self._collect)  # C keeps a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def say(self, voice: Voice, text: str) -> NDArray[np.int16]:
        """Reads `text` aloud; returns `[N]` samples at `SAMPLE_RATE`, ending in a short pause."""
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
        flags = self._CHARS_UTF8 | self._END_PAUSE  # without the pause the last vowel is cut off dead
        if status := self._library.espeak_Synth(utf8, size, 0, 1, 0, flags, None, None):
            raise RuntimeError(f"espeak-ng's {name} could not read {text!r} (status {status})")
        native = np.concatenate([np.zeros(0, np.int16), *self._chunks]).astype(np.float32)
        peak = np.abs(native).max(initial=0.0)
        if not self._PEAKS[0] < peak < self._PEAKS[1]:
            raise RuntimeError(f"espeak-ng's {name} peaks at {peak:.0f}, not in {self._PEAKS}: {text!r}")
        resampled: NDArray[np.float32] = soxr.resample(native, self._native_rate, SAMPLE_RATE)
        return np.round(resampled).astype(np.int16)

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", num_samples: int, _events: object) -> int:
        """Keeps a copy of what espeak-ng has just made; it calls with no samples when it is done."""
        if samples and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0  # go on

    def close(self) -> None:
        """Frees espeak-ng's memory; the object is of no use afterwards."""
        self._library.espeak_Terminate()
