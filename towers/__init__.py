"""Towers: two-tower retrieval, from an interaction log to recommendations over HTTP.

This package holds what training and serving share: names, formats, preprocessing and the model itself.
It imports neither of them.
"""

__version__ = "0.1.0"
