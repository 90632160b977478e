"""A bad link below TCP: two network namespaces joined by a forwarder of packets that loses and delays them.

For kernels without ``netem``. Needs root, ``/dev/net/tun`` and iproute2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import heapq
import os
import pathlib
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

__all__ = ["ADDRESS", "HEADERS", "NEAR_ADDRESS", "Link", "attach", "available", "in_namespace", "namespaces"]

# <linux/if_tun.h>
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000
ADDRESS, NEAR_ADDRESS = "10.98.7.2", "10.98.7.1"  # of the far and the near end
HEADERS = 66  # bytes of Ethernet, IPv4 and TCP with timestamps
HELD = 4000  # packets


def available() -> bool:
    """Tell whether such a link can be made here."""
    return os.geteuid() == 0 and pathlib.Path("/dev/net/tun").exists() and shutil.which("ip") is not None


def in_namespace(name: str, command: Sequence[str]) -> list[str]:
    """Return the command that runs a command in a namespace."""
    return ["ip", "netns", "exec", name, *command]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    """Make a near and a far network namespace for the time of the block, and yield their names."""
    names = (f"mobillm-near-{os.getpid()}", f"mobillm-far-{os.getpid()}")
    with contextlib.ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        yield names


def attach(name: str, device: str, address: str) -> None:
    """Give a network device in a namespace its address and switch it on."""
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
    _ip("-n", name, "link", "set", device, "up")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What happens to the packets, in both directions.

    Attributes:
        delay, jitter: seconds, one way; jitter puts packets out of order.
        loss, dup, corrupt: probability for each packet.
        rate: bytes of TCP's payload per second; 0 lets all pass.
        seed: of the random source.

    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    dup: float = 0.0
    corrupt: float = 0.0
    rate: float = 0.0
    seed: int = 1

    @contextlib.contextmanager
    def up(self) -> Iterator[tuple[str, str]]:
        """Yield the names of the near and the far namespace, whose link is up for that time."""
        with contextlib.ExitStack() as stack:
            names = stack.enter_context(namespaces())
            files = []
            for number, name in enumerate(names):
                device = f"mlm{number}p{os.getpid()}"[:15]
                file = _tap(device)
                stack.callback(os.close, file)
                files.append(file)
                _ip("link", "set", device, "netns", name)
                attach(name, device, (NEAR_ADDRESS, ADDRESS)[number])
            over = threading.Event()
            forwarder = threading.Thread(target=self._forward, args=(files[0], files[1], over))
            forwarder.start()
            try:
                yield names
            finally:
                over.set()
                forwarder.join()

    def _forward(self, near: int, far: int, over: threading.Event) -> None:
        source = random.Random(self.seed)
        peer = {near: far, far: near}
        busy = {near: 0.0, far: 0.0}
        queue: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not over.is_set():
            wait = 0.05 if not queue else max(0.0, min(0.05, queue[0][0] - time.monotonic()))
            for file in select.select([near, far], [], [], wait)[0]:
                packet = _read(file)
                if packet is None or source.random() < self.loss or len(queue) >= HELD:
                    continue
                if source.random() < self.corrupt:
                    packet = _corrupted(packet, source)
                due = max(busy[file], time.monotonic())
                if self.rate:
                    due += max(0, len(packet) - HEADERS) / self.rate
                    busy[file] = due
                due += self.delay + source.uniform(-1.0, 1.0) * self.jitter
                for _ in range(2 if source.random() < self.dup else 1):
                    count += 1
                    heapq.heappush(queue, (due, count, peer[file], packet))
            while queue and queue[0][0] <= time.monotonic():
                _, _, file, packet = heapq.heappop(queue)
                with contextlib.suppress(OSError):  # the device's queue is full: one more packet is lost
                    os.write(file, packet)


def _tap(name: str) -> int:
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def _read(file: int) -> bytes | None:
    try:
        return os.read(file, 65536)
    except OSError:
        return None


def _corrupted(packet: bytes, source: random.Random) -> bytes:
    changed = bytearray(packet)
    changed[source.randrange(len(packet))] ^= 1 << source.randrange(8)
    return bytes(changed)
