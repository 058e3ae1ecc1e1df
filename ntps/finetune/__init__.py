"""Fine-tuning with LoRA and its alternatives: train a model, and compare it before and after.

Names are imported when they are first used: checking settings needs no torch.
"""

from typing import TYPE_CHECKING

from ntps._lazy import lazy_names

if TYPE_CHECKING:
    from ntps.finetune.before_after import before_and_after, repeat
    from ntps.finetune.look import Look, look_at_training
    from ntps.finetune.results import LoraRepeats, LoraResult
    from ntps.finetune.settings import TrainSettings
    from ntps.finetune.train import FineTuned, fine_tune

__all__ = [
    "FineTuned",
    "Look",
    "LoraRepeats",
    "LoraResult",
    "TrainSettings",
    "before_and_after",
    "fine_tune",
    "look_at_training",
    "repeat",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "before_after": ("before_and_after", "repeat"),
        "look": ("Look", "look_at_training"),
        "results": ("LoraRepeats", "LoraResult"),
        "settings": ("TrainSettings",),
        "train": ("FineTuned", "fine_tune"),
    },
)
