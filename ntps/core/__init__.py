"""The compute core: next-token moments, encoders, subspaces, scores in closed form; torch, SciPy, no transformers."""

from ntps.core.encoders import Encoder, autoregressive_encoder, perception_encoder
from ntps.core.heldout import HeldOut, Keep, held_out_errors, shuffled_errors
from ntps.core.moments import LayerMoments, NextTokenMoments, NonFiniteError, TextBatch, check_finite
from ntps.core.official import official_curve
from ntps.core.pooled import PooledMoments
from ntps.core.solve import Solved, loss_bounds, solve_layer
from ntps.core.subspaces import explained_curve, nested_basis, ntps_table, principal_angles

__all__ = [
    "Encoder",
    "HeldOut",
    "Keep",
    "LayerMoments",
    "NextTokenMoments",
    "NonFiniteError",
    "PooledMoments",
    "Solved",
    "TextBatch",
    "autoregressive_encoder",
    "check_finite",
    "explained_curve",
    "held_out_errors",
    "loss_bounds",
    "nested_basis",
    "ntps_table",
    "official_curve",
    "perception_encoder",
    "principal_angles",
    "shuffled_errors",
    "solve_layer",
]
