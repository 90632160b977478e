"""The server: sessions, activation logs, checkpoints and the training of side networks."""

from .app import serve
from .gateway import Gateway

__all__ = ["Gateway", "serve"]
