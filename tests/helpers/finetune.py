"""Settings of very short fine-tuning runs, and what their tests compare."""

from ntps.finetune.settings import TrainSettings

FAST = TrainSettings(
    steps=6, rank=4, alpha=8, batch_size=8, evaluate_every=2, dropout=0.2, learning_rate=5e-3, margin=0
)


def curve(tuned):
    """The rows of a training curve as tuples."""
    return [tuple(row.values()) for row in tuned.curve]
