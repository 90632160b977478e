"""A conformance suite: raw peers that hold any server and any client against the specification.

``docs/protocol.md`` and ``docs/packed-tensors.md`` are the specification; each case names the statements
that it proves. The suite needs no torch, and nothing of this package's own server or device.
"""

from .case import Case, Deviation, NotApplicable, select
from .client_cases import client_suite
from .report import failure, junit, summary, table, to_json
from .runner import Environment, Result, run_cases
from .server_cases import server_suite
from .target import Lab, Target
from .visit import Drive, Visit, command_drive

__all__ = [
    "Case",
    "Deviation",
    "Drive",
    "Environment",
    "Lab",
    "NotApplicable",
    "Result",
    "Target",
    "Visit",
    "client_suite",
    "command_drive",
    "failure",
    "junit",
    "run_cases",
    "select",
    "server_suite",
    "summary",
    "table",
    "to_json",
]
