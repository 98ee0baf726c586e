"""The tuner: SVD coefficients as a PEFT method for any model with Linear and Conv2d layers.

Importing this package registers the method with PEFT.
"""

from __future__ import annotations

from .config import SVDCoefficientConfig
from .initialize import ExpansionReport, initialize_expansion
from .layer import Conv2d, Linear, SVDCoefficientLayer
from .learnt import coefficient_parameters, coefficients
from .model import SVDCoefficientModel
from .registration import register

register()

__all__ = [
    "Conv2d",
    "ExpansionReport",
    "Linear",
    "SVDCoefficientConfig",
    "SVDCoefficientLayer",
    "SVDCoefficientModel",
    "coefficient_parameters",
    "coefficients",
    "initialize_expansion",
]
