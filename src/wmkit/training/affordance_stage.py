"""placeholder"""
from __future__ import annotations
from dataclasses import dataclass
from typing import Any
@dataclass
class AffordanceTools:
    model: Any
def prepare_affordance(config, run, stages):
    return None
