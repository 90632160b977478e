"""Does a backbone twice as large as the memory that the system grants train, and at what price?

``python -m benchmarks.limit --model M.gguf --data train.tsv --json F --picture P`` runs ``mobillm finetune``
in a memory control group of its own, three times: ``streamed`` (``--stream-weights``) and ``mapped`` (not
streamed) under a limit of half of the weights, which the kernel enforces, page cache included; and
``resident``, without a limit. Weights of a resident backbone are mapped, so the kernel need not end that
process: it may read them again for every batch. Swap is off, and the weights are out of the page cache at the
start of each. The device has one core and one thread. Needs Linux and root (or control groups that may be
written to).

Keys: ``weights_bytes``, ``limit_bytes``; ``peak_bytes.<run>`` of the group and ``resident_bytes.<run>`` (most
resident memory of the process, mapped files included); ``seconds_per_sample.<run>`` (first forward pass to
last batch sent; null if it did not get through); ``ratio`` (streamed over resident) and ``mapped_ratio``;
``status.<run>``, the exit status, -9 where the kernel ended it; ``memory.<run>``, [seconds, resident bytes]
over time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from benchmarks.harness import interruptible, json_file, memory_bytes, write_json
from benchmarks.memory import serving
from benchmarks.rig import DEVICE_CORE
from mobillm.cli.arguments import at_least
from mobillm.nn.loading import model_source
from mobillm.nn.models import local_directory

GROUPS = pathlib.Path("/sys/fs/cgroup")
INTERVAL = 0.1  # seconds between two looks at the memory
MIB = 2**20
SAID = 2000  # characters of what a run that failed has said
RUNS = ("streamed", "resident", "mapped")


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group that limits memory, of either version of the kernel's interface.

    Args:
        path: its directory.
        v1: whether it is of version 1.

    """

    path: pathlib.Path
    v1: bool

    @classmethod
    @contextlib.contextmanager
    def make(cls, limit: int | None) -> Iterator[MemoryGroup]:
        """Make a group for the time of the block; ``limit`` in bytes, None for none."""
        v1 = (GROUPS / "memory").is_dir()
        group = cls(
            (GROUPS / "memory" if v1 else GROUPS) / f"mobillm-{os.getpid()}-{time.monotonic_ns()}", v1
        )
        try:
            group.path.mkdir()
        except OSError as error:
            raise SystemExit(f"{group.path} cannot be made ({error.strerror}); run this as root") from error
        try:
            group._prepare(limit)
            yield group
        finally:
            group.path.rmdir()

    def _prepare(self, limit: int | None) -> None:
        try:
            if limit is not None:
                names = ("limit_in_bytes", "memsw.limit_in_bytes") if self.v1 else ("max", "swap.max")
                # Version 1 counts memory and swap together, and refuses the sum before the part.
                for name, value in zip(names, (limit, limit if self.v1 else 0), strict=True):
                    self._file(name).write_text(str(value))
            _ = self.peak
        except OSError as error:
            raise SystemExit(
                f"{error.filename} cannot be used ({error.strerror}); this needs control groups that limit "
                "memory and swap and count the peak"
            ) from error

    @property
    def peak(self) -> int:
        """Most bytes that it has held."""
        return int(self._file("max_usage_in_bytes" if self.v1 else "peak").read_text())

    def _file(self, name: str) -> pathlib.Path:
        return self.path / f"memory.{name}"

    def start(self, command: Sequence[str], output: Any, errors: Any) -> subprocess.Popen[bytes]:
        """Start a command in it, on the device's core."""
        enter = 'echo $$ > "$0" && exec taskset -c "$@"'
        line = ["sh", "-c", enter, str(self.path / "cgroup.procs"), str(DEVICE_CORE), *command]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(line, stdout=output, stderr=errors, env=environment)


def resident(pid: int) -> int:
    """Return the bytes of a process that are resident; 0 when it has ended."""
    with contextlib.suppress(OSError, RuntimeError):
        return memory_bytes("VmRSS", pid)
    return 0


def run(args: argparse.Namespace, limit: int | None, *, stream: bool) -> dict[str, Any]:
    """Fine-tune once and return what it took."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving() as (address, token),
        MemoryGroup.make(limit) as group,
        (pathlib.Path(folder) / "report").open("w+b") as output,
        (pathlib.Path(folder) / "errors").open("w+b") as errors,
    ):
        secret = pathlib.Path(folder) / "token"
        secret.write_text(token)
        command = [sys.executable, "-m", "mobillm", "finetune", "--json", "--model", str(args.model)]
        command += ["--data", str(args.data), "--limit", str(args.samples), "--threads", "1"]
        command += ["--server", address, "--token-file", str(secret), "--out", f"{folder}/out"]
        command += ["--stream-weights"] if stream else []
        start, seen = time.monotonic(), []
        with group.start(command, output, errors) as process:
            try:
                while process.poll() is None:
                    seen.append((round(time.monotonic() - start, 2), resident(process.pid)))
                    time.sleep(INTERVAL)
            finally:
                process.kill()  # interrupted; the group can only be removed without it
                process.wait()
        errors.seek(0)
        if process.returncode:
            print(errors.read().decode(errors="replace")[-SAID:], file=sys.stderr)
        output.seek(0)
        lines = output.read().splitlines()
        figures = {"status": process.returncode, "peak_bytes": group.peak, "memory": seen}
        figures["resident_bytes"] = max(size for _, size in seen)
        report = json.loads(lines[-1]) if process.returncode == 0 else None
        figures["seconds_per_sample"] = report and report["stream_seconds"] / report["samples"]
        return figures


def files_of(model: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of a model's weights; a .gguf is expanded first, outside of every limit."""
    source, _ = model_source(str(model), None, None)
    return sorted(local_directory(source, local_files_only=False).glob("*.safetensors"))


def forget(files: Sequence[pathlib.Path]) -> None:
    """Take files out of the page cache, so that whoever reads them next is charged for them."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def draw(figures: dict[str, Any], path: pathlib.Path) -> None:
    """Draw resident memory over time."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for name, label in (
        ("resident", "resident, no limit"),
        ("mapped", "resident, limited"),
        ("streamed", "streamed, limited"),
    ):
        seen = [(seconds, size / MIB) for seconds, size in figures[f"memory.{name}"] if size]
        axes.plot(*zip(*seen, strict=True), label=label)
    axes.axhline(figures["weights_bytes"] / MIB, color="grey", linestyle=":", label="weights")
    axes.axhline(figures["limit_bytes"] / MIB, color="black", linestyle="--", label="limit")
    axes.set(xlabel="seconds since the start", ylabel="resident memory, MiB", ylim=(0, None), xlim=(0, None))
    figure.legend(loc="outside right upper")
    axes.set_title(f"{figures['model']}, {figures['samples']} samples")
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the three and print the figures."""
    parser = argparse.ArgumentParser(prog="benchmarks.limit", description=__doc__)
    parser.add_argument(
        "--model", type=pathlib.Path, required=True, metavar="M", help="a .gguf or a directory"
    )
    parser.add_argument(
        "--data", type=pathlib.Path, required=True, metavar="F", help="as of mobillm finetune"
    )
    parser.add_argument("--samples", type=at_least(1), default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=json_file, metavar="F")
    parser.add_argument("--picture", type=json_file, metavar="P")
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    files = files_of(args.model)
    weights = sum(path.stat().st_size for path in files)
    if not weights:
        parser.error(f"{args.model} has no .safetensors, which alone can be streamed")
    limit = weights // 2
    figures: dict[str, Any] = {"model": args.model.name, "samples": args.samples}
    figures |= {"weights_bytes": weights, "limit_bytes": limit}
    with interruptible():
        for name in RUNS:
            forget(files)
            with console.status(f"{name} ..."):
                found = run(args, None if name == "resident" else limit, stream=name == "streamed")
            figures |= {f"{key}.{name}": value for key, value in found.items()}
            console.print(
                f"{name}: status {found['status']}, peak {found['peak_bytes'] / MIB:.0f} MiB "
                f"({found['resident_bytes'] / MIB:.0f} resident), {found['seconds_per_sample']} s a sample"
            )
            if found["status"] and name != "mapped":
                console.print("the streamed run and the one without a limit must get through")
                return 1
    seconds = {name: figures[f"seconds_per_sample.{name}"] for name in RUNS}
    figures["ratio"] = seconds["streamed"] / seconds["resident"]
    figures["mapped_ratio"] = seconds["mapped"] and seconds["mapped"] / seconds["resident"]
    if args.json is not None:
        write_json(args.json, figures)
    if args.picture is not None:
        draw(figures, args.picture)
    print(json.dumps({key: value for key, value in figures.items() if "memory." not in key}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
