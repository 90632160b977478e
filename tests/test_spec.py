"""Tests of mobillm.spec."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import msgpack
import pytest

from mobillm.errors import ConfigError
from mobillm.formats import Format
from mobillm.protocol import FrameBuffer, Open, decode_message
from mobillm.spec import CodecSpec, ModelSpec, OptimizerSpec, SessionSpec, SideSpec, TailSpec
from tests.helpers import make_spec, wire_bytes

DIGEST = "0123456789abcdef" * 4
OTHER = "f" * 64
Record = ModelSpec | SideSpec | OptimizerSpec | CodecSpec | SessionSpec | TailSpec


def causal() -> SessionSpec:
    """Return a spec that uses every field."""
    return SessionSpec(
        task="causal-lm",
        outputs=49152,
        model=ModelSpec(name="SmolLM2-135M", hidden_size=576, layers=30, taps=(0, 10, 30)),
        side=SideSpec(kind="parallel", width=64, heads=4, dropout=0.0, causal=True, pool="mean"),
        optimizer=OptimizerSpec(lr=1e-4, weight_decay=0.0, schedule="linear", warmup=0.5, clip=0.0, ema=0.0),
        codec=CodecSpec(format="nf4", block=128),
        epochs=3,
        batches=100,
        seed=2**63 - 1,
        head=DIGEST,
        trace=True,
        tokens="loss",
    )


def tail(**changes: Any) -> SessionSpec:
    """Return a spec of kind ``tail``: the upper two of four layers."""
    layers = TailSpec(
        architecture="llama",
        intermediate_size=24,
        heads=4,
        kv_heads=2,
        eps=1e-5,
        layers=(DIGEST, OTHER),
        ending=DIGEST[::-1],
    )
    model = ModelSpec(name="m", hidden_size=16, layers=4, taps=(2,))
    settings: dict[str, Any] = {"model": model, "side": SideSpec(kind="tail", rank=4), "tail": layers}
    return dataclasses.replace(make_spec(), **(settings | changes))


@pytest.mark.parametrize("spec", [make_spec(), causal(), tail()], ids=["defaults", "all", "tail"])
def test_round_trip(spec: SessionSpec) -> None:
    """A spec survives msgpack, and the map of an OPEN frame."""
    assert SessionSpec.from_map(msgpack.unpackb(msgpack.packb(spec.to_map()))) == spec
    (frame,) = FrameBuffer(8192).receive_data(wire_bytes(Open(stream=1, spec=spec.to_map())))
    message = decode_message(frame)
    assert isinstance(message, Open)
    assert SessionSpec.from_map(message.spec) == spec


def test_largest_spec_fits_into_a_frame() -> None:
    """1,000 taps and a long name stay below the 4 KiB of a metadata map."""
    model = ModelSpec(name="n" * 128, hidden_size=65536, layers=1024, taps=tuple(range(25, 1025)))
    spec = dataclasses.replace(causal(), model=model)
    assert Open(stream=1, spec=spec.to_map()).frame_size() < 4096
    model = ModelSpec(name="n" * 64, hidden_size=65536, layers=1024, taps=(976,))
    layers = dataclasses.replace(
        TAIL, intermediate_size=1 << 18, layers=tuple(f"{number:064}" for number in range(48))
    )
    spec = tail(model=model, tail=layers, batches=10**6, seed=2**63 - 1)
    assert Open(stream=1, spec=spec.to_map()).frame_size() < 4096


def test_blobs_of_a_session() -> None:
    """The head, or the layers above the tap and what follows them, each once."""
    assert make_spec().blobs == ()
    assert causal().blobs == (DIGEST,)
    assert tail().blobs == (DIGEST, OTHER, DIGEST[::-1])
    assert tail(tail=dataclasses.replace(TAIL, layers=(OTHER, OTHER), ending=OTHER)).blobs == (OTHER,)


def test_optional_fields_have_defaults() -> None:
    """Only task, outputs and model are required."""
    model = {"name": "m", "hidden_size": 8, "layers": 2, "taps": [1]}
    spec = SessionSpec.from_map(
        {"task": "regression", "outputs": 1, "model": model, "optimizer": {"schedule": "constant"}}
    )
    assert spec.side == SideSpec()
    assert spec.codec == CodecSpec(format="asym4", block=64)
    assert (spec.epochs, spec.batches, spec.seed, spec.head, spec.trace) == (1, None, 0, None, False)
    for key in ("task", "outputs", "model"):
        values = {**spec.to_map()}
        del values[key]
        with pytest.raises(
            ConfigError, match=rf"spec\.{key} is None; expected a value; the field is required"
        ):
            SessionSpec.from_map(values)


def test_unknown_keys_are_ignored_unless_critical() -> None:
    """A newer device may say more, as long as it is not critical."""
    values = make_spec().to_map()
    more: dict[object, object] = dict(values.items(), grease=[1]) | {5: 6}
    assert SessionSpec.from_map(more) == make_spec()
    with pytest.raises(ConfigError, match=r"spec is \"'!new'\"; expected fields this version knows"):
        SessionSpec.from_map({**values, "!new": 1})
    values["side"] = {**values["side"], "!new": 1}
    with pytest.raises(ConfigError, match=r"spec\.side is \"'!new'\""):
        SessionSpec.from_map(values)


@pytest.mark.parametrize("values", [None, 1, "x", [], ()])
def test_a_spec_is_a_map(values: object) -> None:
    """Anything else is refused."""
    with pytest.raises(ConfigError, match="expected a map"):
        SessionSpec.from_map(values)
    with pytest.raises(ConfigError, match=r"spec\.model is .*; expected a map"):
        SessionSpec.from_map({**make_spec().to_map(), "model": values})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("task", 1),
        ("outputs", True),
        ("outputs", 2.0),
        ("batches", "3"),
        ("seed", None),
        ("head", b"x"),
        ("trace", 1),
        ("tokens", 1),
        ("model.name", b"x"),
        ("model.taps", 1),
        ("model.taps", [1, "2"]),
        ("model.taps", [True]),
        ("tail", "x"),
        ("side.causal", 0),
        ("side.dropout", "0.1"),
        ("optimizer.lr", True),
        ("optimizer.lr", None),
        ("codec.block", 64.0),
    ],
)
def test_wrong_types_are_refused(path: str, value: object) -> None:
    """The error names the field and shows what was seen."""
    values: dict[str, Any] = make_spec().to_map()
    *parents, last = path.split(".")
    target = values
    for parent in parents:
        target = target[parent]
    target[last] = value
    with pytest.raises(ConfigError) as caught:
        SessionSpec.from_map(values)
    assert caught.value.field == f"spec.{path}"


def test_integers_are_taken_for_numbers() -> None:
    """JSON and msgpack may write 1.0 as 1."""
    assert OptimizerSpec.from_map({"lr": 1}) == OptimizerSpec(lr=1.0)


def test_long_values_are_cut_in_errors() -> None:
    """A peer cannot fill the log."""
    with pytest.raises(ConfigError) as caught:
        SessionSpec.from_map("x" * 10_000)
    assert len(str(caught.value)) < 120


MODEL = ModelSpec(name="m", hidden_size=8, layers=4, taps=(1, 4))
CLASSIFICATION = make_spec()
PER_TOKEN = dataclasses.replace(CLASSIFICATION, side=SideSpec(kind="parallel"))
LAST = dataclasses.replace(PER_TOKEN, tokens="last")
TAIL = cast(TailSpec, tail().tail)
OPT = dataclasses.replace(TAIL, architecture="opt", kv_heads=4)
CONSTANT = OptimizerSpec(schedule="constant")
CASES: list[tuple[Record, str, list[Any], list[Any]]] = [
    (MODEL, "name", ["", "x" * 128], ["x" * 129]),
    (MODEL, "hidden_size", [1, 65536], [0, 65537]),
    (MODEL, "layers", [4, 1024], [0, 3, 1025]),
    (MODEL, "taps", [(0,), (4,), (0, 1, 2, 3, 4)], [(), (5,), (-1,), (1, 1), (2, 1)]),
    (SideSpec(), "kind", ["ladder", "parallel", "head", "tail"], ["lora", ""]),
    (SideSpec(heads=1), "width", [1, 65536], [0, 65537]),
    (SideSpec(width=96), "heads", [1, 2, 96], [0, 5, 97, 192]),
    (SideSpec(), "dropout", [0.0, 0.999], [-0.1, 1.0, math.nan]),
    (SideSpec(), "causal", [True, False], []),
    (SideSpec(), "rank", [1, 1024], [0, 1025]),
    (SideSpec(), "pool", ["last", "first", "mean"], ["max"]),
    (OptimizerSpec(), "lr", [1e-9, 10.0], [0.0, -1.0, 10.1, math.nan, math.inf]),
    (OptimizerSpec(), "weight_decay", [0.0, 10.0], [-0.1, 10.1, math.nan]),
    (OptimizerSpec(), "schedule", ["onecycle", "linear", "constant"], ["cosine"]),
    (OptimizerSpec(), "warmup", [0.0, 0.5], [-0.1, 0.6, math.nan]),
    (OptimizerSpec(), "clip", [0.0, 1e9], [-1.0, math.inf, math.nan]),
    (OptimizerSpec(), "ema", [0.0, 0.999], [-0.1, 1.0, math.nan]),
    (CodecSpec(), "format", ["f32", "bf16", "asym2", "nf4"], ["i32", "asym9", ""]),
    (CodecSpec(), "block", [32, 64, 128], [0, 16, 256]),
    (CodecSpec(), "equalize", [True, False], []),
    (CodecSpec(), "compression", ["none", "zstd"], ["", "ZSTD", "gzip"]),
    (CodecSpec(), "bits", [(), (4,), (2, 4), (2, 3, 4, 5, 6, 7, 8)], [(1, 4), (4, 9), (4, 2), (4, 4), (3,)]),
    (CodecSpec(format="nf4"), "bits", [()], [(4,)]),
    (CLASSIFICATION, "task", ["classification"], ["regression", "causal-lm", "ranking"]),
    (CLASSIFICATION, "outputs", [2, 1 << 22], [0, 1, (1 << 22) + 1]),
    (CLASSIFICATION, "epochs", [1, 10_000], [0, 10_001]),
    (CLASSIFICATION, "early_stopping", [0, 10_000], [-1, 10_001]),
    (CLASSIFICATION, "batches", [None, 1, 10**9], [0, -1]),
    (CLASSIFICATION, "seed", [0, 2**63 - 1], [-1, 2**63]),
    (CLASSIFICATION, "head", [None], [DIGEST]),
    (CLASSIFICATION, "trace", [True, False], []),
    (CLASSIFICATION, "optimizer", [CONSTANT], [OptimizerSpec(), OptimizerSpec(schedule="linear")]),
    (PER_TOKEN, "tokens", ["all", "last"], ["loss", "first", ""]),
    (CLASSIFICATION, "tokens", ["all"], ["last"]),  # a ladder attends to the tokens left out
    (tail(), "tokens", ["all"], ["last"]),
    (LAST, "side", [SideSpec(kind="head")], [SideSpec(kind="head", pool="mean"), SideSpec()]),
    (causal(), "tokens", ["all", "loss"], ["last"]),
    (causal(), "head", [DIGEST], [None, DIGEST[1:], DIGEST.upper(), "g" * 64]),
    (dataclasses.replace(causal(), tokens="all"), "side", [SideSpec()],
     [SideSpec(causal=False), SideSpec(kind="head")]),
    (causal(), "outputs", [1, 1 << 22], [0]),
    (dataclasses.replace(CLASSIFICATION, task="regression", outputs=1), "outputs", [1], [0, 2]),
    (TAIL, "architecture", ["llama", "qwen2", "opt"], ["gpt2", "Llama", "x" * 100]),
    (TAIL, "intermediate_size", [1, 1 << 18], [0, (1 << 18) + 1]),
    (TAIL, "heads", [2, 4, 1024], [0, 3, 1026]),
    (TAIL, "kv_heads", [1, 2, 4], [0, 3, 8]),
    (TAIL, "eps", [1e-12, 0.1], [0.0, 1.0, math.nan]),
    (TAIL, "layers", [(DIGEST,), (DIGEST,) * 48], [(), (DIGEST,) * 49, ("x",), (DIGEST, "")]),
    (TAIL, "ending", [DIGEST], ["", DIGEST.upper(), DIGEST[1:]]),
    (CLASSIFICATION, "tail", [None], [TAIL]),
    (tail(), "tail", [TAIL, OPT],
     [None, dataclasses.replace(TAIL, layers=(DIGEST,)), dataclasses.replace(TAIL, heads=16),
      dataclasses.replace(OPT, kv_heads=2)]),
    (tail(), "side", [SideSpec(kind="tail")],
     [SideSpec(), SideSpec(kind="tail", pool="mean"), SideSpec(kind="tail", causal=False)]),
    (tail(), "task", ["classification"], ["causal-lm"]),
]  # fmt: skip


@pytest.mark.parametrize(("record", "field", "good", "bad"), CASES)
def test_bounds_of_every_field(record: Record, field: str, good: list[Any], bad: list[Any]) -> None:
    """Each field takes its range, the ends included; the error says what would have been accepted."""
    for value in good:
        changes: dict[str, Any] = {field: value}
        assert getattr(dataclasses.replace(record, **changes), field) == value
    for value in bad:
        with pytest.raises(ConfigError, match="expected"):
            dataclasses.replace(record, **{field: value})


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        (MODEL, {"name": b"x"}),
        (MODEL, {"hidden_size": 8.0}),
        (MODEL, {"taps": [1, 2]}),
        (MODEL, {"taps": (True, 2)}),
        (SideSpec(), {"heads": True}),
        (SideSpec(), {"dropout": "0.1"}),
        (OptimizerSpec(), {"lr": None}),
        (OptimizerSpec(), {"ema": False}),
        (CodecSpec(), {"format": Format.NF4}),
        (CodecSpec(), {"block": 64.0}),
        (CodecSpec(), {"equalize": "yes"}),
        (CodecSpec(), {"equalize": 1}),
        (CodecSpec(), {"bits": (4.0,)}),
        (CodecSpec(), {"bits": "48"}),
        (CodecSpec(), {"bits": 4}),
        (CLASSIFICATION, {"model": {}}),
        (CLASSIFICATION, {"epochs": 2.0}),
        (CLASSIFICATION, {"batches": "3"}),
        (CLASSIFICATION, {"head": b""}),
    ],
)
def test_constructors_check_types(record: Record, changes: dict[str, Any]) -> None:
    """What would only fail later, or at the other end, is refused by name at once."""
    ((field, value),) = changes.items()
    with pytest.raises(ConfigError, match="a value of type") as caught:
        dataclasses.replace(record, **changes)
    assert caught.value.field.split(".")[-1] == field
    assert caught.value.value == repr(value)


def test_every_field_has_a_case() -> None:
    """No field is added without its bounds."""
    tested = {(type(record), field) for record, field, _, _ in CASES}
    for cls in (ModelSpec, SideSpec, OptimizerSpec, CodecSpec, SessionSpec, TailSpec):
        untested = {f.name for f in dataclasses.fields(cls) if (cls, f.name) not in tested}
        assert untested <= {"model", "codec"}


def test_number_of_taps() -> None:
    """Tensor numbers from 1000 on are not taps."""
    ModelSpec(name="m", hidden_size=8, layers=1024, taps=tuple(range(1000)))
    with pytest.raises(ConfigError, match="1 to 1000 layer numbers"):
        ModelSpec(name="m", hidden_size=8, layers=1024, taps=tuple(range(1001)))


def test_formats_of_a_codec() -> None:
    """[B-40] One format, or one for each width of the list."""
    assert CodecSpec(format="nf4").formats == (Format.NF4,)
    assert CodecSpec(bits=(2, 4, 8)).formats == (Format.ASYM2, Format.ASYM4, Format.ASYM8)


@pytest.mark.parametrize(
    ("steps", "stopped"), [(9, (3, 1)), (15, (5, 3)), (120, None), (10, None), (6, None), (0, None)]
)
def test_stopped_early(steps: int, stopped: tuple[int, int] | None) -> None:
    """Whole epochs, fewer than all: training ended two epochs after the one whose weights were kept."""
    spec = dataclasses.replace(make_spec(), epochs=40, batches=3, early_stopping=2)
    assert spec.stopped(steps) == stopped
    assert dataclasses.replace(spec, early_stopping=0).stopped(steps) is None
