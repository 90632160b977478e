"""Tests of mobillm.protocol.endpoint with arbitrary bytes."""

from __future__ import annotations

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm.errors import (
    MobiLLMError,
)
from mobillm.protocol import (
    FrameType,
)
from tests.helpers import (
    EndpointPair,
    examples,
    make_batch,
    output,
    raw_frame,
    wire_bytes,
)

legal = st.sampled_from([wire_bytes(message) for message in (*make_batch(1), *make_batch(2), *examples())])
damaged = st.builds(
    lambda data, at, mask: (
        data[: at % len(data)] + bytes([data[at % len(data)] ^ mask]) + data[at % len(data) + 1 :]
    ),
    legal,
    st.integers(0, 2**16),
    st.integers(1, 255),
)
fields = st.dictionaries(
    st.sampled_from(
        ["code", "text", "data", "seq", "offset", "last", "!x", "shape", "payload", "spec", "total"]
    ),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats()
        | st.text(max_size=5)
        | st.binary(max_size=40),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=6,
)
odd = st.builds(
    lambda t, meta, payload, stream, seq: raw_frame(
        t, msgpack.packb(meta), payload if t.has_payload else None, stream=stream, seq=seq
    ),
    st.sampled_from(FrameType),
    fields,
    st.binary(max_size=60),
    st.integers(0, 3),
    st.integers(0, 9),
)


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.one_of(legal, legal, legal, damaged, odd, st.binary(max_size=40)), max_size=8),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    opened=st.booleans(),
    device=st.booleans(),
)
def test_any_bytes_are_events_or_a_documented_refusal(
    parts: list[bytes], sizes: list[int], opened: bool, device: bool
) -> None:
    """[T-3] [F-5] [M-5] No bytes make an endpoint raise, and chunking changes nothing."""
    data = b"".join(parts)
    results = []
    for steps in ([len(data) + 1], sizes, [1]):
        pair = EndpointPair.attached() if opened else EndpointPair()
        end = pair.device if device else pair.server
        end.data_to_send()
        position = turn = 0
        while position < len(data):
            step = steps[turn % len(steps)]
            end.receive_data(data[position : position + step])
            position, turn = position + step, turn + 1
        reason = end.close_exc
        results.append((end.events_received(), output(end), end.phase, type(reason), str(reason)))
        assert reason is None or isinstance(reason, MobiLLMError)
        assert end.is_closed() is (reason is not None)
    assert results[0] == results[1] == results[2]
