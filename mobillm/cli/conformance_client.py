"""The client that the conformance suite tries by default: one tiny session, start to end.

``python -m mobillm.cli.conformance_client ADDRESS TOKEN`` ends with status 0 if everything went as agreed,
and with 1 otherwise. A client in another language does the same to be tested: it opens one session, sends
at least two batches, FINISH, waits for FINISHED, pulls the weights, leaves, and says goodbye. It bounds
every wait and does not connect a second time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys

import numpy as np

from ..device import connect
from ..errors import MobiLLMError
from ..options import Timeouts
from ..protocol import CAPABILITY
from ..spec import CodecSpec, ModelSpec, OptimizerSpec, SessionSpec, SideSpec

__all__ = ["SPEC", "main", "visit"]

# Short bounds: a server that falls silent is given up after a few seconds.
TIMEOUTS = Timeouts(connect=5.0, handshake=2.0, request=3.0, keepalive=1.0, keepalive_reply=1.0, drain=1.0)
WIDTH = 32
BATCHES = 3
EQUALIZED = 32  # tokens of a batch that is large enough to calibrate on

SPEC = SessionSpec(
    task="classification",
    outputs=2,
    model=ModelSpec(name="conformance", hidden_size=WIDTH, layers=2, taps=(1, 2)),
    side=SideSpec(kind="head"),
    optimizer=OptimizerSpec(schedule="constant"),
    codec=CodecSpec(format="asym4", block=32),
)
COMPRESSED = dataclasses.replace(SPEC, codec=dataclasses.replace(SPEC.codec, compression="zstd"))


async def visit(address: str, token: str) -> int:
    """Run the session.

    Returns:
        the exit status.

    """
    try:
        async with connect(address, token=token, timeouts=TIMEOUTS) as client:
            agreed = CAPABILITY in client.connection.endpoint.caps
            session = await client.open(COMPRESSED if agreed else SPEC)
            for seq in range(1, BATCHES + 1):
                tokens = EQUALIZED if seq == 2 else 3
                values = np.full((tokens, WIDTH), seq / 8, dtype=np.float32)
                values[tokens // 2 :] *= np.sin(np.arange(WIDTH * (tokens - tokens // 2))).reshape(-1, WIDTH)
                await session.submit([values, -values], [tokens - 1, 1], [0, 1])
            await session.finish()
            await session.wait_finished()
            await session.pull()
            await session.detach()
    except (MobiLLMError, TimeoutError, OSError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run the session that the arguments name."""
    if len(sys.argv) != 3:
        print("usage: python -m mobillm.cli.conformance_client ADDRESS TOKEN", file=sys.stderr)
        return 2
    return asyncio.run(visit(sys.argv[1], sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
