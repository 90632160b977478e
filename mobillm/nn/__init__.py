"""Frozen backbones with taps, the side networks trained beside them, and their heads; needs torch."""
