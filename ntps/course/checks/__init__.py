"""Checks of the exercises: each takes the learner's function, tries it, and says what is wrong with it.

from ntps.course import checks
checks.projector(my_projector)
"""

from ntps.course.checks.linear import (
    CheckFailed,
    above_chance,
    breaking_scale,
    chance_by_simulation,
    excess_between_bounds,
    next_token_encoder,
    ntps,
    perception_by_regression,
    projector,
    smallest_rank,
)
from ntps.course.checks.lora import gain_without_task, intruder_places, left_out_errors, merged_weight
from ntps.course.checks.study import choose_without, permutation_p

__all__ = [
    "CheckFailed",
    "above_chance",
    "breaking_scale",
    "chance_by_simulation",
    "choose_without",
    "excess_between_bounds",
    "gain_without_task",
    "intruder_places",
    "left_out_errors",
    "merged_weight",
    "next_token_encoder",
    "ntps",
    "perception_by_regression",
    "permutation_p",
    "projector",
    "smallest_rank",
]
