"""MP3 of variable bit rate without a Xing header, as some recorders write it: libsndfile guesses its length and cuts it there.

Format: ISO/IEC 11172-3 and 13818-3, and the header that encoders by Xing, and LAME, put into the first frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

KILOBITS = {  # per second, by bit rate index, of layer III: MPEG 1, MPEG 2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44100, 48000, 32000)  # Hz, MPEG 1
LONGEST_TAG = 1 << 16  # bytes after the last frame; if more follow, the frames were not found


class Frame(NamedTuple):
    """Where a frame begins and how long it is, in bytes; where a Xing header would begin in it."""

    start: int
    size: int
    tag: int


def frame_at(data: bytes, start: int) -> Frame | None:
    """Return the frame of layer III whose header is at `start`, or None."""
    if start + 4 > len(data) or data[start] != 0xFF or data[start + 1] & 0xE6 != 0xE2:
        return None
    version, index, rate = data[start + 1] >> 3 & 3, data[start + 2] >> 4, data[start + 2] >> 2 & 3
    if version == 1 or index in (0, 15) or rate == 3:
        return None
    first = version == 3  # MPEG 1; 2: MPEG 2, 0: MPEG 2.5
    hertz = RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    size = (144 if first else 72) * 1000 * KILOBITS[first][index] // hertz + (data[start + 2] >> 1 & 1)
    mono = data[start + 3] >> 6 == 3
    return Frame(start, size, start + 4 + ((17 if mono else 32) if first else (9 if mono else 17)))


def frames(data: bytes, start: int) -> Iterator[Frame]:
    """Yield the complete frames that follow each other from `start` on."""
    while (frame := frame_at(data, start)) and start + frame.size <= len(data):
        yield frame
        start += frame.size


def states_length(head: bytes) -> bool:
    """Return whether a file that begins with `head` is not an MP3, or has a Xing header there."""
    frame = frame_at(head, 0)
    return head[:3] != b"ID3" and (frame is None or head[frame.tag : frame.tag + 4] in (b"Xing", b"Info"))


def with_length(data: bytes) -> bytes:
    """Return an MP3 with a Xing header if its bit rate varies and it has none; else the same bytes."""
    start = 10 + sum((b & 0x7F) << 7 * (3 - i) for i, b in enumerate(data[6:10])) if data[:3] == b"ID3" else 0
    first = frame_at(data, start)
    if first is None or data[first.tag : first.tag + 4] in (b"Xing", b"Info") or b"VBRI" in data[start : start + 64]:
        return data
    found = list(frames(data, start))
    if not found or len(data) - found[-1].start - found[-1].size > LONGEST_TAG:
        return data
    if len({data[frame.start + 2] >> 4 for frame in found}) < 2:  # a constant bit rate: the size gives the length
        return data
    header = bytearray(data[start : start + 4])
    header[1] |= 1  # without a check sum
    header[2] = header[2] & 0x0D | 0x90  # a frame that is long enough; no padding
    frame = frame_at(bytes(header) + bytes(4), 0)
    assert frame is not None
    tagged = (bytes(header) + bytes(frame.tag - 4) + b"Xing" + struct.pack(">II", 1, len(found))).ljust(frame.size, b"\0")
    return data[:start] + tagged + data[start:]
