"""Hypothesis: how long it searches here, and the inputs that several tests draw.

The runs of one version of the code all draw the same inputs, so that a red test is news about the code.
To look for new ones: HYPOTHESIS_PROFILE=search.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gateway.wire.frames import Opcode

_SLOW_MACHINE = [HealthCheck.too_slow]  # a busy machine is no finding

settings.register_profile(
    "steady", max_examples=60, deadline=None, derandomize=True, suppress_health_check=_SLOW_MACHINE
)
settings.register_profile("search", max_examples=2_000, deadline=None, suppress_health_check=_SLOW_MACHINE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


class Frame(NamedTuple):
    """A client's frame before it is masked. `rsv` are the three reserved bits."""

    opcode: int
    payload: bytes
    final: bool = True
    rsv: int = 0


def client_frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, rsv: int = 0, key: bytes = b"\x12\x34\x56\x78"
) -> bytes:
    """A masked frame as RFC 6455 section 5.2 draws it, written by the book and not by our codec."""
    first = (0x80 if final else 0) | rsv << 4 | opcode
    length = len(payload)
    if length < 126:
        head = bytes([first, 0x80 | length])
    elif length < 65536:
        head = bytes([first, 0x80 | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([first, 0x80 | 127]) + length.to_bytes(8, "big")
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


keys = st.binary(min_size=4, max_size=4)
texts = st.text(max_size=200).map(str.encode) | st.text("aé€🎉", min_size=100, max_size=300).map(str.encode)
short = st.binary(max_size=125)
close_bodies = st.just(b"") | st.builds(
    lambda code, reason: code.to_bytes(2, "big") + reason.encode(),
    st.sampled_from([1000, 1001, 1003, 1011, 1014, 3000, 4999]),
    st.text(max_size=30),
)


@st.composite
def messages(draw: st.DrawFn) -> list[Frame]:
    """One text message, cut into fragments anywhere (also inside a character), pings in between."""
    payload = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    frames = []
    for i, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(payload)], strict=True)):
        opcode = Opcode.CONTINUATION if i else Opcode.TEXT
        frames.append(Frame(opcode, payload[begin:end], final=i == len(cuts)))
        if draw(st.booleans()):
            frames.append(Frame(draw(st.sampled_from([Opcode.PING, Opcode.PONG])), draw(short)))
    return frames


@st.composite
def conversations(draw: st.DrawFn) -> list[Frame]:
    """What a client that keeps to the RFC may send; sometimes with a close frame at the end."""
    frames = [frame for message in draw(st.lists(messages(), max_size=4)) for frame in message]
    if draw(st.booleans()):
        frames.append(Frame(Opcode.CLOSE, draw(close_bodies)))
    return frames


@st.composite
def masked(draw: st.DrawFn, frames: st.SearchStrategy[list[Frame]]) -> tuple[list[Frame], bytes]:
    """Frames, and the bytes that carry them."""
    drawn = draw(frames)
    stream = b"".join(
        client_frame(frame.opcode, frame.payload, final=frame.final, rsv=frame.rsv, key=draw(keys))
        for frame in drawn
    )
    return drawn, stream


def chunks(stream: bytes) -> st.SearchStrategy[list[bytes]]:
    """`stream` in any pieces, as TCP may deliver it."""
    cuts = st.lists(st.integers(0, len(stream)), max_size=12).map(sorted)
    return cuts.map(
        lambda at: [stream[begin:end] for begin, end in zip([0, *at], [*at, len(stream)], strict=True)]
    )
