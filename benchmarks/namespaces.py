"""The links of :mod:`benchmarks.link` once more below TCP, in network namespaces, and all of them measured.

``python -m benchmarks.namespaces --rate 10mbit --rtt 50ms`` sends bytes through the relay, through a veth
pair with the kernel's token bucket (tbf; without a delay, which needs netem), and through a forwarder of
packets between two TAP devices, and prints the rate of each over the nominal one. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.link import Shape, parse_rate, parse_seconds, relayed
from benchmarks.tap import ADDRESS, HEADERS, NEAR_ADDRESS, Link, attach, available, in_namespace, namespaces
from mobillm.transport import Address

__all__ = ["has_tbf", "joined", "measure_namespaces", "measure_relay", "receive"]

PAYLOAD = 1448  # bytes of TCP in a full Ethernet frame, with timestamps
BURST = 16 << 10  # bytes that tbf lets pass at once
LATENCY = "100ms"  # for which it holds packets before it drops some
PORT = 7708
CONNECT_SECONDS = 10.0

# Sends bytes to an address that is listened on. The first part fills queues and is not measured.
_SENDER = """
import socket, sys
host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.create_connection((host, port), 10.0) as sock:
    sock.settimeout(None)
    sock.sendall(bytes(size))
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)
"""

# Listens in a namespace and prints the rate of all but the first part.
_RECEIVER = """
import sys
from benchmarks.namespaces import receive
print(receive(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), flush=True)
"""


def has_tbf() -> bool:
    """Tell whether the kernel has the token bucket, and we may use it."""
    if not available():
        return False
    try:
        with joined(Shape(rate=1e6)):
            return True
    except subprocess.CalledProcessError:
        return False


@contextlib.contextmanager
def joined(shape: Shape) -> Iterator[tuple[str, str]]:
    """Join two namespaces by a veth pair with tbf at both ends; yield their names.

    The far end has the address :data:`benchmarks.tap.ADDRESS`.

    Raises:
        ValueError: the shape has a delay, or no rate.
        subprocess.CalledProcessError: the kernel lacks something.

    """
    if shape.rtt or not shape.rate:
        raise ValueError(f"{shape} needs more than tbf; use benchmarks.tap")
    with namespaces() as names:
        devices = [f"mlv{number}p{os.getpid()}"[:15] for number in range(2)]
        _run("ip", "link", "add", devices[0], "type", "veth", "peer", "name", devices[1])
        for name, device, address in zip(names, devices, (NEAR_ADDRESS, ADDRESS), strict=True):
            _run("ip", "link", "set", device, "netns", name)
            attach(name, device, address)
            # Packets of the size that is counted: without offloading to the next layer.
            _run(*in_namespace(name, ["ip", "link", "set", device, "gso_max_segs", "1"]))
            rate = f"{shape.rate * 8 * (PAYLOAD + HEADERS) / PAYLOAD:.0f}bit"
            tbf = ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate]
            _run(*in_namespace(name, [*tbf, "burst", str(BURST), "latency", LATENCY]))
        yield names


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def receive(host: str, port: int, skipped: int) -> float:
    """Say that it listens, take one connection, and return its bytes per second after ``skipped`` bytes."""
    with socket.create_server((host, port)) as server:
        print("ready", flush=True)
        server.settimeout(CONNECT_SECONDS)
        sock, _ = server.accept()
        with sock:
            return _drain(sock, skipped)


def _drain(sock: socket.socket, skipped: int) -> float:
    count, last = 0, time.monotonic()
    start, first = last, 0
    while size := len(sock.recv(1 << 16)):
        count, last = count + size, time.monotonic()
        if count - size < skipped <= count:
            start, first = last, count
    return (count - first) / (last - start)


def measure_relay(shape: Shape, seconds: float) -> float:
    """Return bytes per second through the relay, measured for some seconds after a quarter of a second."""
    sizes = _sizes(shape, seconds)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with relayed(Address(host, port), shape) as (address, _):
            sender = subprocess.Popen(
                [sys.executable, "-c", _SENDER, address.host, str(address.port), str(sum(sizes))]
            )
            server.settimeout(CONNECT_SECONDS)
            sock, _ = server.accept()
            with sock:
                rate = _drain(sock, sizes[0])
            sender.wait()
    return rate


def measure_namespaces(names: tuple[str, str], shape: Shape, seconds: float) -> float:
    """Return bytes per second from the near namespace to the far one, measured as in the relay."""
    near, far = names
    sizes = _sizes(shape, seconds)
    root = str(pathlib.Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    command = in_namespace(far, [sys.executable, "-c", _RECEIVER, ADDRESS, str(PORT), str(sizes[0])])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        command = [sys.executable, "-c", _SENDER, ADDRESS, str(PORT), str(sum(sizes))]
        subprocess.run(in_namespace(near, command), check=True)
        return float(receiver.stdout.readline())


def _sizes(shape: Shape, seconds: float) -> tuple[int, int]:
    """Return the bytes to skip (TCP's start, full queues) and the bytes to measure."""
    return int(shape.rate * (0.25 + 10 * shape.rtt)), int(shape.rate * seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each kind of link and print its rate over the nominal one."""
    parser = argparse.ArgumentParser(prog="benchmarks.namespaces", description=__doc__)
    parser.add_argument("--rate", type=parse_rate, default=parse_rate("10mbit"))
    parser.add_argument("--rtt", type=parse_seconds, default=0.0)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    args = parser.parse_args(argv)
    shape = Shape(rate=args.rate, rtt=args.rtt)
    print(f"relay {measure_relay(shape, args.seconds) / shape.rate:.4f}")
    if available():
        with Link(delay=shape.rtt / 2, rate=shape.rate).up() as names:
            print(f"TAP forwarder {measure_namespaces(names, shape, args.seconds) / shape.rate:.4f}")
    if not shape.rtt and has_tbf():
        with joined(shape) as names:
            print(f"veth with tbf {measure_namespaces(names, shape, args.seconds) / shape.rate:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
