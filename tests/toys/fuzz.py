"""Random damage to files and to plain values, drawn from a seeded generator so that each case can be repeated."""

import copy
import random
from typing import Any

STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 16000, 2**31, 2**63, -(2**63), 10**9, 10**12, 10**30, 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "\ud800", "\x00", "a" * 100_000, "1e9", "nan"),
    *("../x", "/etc/passwd", "é\u202e", "pipe:false {}", "http://127.0.0.1:9/x"),
    *([], {}, [[]], [None], {"a": 1}, [1, 2, 3], [[[[[[]]]]]]),
]
"""Values that no field expects."""


def strange_value(draw: random.Random) -> Any:
    """Returns one of `STRANGE`."""
    return copy.deepcopy(draw.choice(STRANGE))


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Returns the keys and indices that lead to each value within nested dicts and lists."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in children for place in places(child, (*at, key)))]


def mutate(draw: random.Random, value: Any) -> Any:
    """Returns a copy of nested dicts and lists with one to four values replaced, dropped, added or scaled."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        place = draw.choice(places(value))
        if not place:
            value = strange_value(draw) if draw.random() < 0.05 else value
            continue
        *path, last = place
        parent = value
        for key in path:
            parent = parent[key]
        kind, number = draw.random(), parent[last]
        if kind < 0.15:
            parent.pop(last)
        elif kind < 0.25 and isinstance(parent, dict):
            parent[draw.choice(["zzz", "__class__", "format", "_", ""])] = strange_value(draw)
        elif kind < 0.25:
            parent.append(copy.deepcopy(number))
        elif kind < 0.4 and type(number) in (int, float):
            parent[last] = number * draw.choice([-1, 0, 2, 1000, 10**6]) + draw.choice([-1, 0, 1])
        else:
            parent[last] = strange_value(draw)
    return value


def flip_bits(draw: random.Random, content: bytes) -> bytes:
    """Returns a copy with 1 to 64 bits flipped."""
    damaged = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def damage(draw: random.Random, content: bytes) -> bytes:
    """Returns a copy with bits flipped, a part missing, random or zero bytes inside, or random bytes instead."""
    kind, start, size = draw.random(), draw.randrange(len(content)), draw.choice([1, 100, 512, 5000])
    if kind < 0.45:
        return flip_bits(draw, content)
    if kind < 0.65:
        return content[:start]
    if kind < 0.75:
        return content[:start] + draw.randbytes(size) + content[start:]
    if kind < 0.85:
        return content[:start] + bytes(size) + content[start + size :]
    if kind < 0.95:
        return content[:start] + content[start + size :]
    return draw.randbytes(draw.choice([0, 1, 10, 600]))


def damage_text(draw: random.Random, text: str) -> bytes:
    """Returns JSON or YAML, mostly unchanged, else cut, nested deeply, with strange characters or long numbers."""
    kind, start = draw.random(), draw.randrange(max(1, len(text)))
    if kind < 0.04:
        text = text[:start]
    elif kind < 0.07:
        text = "[" * 100_000 + text
    elif kind < 0.09:
        text = "\ufeff" + text
    elif kind < 0.11:
        text = text.replace(":", "::", 1)
    elif kind < 0.13:
        text = text.replace("1", "1" * 5000, 1)
    elif kind < 0.15:
        text = text[:start] + chr(draw.randrange(0x20000)) + text[start:]
    return text.encode("utf-8", "surrogatepass")
