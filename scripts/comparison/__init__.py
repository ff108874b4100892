"""What compare.py is made of."""

from common import ROOT

__all__ = ["ROOT"]
