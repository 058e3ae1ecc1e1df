"""Causal language models from anywhere, and one pass of a model over texts."""

from ntps.models.language_model import LanguageModel
from ntps.models.load import list_models, load_model
from ntps.models.passes import collect
from ntps.models.representations import Representations

__all__ = ["LanguageModel", "Representations", "collect", "list_models", "load_model"]
