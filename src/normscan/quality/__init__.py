"""Quality gate: is this the kind of scan that a detector was trained on, and is it whole?"""

from normscan.quality.gate import Gate, GateBuilder
from normscan.quality.rules import Verdict

__all__ = ["Gate", "GateBuilder", "Verdict"]
