"""Pictures of ideas, one function each: pipeline, blocks, softmax, protocols, your own tissue.

They need no run and no data (`softmax_and_sign` takes a teacher's vectors if there are some).
"""

from .blocks import blocks
from .pipeline import pipeline
from .protocols import protocols
from .softmax import softmax_and_sign
from .two_ways import two_ways

__all__ = ["blocks", "pipeline", "protocols", "softmax_and_sign", "two_ways"]
