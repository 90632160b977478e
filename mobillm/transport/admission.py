"""Who may try to log in: bounds of the connections in the handshake, and pauses after failed logins.

A failed login costs its address and its tenant a token of a bucket that fills slowly; with the bucket empty
each further failure doubles the pause in which no other try is admitted, be its token right or wrong. An
address that has logged in as a tenant before does not pay for that tenant's failures elsewhere, so that
strangers cannot lock a device out. All tables are bounded; the oldest entries go first.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import time
from collections.abc import Callable

from ..options import Limits

__all__ = ["Admission", "group_of"]

# Failures that cost nothing yet: of one address, and of one tenant from addresses that are not known.
FORGIVEN = 1 / 60  # failures a second that are forgotten
LONGEST_PAUSE = 60.0  # seconds
TABLE = 4096  # entries of each table


@dataclasses.dataclass(slots=True)
class _Failures:
    """Failed logins of one address or tenant.

    Attributes:
        count: how many, those apart that were forgotten.
        since: when that was counted.
        until: when the next try is admitted.

    """

    count: float
    since: float
    until: float = 0.0


_Table = collections.OrderedDict[str, _Failures]


def group_of(host: str) -> str:
    """Return what counts as one address: an IPv6 address's /64 network, since one peer has all of it."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


class Admission:
    """Counts the connections in the handshake, and remembers failed logins.

    Args:
        limits: ``handshakes`` and ``handshakes_per_host`` are used.
        clock: seconds that never go back.

    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._shaking: collections.Counter[str] = collections.Counter()
        self._hosts: _Table = _Table()
        self._tenants: _Table = _Table()
        self._known: collections.OrderedDict[tuple[str, str], None] = collections.OrderedDict()

    def enter(self, host: str) -> bool:
        """Take a connection into the handshake if there is room; it must :meth:`leave` then."""
        host = group_of(host)
        if self._shaking.total() >= self._limits.handshakes:
            return False
        if self._shaking[host] >= self._limits.handshakes_per_host:
            return False
        self._shaking[host] += 1
        return True

    def leave(self, host: str) -> None:
        """Let a connection go: its handshake is over, whatever its end."""
        host = group_of(host)
        self._shaking[host] -= 1
        if not self._shaking[host]:
            del self._shaking[host]

    def pause(self, host: str, tenant: str) -> float:
        """Return the seconds until a login may be tried; 0 when it may be tried now."""
        host = group_of(host)
        now = self._clock()
        until = now
        if host in self._hosts:
            until = max(until, self._hosts[host].until)
        if tenant in self._tenants and (host, tenant) not in self._known:
            until = max(until, self._tenants[tenant].until)
        return until - now

    def succeed(self, host: str, tenant: str) -> None:
        """Note a login; failures stay, or whoever has one token could guess others without a pause."""
        key = (group_of(host), tenant)
        self._known[key] = None
        self._known.move_to_end(key)
        if len(self._known) > TABLE:
            self._known.popitem(last=False)

    def fail(self, host: str, tenant: str) -> None:
        """Note a failed login; an unknown tenant counts like a known one."""
        host = group_of(host)
        self._note(self._hosts, host, self._limits.failed_logins)
        if (host, tenant) not in self._known:
            self._note(self._tenants, tenant, 2 * self._limits.failed_logins)

    def _note(self, table: _Table, key: str, free: int) -> None:
        now = self._clock()
        entry = table.setdefault(key, _Failures(0.0, now))
        table.move_to_end(key)
        if len(table) > TABLE:
            table.popitem(last=False)
        entry.count = max(0.0, entry.count - (now - entry.since) * FORGIVEN) + 1
        entry.since = now
        beyond = entry.count - free
        if beyond > 0:
            # The exponent is bounded, as a float's range is.
            entry.until = now + min(LONGEST_PAUSE, 2.0 ** min(beyond - 1, 10))
