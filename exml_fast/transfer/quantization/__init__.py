"""Networks of 8 or 4 bits, on images that need not be real."""

from exml_fast.transfer.quantization.config import Quantization
from exml_fast.transfer.quantization.quantize import quantize
from exml_fast.transfer.quantization.result import QuantizeResult, load_quantized

__all__ = ["Quantization", "QuantizeResult", "load_quantized", "quantize"]
