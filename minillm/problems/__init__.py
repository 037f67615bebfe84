"""Mathematics problems with step-by-step LaTeX solutions, six domains, each record checkable.

problem = make(seed=0, index=17, domain="calculus")
verify(problem)
"""

from minillm.problems.generator import DOMAINS, FAMILIES, LEVELS, families, make, split_of, stream
from minillm.problems.problem import Claim, Problem
from minillm.problems.verify import VerificationError, verify

__all__ = [
    "DOMAINS",
    "FAMILIES",
    "LEVELS",
    "Claim",
    "Problem",
    "VerificationError",
    "families",
    "make",
    "split_of",
    "stream",
    "verify",
]
