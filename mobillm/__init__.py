"""Fine-tune a language model on a device that can only run it forward.

Public names are imported on first use, so that ``import mobillm`` needs neither torch nor a network
stack. ``connect`` and the classes around it work without torch; ``finetune``, ``serve``, ``Backbone``
and ``SideTuned`` need the extra ``mobillm[torch]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    ConfigError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    DataError,
    EngineError,
    ErrorCode,
    HandshakeError,
    LocalProtocolError,
    MobiLLMError,
    ModelError,
    ProtocolError,
    QuantizationError,
    RemoteError,
    RemoteProtocolError,
    StorageError,
)
from .options import Limits, Timeouts
from .spec import CodecSpec, ModelSpec, OptimizerSpec, SessionSpec, SideSpec
from .version import __version__

if TYPE_CHECKING:
    from .device.client import Client, connect
    from .device.dataset import Example
    from .device.finetune import finetune, finetune_async
    from .device.progress import Progress, Report
    from .device.session import Session
    from .nn.backbone import Backbone
    from .nn.inputs import input_ids
    from .nn.sidetuned import SideTuned
    from .nn.streamed import StreamedBackbone
    from .server.app import serve

__all__ = [
    "Backbone",
    "Client",
    "CodecSpec",
    "ConfigError",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedOK",
    "DataError",
    "EngineError",
    "ErrorCode",
    "Example",
    "HandshakeError",
    "Limits",
    "LocalProtocolError",
    "MobiLLMError",
    "ModelError",
    "ModelSpec",
    "OptimizerSpec",
    "Progress",
    "ProtocolError",
    "QuantizationError",
    "RemoteError",
    "RemoteProtocolError",
    "Report",
    "Session",
    "SessionSpec",
    "SideSpec",
    "SideTuned",
    "StorageError",
    "StreamedBackbone",
    "Timeouts",
    "__version__",
    "connect",
    "finetune",
    "finetune_async",
    "input_ids",
    "serve",
]

_LAZY = {
    "Backbone": "mobillm.nn.backbone",
    "Client": "mobillm.device.client",
    "Example": "mobillm.device.dataset",
    "Progress": "mobillm.device.progress",
    "Report": "mobillm.device.progress",
    "Session": "mobillm.device.session",
    "SideTuned": "mobillm.nn.sidetuned",
    "StreamedBackbone": "mobillm.nn.streamed",
    "connect": "mobillm.device.client",
    "finetune": "mobillm.device.finetune",
    "finetune_async": "mobillm.device.finetune",
    "input_ids": "mobillm.nn.inputs",
    "serve": "mobillm.server.app",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    except ImportError as exc:
        raise ImportError(f"mobillm.{name}: {exc}; install mobillm[torch]", name=exc.name) from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
