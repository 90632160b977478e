"""The device: connect, open a session, submit batches, pull the side network.

Nothing here imports torch; the ready-made backbone pipeline is in :mod:`mobillm.device.pipeline`.
"""

from .client import Client, connect
from .sending import Batch
from .session import Session

__all__ = ["Batch", "Client", "Session", "connect"]
