"""The proof of an output: every module of the source against every module of the file as it was re-opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from loratools.adapters.adapter import Adapter
from loratools.adapters.proof import Proof, clusters, prove


@dataclass(frozen=True, slots=True)
class ProofReport:
    """How many modules are proven in which of the three ways, and the worst relative error with its module."""

    identical: int
    exact: int
    measured: int
    worst: float
    worst_module: str | None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "identical": self.identical,
            "exact": self.exact,
            "measured": self.measured,
            "worst": self.worst,
            "worst_module": self.worst_module,
        }


def prove_output(source: Sequence[Adapter], output: Sequence[Adapter], *, threads: int = 1) -> ProofReport:
    """Compare two sets of adapters cluster by cluster; modules in parallel, one thread inside each."""
    pairs = list(clusters(source, output))

    def one(pair: tuple[list[Adapter], list[Adapter]]) -> Proof:
        return prove(*pair)

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            proofs = list(pool.map(one, pairs))
    else:
        proofs = [one(pair) for pair in pairs]
    counts = Counter(proof.kind for proof in proofs)
    at = max(range(len(proofs)), key=lambda index: proofs[index].error, default=None)
    named = None if at is None or not proofs[at].error else (pairs[at][0] or pairs[at][1])[0].target.name
    worst = 0.0 if at is None else proofs[at].error
    return ProofReport(counts["identical"], counts["exact"], counts["measured"], worst, named)
