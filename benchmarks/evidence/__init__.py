"""Whole trainings of several kinds, with our compressed state and with its rivals', and the page that compares them."""

import sys

from paths import ROOT

sys.path.insert(0, str(ROOT / "examples"))
