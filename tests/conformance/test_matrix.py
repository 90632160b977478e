"""A sample of the suite on the other combinations: both loops on both sides, plain and TLS."""

from __future__ import annotations

import pathlib
import random

import pytest
import trustme

from mobillm.conformance import server_suite
from mobillm.transport import device_context, server_context
from tests.conformance.running import passing, running, server_results

SAMPLE = 100


@pytest.mark.parametrize(
    ("loop", "tls", "seed"), [("asyncio", False, 1), ("asyncio", True, 2), ("uvloop", True, 3)]
)
def test_a_sample_passes(loop: str, tls: bool, seed: int, tmp_path: pathlib.Path) -> None:
    """A hundred cases; all of them are run on uvloop without TLS, area by area."""
    contexts = None
    if tls:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        ca, certificate, key = (tmp_path / name for name in ("ca.pem", "server.pem", "server.key"))
        authority.cert_pem.write_to_path(ca)
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        contexts = server_context(certificate, key), device_context(ca)
    # Half-closed connections are what TLS does not have; cases that need them are left out.
    suite = [case for case in server_suite() if not (tls and ("T-4" in case.id or "K-22" in case.id))]
    cases = random.Random(seed).sample(suite, SAMPLE)
    with running(tmp_path / "data", loop=loop, tls=contexts) as target:
        assert passing(server_results(target, cases, loop=loop)) == SAMPLE
