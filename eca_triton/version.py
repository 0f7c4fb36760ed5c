"""The version of this package, which its tables, reports and metadata tell."""

__version__ = "0.1.0"
