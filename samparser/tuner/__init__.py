"""The tuner: SVD coefficients as a PEFT method for any model with Linear, Conv2d and ConvTranspose2d layers.

Importing this package registers the method with PEFT.
"""

from __future__ import annotations

from .config import SVDCoefficientConfig
from .initialize import ExpansionReport, initialize_expansion
from .layer import Conv2d, ConvTranspose2d, Linear, SVDCoefficientLayer
from .model import SVDCoefficientModel
from .registration import register
from .training_loop import (
    awaited_terms,
    coefficient_parameters,
    coefficients,
    expansion_terms,
    placeholder_terms,
    take_pairs,
    unused_coefficients,
    warn_of_unused_coefficients,
)

register()

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "ExpansionReport",
    "Linear",
    "SVDCoefficientConfig",
    "SVDCoefficientLayer",
    "SVDCoefficientModel",
    "awaited_terms",
    "coefficient_parameters",
    "coefficients",
    "expansion_terms",
    "initialize_expansion",
    "placeholder_terms",
    "take_pairs",
    "unused_coefficients",
    "warn_of_unused_coefficients",
]
