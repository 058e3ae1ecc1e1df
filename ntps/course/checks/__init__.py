"""Checks of the exercises: each takes the learner's function, tries it, and says what is wrong with it.

    from ntps.course import checks
    checks.projector(my_projector)

A check prints one line when all is well and raises `CheckFailed` with one sentence, what is wrong, when it is not; in a
notebook only the sentence shows. Arguments are NumPy arrays; the function may return arrays, tensors or lists.
"""

from ntps.course.checks.linear import (
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
from ntps.course.checks.lora import gain_without_task, intruder_indices, left_out_errors, merged_weight
from ntps.course.checks.runner import CheckFailed
from ntps.course.checks.study import choose_without, joined_questions, judged_on, permutation_p
from ntps.course.checks.worlds import (
    choice_from_noise,
    hidden_label,
    impressive_noise,
    lucky_coin,
    misleading_world,
    unseen_change,
)

__all__ = [
    "CheckFailed",
    "above_chance",
    "breaking_scale",
    "chance_by_simulation",
    "choice_from_noise",
    "choose_without",
    "excess_between_bounds",
    "gain_without_task",
    "hidden_label",
    "impressive_noise",
    "intruder_indices",
    "joined_questions",
    "judged_on",
    "left_out_errors",
    "lucky_coin",
    "merged_weight",
    "misleading_world",
    "next_token_encoder",
    "ntps",
    "perception_by_regression",
    "permutation_p",
    "projector",
    "smallest_rank",
    "unseen_change",
]
