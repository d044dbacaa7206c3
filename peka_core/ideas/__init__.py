"""Pictures of ideas, one function each: PEKA's pipeline, blocks of a weight, a softmax, protocols.

They need no run and no data (`softmax_and_sign` takes a teacher's vectors if there are some).
"""

from .blocks import blocks
from .pipeline import pipeline
from .protocols import protocols
from .softmax import softmax_and_sign

__all__ = ["blocks", "pipeline", "protocols", "softmax_and_sign"]
