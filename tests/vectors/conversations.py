"""Vectors of handshakes and whole connections: frames in both directions and what they mean."""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any

import msgpack

from tests.vectors.wire import Case, as_json, crc32c, frame, message

__all__ = ["credit", "handshakes", "sessions"]

TENANT, TOKEN = "acme", "open sesame"
DEVICE_NONCE, SERVER_NONCE = bytes(range(16)), bytes(range(16, 32))
LIMITS = {"frame": 2**20, "batch": 2**26, "blob": 2**31, "streams": 64}
SESSION = bytes(range(0xA0, 0xB0))
SPEC: Case = {
    "task": "classification",
    "outputs": 2,
    "model": {"name": "tiny", "hidden_size": 4, "layers": 2, "taps": [2]},
    "optimizer": {"schedule": "constant"},
}
WHOLE = {"received": 0, "durable": 0, "applied": 0, "missing": [], "finished": False}


def key_of(token: str) -> bytes:
    """Return the key of a token."""
    return hashlib.sha256(b"mobillm v1 token\0" + token.encode()).digest()


def transcript(*frames: bytes) -> bytes:
    """Return the hash that the proofs cover, of HELLO and CHALLENGE as they were on the wire."""
    parts = [bytes([data[3]]) + struct.pack(">I", len(data) - 32) + data[32:] for data in frames]
    return hashlib.sha256(b"".join(parts)).digest()


class Talk:
    """A connection that is written down step by step."""

    def __init__(
        self, name: str, words: str, *rules: str, limits: Case | None = None, token: str = TOKEN
    ) -> None:
        self.limits = limits or LIMITS
        self.steps: list[Case] = []
        self.case: Case = {
            "name": name,
            "rules": list(rules),
            "words": words,
            "tenant": TENANT,
            "token": token,
            "key": key_of(token).hex(),
            "device_nonce": DEVICE_NONCE.hex(),
            "server_nonce": SERVER_NONCE.hex(),
            "device_caps": [],
            "server_caps": [],
            "limits": self.limits,
            "roles": ["device", "server"],
            "steps": self.steps,
            "end": None,
        }

    def say(
        self,
        sender: str,
        kind: str,
        fields: Case | None = None,
        payload: bytes | None = None,
        *,
        stream: int = 1,
        seq: int = 0,
        **notes: Any,
    ) -> Talk:
        """Write a message down; the one note is ``ignored``: it is read and has no effect."""
        data = message(kind, fields, payload, stream=stream, seq=seq)
        said = {"type": kind, "stream": stream, "seq": seq, "fields": as_json(fields or {})}
        said["payload"] = None if payload is None else payload.hex()
        self.steps.append({"from": sender, "message": said, "bytes": data.hex(), **notes})
        return self

    def raw(self, sender: str, data: bytes, words: str) -> Talk:
        """Write bytes down that are no message; whoever reads them sees nothing, or refuses."""
        self.steps.append({"from": sender, "message": None, "words": words, "bytes": data.hex()})
        self.case["roles"] = ["server" if sender == "device" else "device"]
        return self

    def refused(self, by: str, code: int, kind: str = "ERROR") -> Case:
        """End with a refusal, which whoever is on the other side cannot be tested for."""
        self.steps.append({"from": by, "refusal": kind, "code": code})
        self.case["roles"] = [by]
        return self.ended(code)

    def ended(self, code: int | None) -> Case:
        """Return the case; ``code`` is that of the end, None while the connection is open."""
        self.case["end"] = code
        return self.case

    def shake(
        self,
        *,
        hello: Case | None = None,
        caps: list[str] | None = None,
        device_token: str | None = None,
        server_token: str | None = None,
    ) -> Talk:
        """Write the four frames of the handshake down, up to the first that is refused."""
        first = {"min_version": 1, "max_version": 1, "tenant": TENANT, "nonce": DEVICE_NONCE}
        first |= {"caps": self.case["device_caps"], "agent": ""} | (hello or {})
        second = {"version": 1, "nonce": SERVER_NONCE, "caps": caps or []}
        digest = transcript(message("HELLO", first), message("CHALLENGE", second))
        device_key, server_key = (
            key_of(token or self.case["token"]) for token in (device_token, server_token)
        )
        proof = hmac.digest(device_key, b"mobillm v1 device" + digest, "sha256")
        answer = hmac.digest(server_key, b"mobillm v1 server" + digest, "sha256")
        self.say("device", "HELLO", first, stream=0).say("server", "CHALLENGE", second, stream=0)
        self.say("device", "AUTH", {"mac": proof}, stream=0)
        if device_token is None:
            self.say("server", "WELCOME", {"mac": answer, **self.limits}, stream=0)
        self.case["transcript_hash"] = digest.hex()
        return self

    def attach(self, offset: int = 100_000, last: int = 16, **opened: object) -> Talk:
        """Write the handshake, OPEN, OPENED and a first CREDIT down."""
        self.shake().say("device", "OPEN", {"spec": SPEC})
        self.say("server", "OPENED", {"session": SESSION, "epoch": 1, **WHOLE, **opened})
        return self.say("server", "CREDIT", {"offset": offset, "last": last})

    def batch(
        self, seq: int = 1, *, heldout: bool = False, commit: Case | None = None, part: int = 12
    ) -> Talk:
        """Write a whole batch down: two samples of one and two tokens, a tap in asym4, in two parts."""
        tap = bytes.fromhex("10320042004040000842004000001032003c0000")[:18]
        tensors = [(0, 20, 32, [3, 4], tap), (1001, 3, 0, [2], struct.pack("<2i", 1, 2))]
        tensors.append((1000, 3, 0, [2], struct.pack("<2i", seq % 2, 1)))
        checksum = 0
        for tensor, code, block, shape, content in tensors:
            for offset in range(0, len(content), part):
                payload = content[offset : offset + part]
                checksum = crc32c(payload, checksum)
                header: Case = {"tensor": tensor, "offset": offset}
                if not offset:
                    header |= {"format": code, "block": block, "shape": shape}
                self.say("device", "DATA", header, payload, seq=seq)
        size = sum(len(content) for *_, content in tensors)
        figures = {"tensors": 3, "size": size, "checksum": checksum, "samples": 2, "heldout": heldout}
        return self.say("device", "COMMIT", figures | (commit or {}), seq=seq)


def handshakes() -> list[Case]:
    """Return handshakes that succeed and that are refused, with their proofs."""
    plain = Talk("plain", "the smallest handshake", "A-1", "A-2", "A-3", "A-10", "H-1").shake()
    named = Talk("unicode-token", "a token and text beyond ASCII", "A-1", token="öl \U0001f600").shake()
    caps = Talk("capabilities", "the server takes what both have", "H-5", "V-13")
    caps.case |= {"device_caps": ["b", "c", "a"], "server_caps": ["a", "x", "b"]}
    caps.shake(caps=["a", "b"])
    later = Talk(
        "later-device", "a device that also speaks later versions, with an unknown key", "H-14", "V-2"
    )
    later.case["roles"] = ["server"]
    later.shake(hello={"max_version": 9, "grease": [1, {"x": None}]})
    cases = [talk.ended(None) for talk in (plain, named, caps, later)]
    wrong = Talk("wrong-token", "the device holds another token", "A-5").shake(device_token="guess")
    cases.append(wrong.refused("server", 8, "REJECT"))
    forged = Talk("forged-server", "the server does not hold the token", "A-6").shake(server_token="guess")
    cases.append(forged.refused("device", 8))
    cases.append(_no_version())
    for name, rule, fields in (
        ("unasked-capability", "H-16", {"caps": ["b"]}),
        ("unasked-version", "H-15", {"version": 2}),
    ):
        talk = Talk(name, "the server chooses what was not offered", rule)
        talk.shake(hello=None)
        del talk.steps[1:]
        answer = {"version": 1, "nonce": SERVER_NONCE, "caps": [], **fields}
        cases.append(talk.say("server", "CHALLENGE", answer, stream=0).refused("device", 6))
    changed = Talk("changed-hello", "a middle box has taken a capability out of HELLO", "A-7")
    changed.case |= {"device_caps": ["a"], "server_caps": ["a"]}
    changed.shake(caps=["a"])
    honest = changed.steps[2]
    del changed.steps[:]
    changed.case["device_caps"] = []
    changed.shake()
    changed.steps[2:] = [honest]
    cases.append(changed.refused("server", 8, "REJECT"))
    cases.append(_unknown_tenant())
    early = Talk("data-first", "a frame of a session before the handshake", "H-9")
    cases.append(early.say("device", "PULL").refused("server", 1, "REJECT"))
    large = Talk("large-hello", "a body of more than 4096 bytes before AUTH", "H-2")
    large.raw("device", frame(0x01, b"", body_size=4097)[:32], "the header of a HELLO")
    cases.append(large.refused("server", 2, "REJECT"))
    return cases


def _unknown_tenant() -> Case:
    talk = Talk(
        "unknown-tenant", "a tenant nobody knows, with a proof made with a key of zeros", "A-11"
    ).shake()
    hello = {
        "min_version": 1,
        "max_version": 1,
        "tenant": "nobody",
        "nonce": DEVICE_NONCE,
        "caps": [],
        "agent": "",
    }
    challenge = {"version": 1, "nonce": SERVER_NONCE, "caps": []}
    digest = transcript(message("HELLO", hello), message("CHALLENGE", challenge))
    proof = hmac.digest(bytes(32), b"mobillm v1 device" + digest, "sha256")
    del talk.steps[:]
    talk.say("device", "HELLO", hello, stream=0).say("server", "CHALLENGE", challenge, stream=0)
    talk.case["transcript_hash"] = digest.hex()
    return talk.say("device", "AUTH", {"mac": proof}, stream=0).refused("server", 8, "REJECT")


def _no_version() -> Case:
    talk = Talk("no-common-version", "a device that speaks later versions only", "H-13").shake()
    del talk.steps[:]
    hello = {"min_version": 2, "max_version": 3, "tenant": TENANT, "nonce": DEVICE_NONCE}
    return talk.say("device", "HELLO", hello, stream=0).refused("server", 6, "REJECT")


def sessions() -> list[Case]:
    """Return whole connections, and connections that end with a refusal."""
    return [_whole(), _resumed(), _blob(), _drained(), _failed(), _mixed(), *_refusals()]


def _goodbye(talk: Talk) -> Case:
    return talk.say("device", "BYE", stream=0).say("server", "BYE", stream=0).ended(0)


def _whole() -> Case:
    talk = Talk("whole", "one session from OPEN to the weights", "O-1", "B-2", "K-1", "K-18").attach()
    talk.batch(1).say("server", "ACK", {"received": 1, "durable": 0, "applied": 0})
    talk.say("device", "PING", {"data": b"12345678"}, stream=0)
    talk.say("server", "PONG", {"data": b"12345678", "time": 5_000_000}, stream=0)
    talk.batch(2, heldout=True, part=100).batch(3)
    talk.say("server", "ACK", {"received": 3, "durable": 3, "applied": 2})
    talk.say("server", "CREDIT", {"offset": 200_000, "last": 19})
    metrics = {
        "step": 1,
        "epoch": 1,
        "loss": 0.5,
        "lr": 0.001,
        "queue": 1,
        "busy": 0.25,
        "spans": [[1, 1, 10, 20]],
    }
    talk.say("server", "METRICS", metrics).say("device", "FINISH", seq=3)
    talk.say("server", "ACK", {"received": 3, "durable": 3, "applied": 3})
    talk.say("server", "FINISHED", {"steps": 2, "loss": 0.25}).say("device", "EVAL")
    talk.say("server", "EVALUATED", {"steps": 2, "samples": 2, "values": {"loss": 0.5, "accuracy": 1.0}})
    talk.say("device", "PULL")
    weights = bytes(range(40))
    for offset in (0, 16, 32):
        part = weights[offset : offset + 16]
        head = {"digest": hashlib.sha256(weights).digest(), "total": 40, "offset": offset, "steps": 2}
        talk.say("server", "WEIGHTS", head, part)
    return _goodbye(talk.say("device", "DETACH").say("server", "DETACH"))


def _resumed() -> Case:
    talk = Talk("resumed", "attach, send a batch again, leave one out", "O-12").shake()
    talk.say("device", "OPEN", {"session": SESSION})
    opened = {"session": SESSION, "epoch": 2, **WHOLE, "received": 2, "durable": 2, "applied": 1}
    talk.say("server", "OPENED", opened).say("server", "CREDIT", {"offset": 50_000, "last": 17})
    talk.batch(2).say("server", "ACK", {"received": 2, "durable": 2, "applied": 2})
    talk.batch(4).say("server", "GAP", {"expected": 3}, seq=4)
    talk.say("server", "ACK", {"received": 2, "durable": 2, "applied": 2})
    talk.batch(3).say("server", "ACK", {"received": 3, "durable": 3, "applied": 3})
    return _goodbye(talk)


def _blob() -> Case:
    content = b"a blob of 18 bytes"
    digest = hashlib.sha256(content).digest()
    talk = Talk(
        "blob", "a blob that the server lacks, twice, before the first batch", "W-1", "W-4", "W-8", "C-9"
    )
    talk.attach(last=0, missing=[digest])
    for _ in range(2):
        for offset in (0, 7, 14):
            head = {"digest": digest, "total": len(content), "offset": offset}
            talk.say("device", "BLOB", head, content[offset : offset + 7])
        talk.say("server", "STORED", {"digest": digest})
    return _goodbye(talk.say("server", "CREDIT", {"offset": 0, "last": 1}).batch(1))


def _drained() -> Case:
    talk = Talk(
        "drained", "GOAWAY in the middle of a batch, then the server's BYE", "K-3", "K-6", "K-13"
    ).attach()
    head = {"tensor": 0, "offset": 0, "format": 3, "block": 0, "shape": [2]}
    talk.say("device", "DATA", head, bytes(4), seq=1)
    talk.say("server", "GOAWAY", {"code": 28, "text": "soon", "grace": 60.0}, stream=0)
    talk.say("device", "ABORT", {"text": "the server stops"}, seq=1).batch(1)
    talk.say("server", "GOAWAY", {"code": 0, "text": "now", "grace": 0.0}, stream=0)
    return talk.say("server", "BYE", stream=0).ended(0)


def _failed() -> Case:
    talk = Talk(
        "failed", "a stream fails, what crosses is ignored, its number is used again", "S-5", "S-11", "O-11"
    )
    talk.attach().say("server", "ERROR", {"code": 15, "text": "batch 1 does not fit"}, seq=1)
    talk.say("server", "ERROR", {"code": 21, "text": "attached elsewhere"})
    head = {"tensor": 5, "offset": 0, "format": 3, "block": 0, "shape": [1]}
    talk.say("device", "DATA", head, bytes(4), seq=7, ignored=True).say("device", "PULL", ignored=True)
    talk.say("device", "DETACH").say("server", "DETACH").say("device", "OPEN", {"session": bytes(16)})
    talk.say("server", "ERROR", {"code": 20, "text": "no such session"}).say("device", "OPEN", {"spec": SPEC})
    talk.say("server", "OPENED", {"session": SESSION, "epoch": 1, **WHOLE, "finished": True})
    return _goodbye(talk.say("device", "PULL"))


def _mixed() -> Case:
    talk = Talk(
        "two-streams", "two sessions, their parts in turn, unknown frames between", "B-16", "V-3", "V-12"
    )
    talk.attach().say("device", "OPEN", {"session": SESSION[::-1]}, stream=64)
    talk.say("server", "OPENED", {"session": SESSION[::-1], "epoch": 7, **WHOLE}, stream=64)
    talk.say("server", "CREDIT", {"offset": 5000, "last": 1}, stream=64)
    head = {"tensor": 0, "offset": 0, "format": 3, "block": 0, "shape": [2]}
    rest = {"tensor": 0, "offset": 4}
    figures = {"tensors": 1, "size": 8, "checksum": crc32c(b"abcdefgh"), "samples": 1, "heldout": False}
    for fields, payload in ((head, b"abcd"), (rest, b"efgh")):
        for stream in (1, 64):
            talk.say("device", "DATA", fields, payload, stream=stream, seq=1)
        talk.raw("device", frame(0x9F, b"grease", stream=9, seq=3, flags=0x8000), "an unknown optional frame")
    for stream in (64, 1):
        talk.say("device", "COMMIT", figures, stream=stream, seq=1)
    talk.raw("device", frame(0x30, msgpack.packb({"data": b"12345678", "x": 1})), "PING with an unknown key")
    talk.steps[-1]["message"] = {
        "type": "PING", "stream": 0, "seq": 0, "fields": as_json({"data": b"12345678"}), "payload": None,
    }  # fmt: skip
    return talk.ended(None)


def _refusals() -> list[Case]:
    """Return connections whose last message breaks a rule; the server refuses it."""
    head: Case = {"tensor": 0, "offset": 0, "format": 3, "block": 0, "shape": [2]}
    figures: Case = {"tensors": 1, "size": 8, "checksum": crc32c(bytes(8)), "samples": 1, "heldout": False}
    good: list[Any] = ["DATA", head, bytes(8), 1]
    half: list[Any] = ["DATA", head, bytes(4), 1]
    digest = bytes(32)
    blob = {"digest": digest, "total": 8, "offset": 0}
    cases: list[tuple[str, list[str], int, list[list[Any]]]] = [
        ("no-credit", ["C-10"], 3, [["DATA", {**head, "shape": [150]}, bytes(600), 1]]),
        ("beyond-last", ["C-10"], 3, [["DATA", head, bytes(8), 17]]),
        ("commit-not-open", ["B-26"], 1, [["COMMIT", figures, None, 1]]),
        ("commit-twice", ["B-26"], 1, [good, ["COMMIT", figures, None, 1], ["COMMIT", figures, None, 1]]),
        ("commit-tensors", ["B-9"], 15, [good, ["COMMIT", {**figures, "tensors": 2}, None, 1]]),
        ("commit-size", ["B-9"], 15, [good, ["COMMIT", {**figures, "size": 9}, None, 1]]),
        ("commit-checksum", ["B-9"], 15, [good, ["COMMIT", {**figures, "checksum": 1}, None, 1]]),
        ("commit-early", ["B-25"], 15,
         [half, ["COMMIT", {**figures, "checksum": crc32c(bytes(4))}, None, 1]]),
        ("other-batch", ["B-16"], 1, [half, ["DATA", {**head, "tensor": 1}, bytes(8), 2]]),
        ("part-gap", ["B-18"], 1, [half, ["DATA", {"tensor": 0, "offset": 5}, bytes(3), 1]]),
        ("part-overlap", ["B-18"], 1, [half, ["DATA", {"tensor": 0, "offset": 3}, bytes(4), 1]]),
        ("part-of-other", ["B-18"], 1, [half, ["DATA", {"tensor": 1, "offset": 4}, bytes(4), 1]]),
        ("part-first", ["B-18"], 1, [["DATA", {"tensor": 0, "offset": 4}, bytes(4), 1]]),
        ("tensor-short", ["B-19"], 15, [half, ["DATA", {**head, "tensor": 1}, bytes(8), 1]]),
        ("tensor-long", ["B-20"], 15, [["DATA", head, bytes(9), 1]]),
        ("tensor-outgrown", ["B-20"], 15, [half, ["DATA", {"tensor": 0, "offset": 4}, bytes(5), 1]]),
        ("tensor-twice", ["B-6"], 1, [good, good]),
        ("batch-limit", ["B-7", "B-24"], 13, [["DATA", {**head, "shape": [2**12 + 1]}, bytes(4), 1]]),
        ("batch-limit-in-all", ["B-7", "B-24"], 13,
         [good, ["DATA", {**head, "tensor": 1, "shape": [2**12 - 1]}, bytes(4), 1]]),
        ("abort-of-another", ["B-27"], 1,
         [half, ["ABORT", {"text": ""}, None, 2], ["DATA", {**head, "tensor": 1}, bytes(8), 3]]),
        ("after-abort", ["B-10"], 1,
         [half, ["ABORT", {"text": ""}, None, 1], ["DATA", {"tensor": 0, "offset": 4}, bytes(4), 1]]),
        ("finish-open", ["O-23"], 1, [half, ["FINISH", {}, None, 1]]),
        ("data-after-finish", ["S-1"], 1, [["FINISH", {}, None, 0], good]),
        ("open-twice", ["O-14"], 1, [["OPEN", {"session": SESSION}, None, 0]]),
        ("ack-by-device", ["S-1"], 1, [["ACK", {"received": 0, "durable": 0, "applied": 0}, None, 0]]),
        ("error-by-device", ["S-4"], 1, [["ERROR", {"code": 28, "text": ""}, None, 1]]),
        ("blob-gap", ["W-1"], 1, [["BLOB", blob, bytes(4), 0], ["BLOB", {**blob, "offset": 5}, bytes(3), 0]]),
        ("blob-other", ["W-3"], 1,
         [["BLOB", blob, bytes(4), 0], ["BLOB", {**blob, "digest": b"x" * 32}, bytes(4), 0]]),
        ("blob-limit", ["W-2"], 13, [["BLOB", {**blob, "total": 2**14 + 1}, bytes(4), 0]]),
    ]  # fmt: skip
    small = {**LIMITS, "frame": 65536, "batch": 2**14, "blob": 2**14, "streams": 2}
    found = []
    for name, rules, code, messages in cases:
        talk = Talk(f"refused-{name}", "the server refuses the last message", *rules, limits=small).attach(
            600
        )
        for kind, fields, payload, seq in messages:
            talk.say("device", kind, fields, payload, seq=seq)
        found.append(talk.refused("server", code))
    on_zero: list[tuple[str, list[str], int, list[tuple[str, Case, int]]]] = [
        ("hello-again", ["H-1"], 1, [("HELLO", {"min_version": 1, "max_version": 1, "tenant": TENANT,
                                                "nonce": DEVICE_NONCE, "caps": [], "agent": ""}, 0)]),
        ("pull-on-0", ["S-2"], 1, [("PULL", {}, 0)]),
        ("ping-on-1", ["S-2"], 1, [("PING", {"data": bytes(8)}, 1)]),
        ("goaway-by-device", ["S-1"], 1, [("GOAWAY", {"code": 0, "text": "", "grace": 0.0}, 0)]),
        ("after-bye", ["K-5"], 1, [("BYE", {}, 0), ("PULL", {}, 1)]),
        ("stream-limit", ["O-13"], 13, [("OPEN", {"session": SESSION}, 3)]),
    ]  # fmt: skip
    for name, rules, code, plain in on_zero:
        talk = Talk(f"refused-{name}", "the server refuses the last message", *rules, limits=small).attach()
        for kind, fields, stream in plain:
            talk.say("device", kind, fields, stream=stream)
        found.append(talk.refused("server", code))
    return [*found, _two_moments(small), _late_without_credit(small), _no_credit_again(small)]


def _two_moments(limits: Case) -> Case:
    talk = Talk(
        "refused-weights-steps", "parts of the weights of two moments", "W-11", limits=limits
    ).attach()
    head = {"digest": bytes(32), "total": 8, "offset": 0, "steps": 1}
    talk.say("device", "PULL").say("server", "WEIGHTS", head, bytes(4))
    talk.say("server", "WEIGHTS", {**head, "offset": 4, "steps": 2}, bytes(4))
    return talk.refused("device", 1)


def _late_without_credit(limits: Case) -> Case:
    talk = Talk(
        "refused-late-without-credit", "credit counts on a stream that has failed", "S-10", limits=limits
    )
    talk.attach(300).say("server", "ERROR", {"code": 28, "text": "broken"})
    head = {"tensor": 0, "offset": 0, "format": 3, "block": 0, "shape": [50]}
    talk.say("device", "DATA", head, bytes(200), seq=1, ignored=True).say(
        "device", "DATA", head, bytes(200), seq=2
    )
    return talk.refused("server", 3)


def _no_credit_again(limits: Case) -> Case:
    talk = Talk(
        "refused-no-credit-again", "credit is not inherited from a number's last use", "O-11", limits=limits
    )
    talk.attach().say("device", "DETACH").say("server", "DETACH").say("device", "OPEN", {"session": SESSION})
    talk.say("server", "OPENED", {"session": SESSION, "epoch": 2, **WHOLE})
    head = {"tensor": 0, "offset": 0, "format": 3, "block": 0, "shape": [1]}
    return talk.say("device", "DATA", head, bytes(4), seq=1).refused("server", 3)


def credit() -> list[Case]:
    """Return sequences of grants and sends, with what is allowed and what is left."""
    sequences: list[tuple[str, list[str], list[tuple[str, int, int]]]] = [
        ("nothing at first", ["C-7"], [("send", 1, 0), ("send", 33, 1)]),
        ("both bounds are inclusive", ["C-3"],
         [("grant", 100, 2), ("send", 101, 1), ("send", 60, 3), ("send", 60, 2), ("send", 41, 1),
          ("send", 40, 2), ("send", 1, 0)]),
        ("lower figures are ignored one by one", ["C-8"],
         [("grant", 100, 2), ("grant", 50, 5), ("send", 80, 5), ("grant", 90, 1), ("grant", 120, 4),
          ("send", 40, 5)]),
        ("a blob counts as batch 0", ["C-9"],
         [("grant", 100, 0), ("send", 50, 0), ("send", 50, 1), ("send", 50, 0)]),
        ("a repeated grant does no harm", ["C-2"],
         [*[("grant", 100, 1)] * 3, ("send", 100, 1), ("grant", 100, 1), ("send", 1, 1)]),
        ("a grant at its largest", ["C-2"], [("grant", 2**48, 2**63 - 1), ("send", 2**32 + 31, 2**63 - 1)]),
        ("a refused frame charges nothing", ["C-11"], [("grant", 10, 1), ("send", 11, 1), ("send", 10, 1)]),
    ]  # fmt: skip
    cases = []
    for number, (words, rules, events) in enumerate(sequences, 1):
        granted = used = last = 0
        steps = []
        for kind, size, seq in events:
            if kind == "grant":
                granted, last = max(granted, size), max(last, seq)
                steps.append({"grant": {"offset": size, "last": seq}, "available": granted - used})
            else:
                allowed = used + size <= granted and seq <= last
                used += size if allowed else 0
                steps.append({"send": size, "seq": seq, "allowed": allowed, "available": granted - used})
        cases.append({"name": f"credit-{number}", "rules": rules, "words": words, "steps": steps})
    return cases
