"""The proof of an output: every module of the source against every module of the file as it was re-opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loratools.adapters.adapter import Adapter
from loratools.adapters.proof import Proof, clusters, prove
from loratools.errors import NonFinite
from loratools.operations.outputs.finite import holds_nonfinite


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


def prove_output(
    source: Sequence[Adapter],
    output: Sequence[Adapter],
    *,
    threads: int = 1,
    allow_nonfinite: bool = False,
    prover: Callable[[Sequence[Adapter], Sequence[Adapter]], Proof] = prove,
) -> ProofReport:
    """Compare two sets of adapters cluster by cluster with `prover`; modules in parallel, one thread inside each.

    Raises NonFinite where a delta has no error to measure. With `allow_nonfinite` a module whose source holds NaN or
    infinity is not counted but named in the warnings.
    """
    pairs = list(clusters(source, output))

    def one(pair: tuple[list[Adapter], list[Adapter]]) -> Proof | None:
        try:
            return prover(*pair)
        except NonFinite:
            if allow_nonfinite and holds_nonfinite(pair[0]):
                return None
            raise

    if threads > 1 or prover is not prove:
        from loratools.operations.working.side_by_side import (
            side_by_side,  # its import costs more than many a proof by bytes
        )

        tried = side_by_side(one, pairs, threads)
    else:
        tried = [one(pair) for pair in pairs]
    proofs = [((pair[0] or pair[1])[0].target.name, proof) for pair, proof in zip(pairs, tried, strict=True) if proof]
    counts = Counter(proof.kind for _, proof in proofs)
    name, worst = max(((name, proof.error) for name, proof in proofs), key=lambda item: item[1], default=(None, 0.0))
    unproven = tuple(
        f"{pair[0][0].target.name} holds NaN or infinity: carried along, not proven"
        for pair, proof in zip(pairs, tried, strict=True)
        if not proof
    )
    named = name if worst else None
    return ProofReport(counts["identical"], counts["exact"], counts["measured"], worst, named, unproven)
