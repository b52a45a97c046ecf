"""Warnings of the first process alone, also where Lightning is not loaded."""

from __future__ import annotations

import os

from lightning_utilities.core.rank_zero import rank_zero_only as rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_warn as rank_zero_warn

_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where launchers tell the rank, in the order in which Lightning looks."""

# As Lightning does when it is loaded: the first of both has its way, and a strategy corrects it later.
vars(rank_zero_only).setdefault("rank", int(next((os.environ[name] for name in _VARIABLES if name in os.environ), 0)))
