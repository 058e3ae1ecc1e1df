"""The version, where importing it costs nothing."""

__version__ = "0.2.0.dev0"
