"""The package version; the wire version is in :mod:`mobillm.protocol.frames`."""

__version__ = "0.1.0"
