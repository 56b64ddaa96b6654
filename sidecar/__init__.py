"""ML Sidecar: the local inference process of a desktop app."""

__version__ = "0.1.0"
