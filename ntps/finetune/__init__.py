"""Fine-tuning with LoRA and its alternatives: train a model, and compare it before and after."""

from ntps.finetune.compare import before_and_after, repeat
from ntps.finetune.results import LoraRepeats, LoraResult
from ntps.finetune.settings import TrainSettings
from ntps.finetune.train import FineTuned, fine_tune

__all__ = ["FineTuned", "LoraRepeats", "LoraResult", "TrainSettings", "before_and_after", "fine_tune", "repeat"]
