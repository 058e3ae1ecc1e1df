"""Causal language models from anywhere, and one pass of a model over texts.

Names are imported when they are first used: naming a model needs no torch.
"""

from typing import TYPE_CHECKING

from ntps._lazy import lazy_names

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel
    from ntps.models.load import list_models, load_model
    from ntps.models.passes import collect, plan_pass
    from ntps.models.representations import Representations

__all__ = ["LanguageModel", "Representations", "collect", "list_models", "load_model", "plan_pass"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "language_model": ("LanguageModel",),
        "load": ("list_models", "load_model"),
        "passes": ("collect", "plan_pass"),
        "representations": ("Representations",),
    },
)
