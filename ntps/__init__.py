"""Next Token Perception Score."""

__version__ = "0.1.0"
