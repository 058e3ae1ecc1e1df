"""LoRA and its rivals: train, and compare before and after."""
