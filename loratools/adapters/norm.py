"""Norm layers: the stored differences of a norm's weight (`norm_diff`) and bias (`norm_bias_diff`), both [n]."""

from __future__ import annotations

from loratools.adapters.full import Stored

NORM = Stored("norm", "norm_diff", "norm_bias_diff")
