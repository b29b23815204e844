"""Streams of an audio file: where each begins and ends, so that none is lost and none is read in part.

libsndfile takes the number of samples from a header, or estimates it: of files that were joined it reads the first,
of an mp3 with a variable bitrate and no Xing frame a part. Here the containers are followed to their end instead,
and each stream is returned alone, with the number of its samples where it is known. Independent of decoding.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

UNKNOWN_SIZE = 0x7FFFF000
"""Smallest size in the header of a WAV that means "unknown": programs that write to a pipe store their maximum."""


class Stream(NamedTuple):
    """A stream that libsndfile decodes as a whole.

    Attributes:
        data: Bytes of an audio file that holds this stream alone.
        samples: Number of samples per channel, where libsndfile does not know it; None otherwise.
        is_estimated: Whether libsndfile would estimate the number by the size of the file, and stop there.
    """

    data: bytes
    samples: int | None = None
    is_estimated: bool = False


def split_streams(data: bytes) -> list[Stream]:
    """Returns the streams of the bytes of an audio file, in order; usually one, the file itself.

    Raises:
        ValueError: if the file is truncated, or holds bytes between its streams that are no audio.
    """
    start = _skip_id3(data, 0)
    if data[start : start + 4] == b"fLaC":
        return _flac_streams(data[start:])
    if data[:4] == b"OggS":
        return _ogg_streams(data)
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return _wav_streams(data)
    if data[start : start + 3] in _MP3_HEADERS:
        return _mp3_streams(data, start)
    if data[:7] == b"NIST_1A" and (counted := re.search(rb"sample_count -i (\d+)", data[:1024])):
        return [Stream(data, int(counted[1]))]
    return [Stream(data)]


def _skip_id3(data: bytes, start: int) -> int:
    """Returns the end of the ID3v2 tags at `start`, or `start` if there are none."""
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        a, b, c, d = data[start + 6 : start + 10]
        start += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if data[start + 5] & 0x10 else 0)
    return start


def _skip_tag(data: bytes, start: int) -> int:
    """Returns the end of a tag or padding at `start`, or `start` if there is neither."""
    if data[start : start + 3] == b"ID3":
        return _skip_id3(data, start)
    if data[start : start + 3] == b"TAG":
        return start + 128
    if data[start : start + 8] == b"APETAGEX" and len(data) >= start + 32:
        size, flags = struct.unpack_from("<I4xI", data, start + 12)
        return start + size + (32 if flags >> 29 & 1 else 0)  # a header is not counted in the size, a footer is
    if data[start : start + 11] == b"LYRICSBEGIN":
        end = data.find(b"LYRICS200", start)
        return len(data) if end < 0 else end + 9
    padding = re.compile(rb"\0+").match(data, start)
    return padding.end() if padding else start


def _is_only_tags(data: bytes, start: int) -> bool:
    """Returns whether nothing but tags and padding follows `start`."""
    while start < len(data) and (end := _skip_tag(data, start)) > start:
        start = end
    return start >= len(data)


# FLAC


def _flac_streams(data: bytes) -> list[Stream]:
    starts, start = list[int](), 0
    while start >= 0:
        if data[start + 4 : start + 8] in (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22"):
            starts.append(start)
        start = data.find(b"fLaC", start + 4)  # not a regular expression, which takes ten times as long
    if starts[:1] != [0]:
        raise ValueError("FLAC without its STREAMINFO block")
    streams = []
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        stream = bytearray(data[start:end])
        samples = int.from_bytes(stream[21:26]) & (1 << 36) - 1
        # Without a number of samples the decoder reads to the end of the bytes, and reports a broken one.
        stream[21] &= 0xF0
        stream[22:26] = bytes(4)
        streams.append(Stream(bytes(stream), samples or None))
    return streams


# Ogg


def _ogg_streams(data: bytes) -> list[Stream]:
    starts, position, was_first, is_complete = [], 0, False, True
    while data[position : position + 4] == b"OggS" and len(data) >= position + 27:
        body = position + 27 + data[position + 26]
        end = body + sum(data[position + 27 : body])
        if end > len(data):
            raise ValueError(f"the Ogg page at byte {position} of {len(data)} is incomplete: the file is truncated")
        is_first = bool(data[position + 5] & 2)
        if is_first and not was_first:  # the first pages of streams that are multiplexed follow one another
            if not is_complete:
                break
            starts.append(position)
            is_complete = False
        is_complete |= bool(data[position + 5] & 4)
        position, was_first = end, is_first
    if not is_complete:
        raise ValueError(
            f"the Ogg stream has no last page at byte {position} of {len(data)}: the file is truncated"
        )
    if data.find(b"OggS", position) >= 0:
        raise ValueError(f"no Ogg page at byte {position} of {len(data)}: the file is damaged")
    return [Stream(data[start:end]) for start, end in zip(starts, [*starts[1:], position], strict=True)]


# WAV


def _wav_streams(data: bytes) -> list[Stream]:
    streams, start = list[Stream](), 0
    while start < len(data):
        if data[start : start + 4] not in (b"RIFF", b"RF64") or data[start + 8 : start + 12] != b"WAVE":
            if streams and _is_only_tags(data, start):
                break
            raise ValueError(f"{len(data) - start} bytes after the audio of the WAV are neither a chunk nor a tag")
        stream, start = _wav_stream(data, start)
        streams.append(Stream(stream))
    return streams


def _wav_stream(data: bytes, start: int) -> tuple[bytes, int]:
    """Returns the WAV at `start` and the position after its last chunk."""
    position, size_in_ds64, has_audio = start + 12, None, False
    while (name := data[position : position + 4]) and re.fullmatch(rb"[ -~]{4}", name):
        if (name in (b"RIFF", b"RF64") and has_audio) or len(data) < position + 8:
            break
        (size,) = struct.unpack_from("<I", data, position + 4)
        first = position + 8
        if name == b"ds64" and len(data) >= first + 16:
            (size_in_ds64,) = struct.unpack_from("<Q", data, first + 8)
        if name == b"data" and not has_audio:
            has_audio = True
            if size_in_ds64 is not None and size == 0xFFFFFFFF:
                size = size_in_ds64
            elif size >= UNKNOWN_SIZE or (size == 0 and not _is_end_or_chunk(data, first)):
                following = data.find(b"WAVEfmt ", first)
                end = len(data) if following < 0 else following - 8
                header = data[start : position + 4] + struct.pack("<I", end - first)
                return header + data[first:end], end
            if first + size > len(data):
                raise ValueError(f"{len(data) - first} of {size} bytes of audio are there: the file is truncated")
        elif first + size > len(data):
            break
        position = first + size
        if size % 2 and not re.match(rb"[ -~]{4}", data[position : position + 4]):
            position += 1  # most programs pad chunks of an odd size
    return data[start:position] if start or position < len(data) else data, position


def _is_end_or_chunk(data: bytes, position: int) -> bool:
    """Returns whether the file ends at `position`, or a chunk begins that ends within the file."""
    if position >= len(data):
        return True
    name, size = data[position : position + 4], data[position + 4 : position + 8]
    fits = position + 8 + int.from_bytes(size, "little") <= len(data)
    return len(size) == 4 and fits and re.fullmatch(rb"[ -~]{4}", name) is not None


# mp3


class _FrameHeader(NamedTuple):
    size: int
    samples: int
    rate: int


def _mp3_headers() -> dict[bytes, _FrameHeader]:
    """Returns the size of a frame of MPEG layer III, and what it holds, for the first three bytes of its header."""
    first = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    second = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    headers = {}
    for version, kbits, divisor in ((3, first, 1), (2, second, 2), (0, second, 4)):
        for index, kbit in enumerate(kbits, 1):
            for rate_index, rate in enumerate((44100, 48000, 32000)):
                for padding in (0, 1):
                    samples, rate_hz = (1152 if version == 3 else 576), rate // divisor
                    header = _FrameHeader(samples // 8 * kbit * 1000 // rate_hz + padding, samples, rate_hz)
                    for protection, private in ((0, 0), (0, 1), (1, 0), (1, 1)):
                        one = 0xE0 | version << 3 | 1 << 1 | protection
                        two = index << 4 | rate_index << 2 | padding << 1 | private
                        headers[bytes((0xFF, one, two))] = header
    return headers


_MP3_HEADERS = _mp3_headers()


def _mp3_streams(data: bytes, start: int) -> list[Stream]:
    # The usual file is not followed frame by frame: its Xing frame has its number of bytes.
    end = len(data) - (128 if data[-128:-125] == b"TAG" else 0)
    counted, num_bytes = _xing_counts(data, start)
    if counted and num_bytes == end - start:
        return [Stream(data[start:end])]
    streams: list[Stream] = []
    frames: list[bytes] = []
    kind, counted = None, None
    for position, header in _mp3_frames(data, start):
        frame = data[position : position + header.size]
        found, _ = _xing_counts(data, position)
        is_info = found is not None or frame[36:40] == b"VBRI"
        frame_kind = (header.samples, header.rate, frame[3] >> 6 == 3)
        if is_info or kind != frame_kind or (counted is not None and len(frames) == counted + 1):
            streams += _mp3_stream(frames, counted)
            frames, counted, kind = [], found or None, frame_kind
            if is_info and not counted:
                continue
        frames.append(frame)
    return streams + _mp3_stream(frames, counted)


def _mp3_stream(frames: list[bytes], counted: int | None) -> list[Stream]:
    """Returns the stream of these frames, the first of which is a Xing frame if they are `counted`; or nothing."""
    if counted is None:
        samples = len(frames) * _MP3_HEADERS[frames[0][:3]].samples if frames else 0
        return [Stream(b"".join(frames), samples, is_estimated=True)] if frames else []
    if len(frames) != counted + 1:
        raise ValueError(f"{len(frames) - 1} of {counted} mp3 frames are there: the file is truncated")
    return [Stream(b"".join(frames))]


def _mp3_frames(data: bytes, position: int) -> Iterator[tuple[int, _FrameHeader]]:
    """Yields position and header of each frame, beginning with the one at `position`.

    Raises:
        ValueError: if the last one is incomplete, or other bytes than tags are between two.
    """
    size = len(data)
    while position < size:
        header = _MP3_HEADERS.get(data[position : position + 3])
        if header is not None:
            if position + header.size > size:
                raise ValueError(f"the mp3 frame at byte {position} of {size} is incomplete: the file is truncated")
            yield position, header
            position += header.size
        elif (end := _skip_tag(data, position)) > position:
            position = end
        elif any(
            _is_frame_pair(data, match.start()) for match in re.finditer(rb"\xff[\xe2-\xff]", data[position:])
        ):
            raise ValueError(f"no mp3 frame at byte {position} of {size}: the file is damaged")
        else:
            return


def _is_frame_pair(data: bytes, position: int) -> bool:
    header = _MP3_HEADERS.get(data[position : position + 3])
    return header is not None and data[position + header.size :][:3] in _MP3_HEADERS


def _xing_counts(data: bytes, start: int) -> tuple[int | None, int | None]:
    """Returns the numbers of frames and bytes in the Xing frame at `start`; 0 if unknown, None if there is none."""
    at = start + 4 + _side_size(data[start : start + 4])
    if data[at : at + 4] not in (b"Xing", b"Info") or len(data) < at + 16:
        return None, None
    (flags,) = struct.unpack_from(">I", data, at + 4)
    values = iter(struct.unpack_from(">II", data, at + 8))
    return (next(values) if flags & 1 else 0), (next(values) if flags & 2 else 0)


def _side_size(header: bytes) -> int:
    """Returns the size of the side information after the header of a frame."""
    if len(header) < 4:
        return 0
    is_mono, is_first_version = header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    return (17 if is_mono else 32) if is_first_version else (9 if is_mono else 17)
