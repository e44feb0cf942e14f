"""What `engines.lite0` is made of, as data: the first two thirds of EfficientNet-Lite0."""

from __future__ import annotations

__all__ = ["CHANNELS", "COARSE", "FINE", "STAGES", "STEM", "STRIDE_PX"]

STEM = 32
"""Filters of the first convolution."""
STAGES = ((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1))
"""Expansion, filters, how often, side of the depthwise filters, stride of the first of them."""
FINE, COARSE = 4, 10
"""The blocks that are listened to: the last of stride 8 and the last of stride 16."""
STRIDE_PX = 8
CHANNELS = 40 + 112
