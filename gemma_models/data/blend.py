"""Several sources as one, by weights: which source stands at a position, and the how-manieth of it."""

from __future__ import annotations

from collections.abc import Sequence


class Blend:
    """An endless sequence in which every source has its share, everywhere, as nearly as whole numbers can.

    Position p goes to the source with the largest weight / (n + 1/2), n being how often it was there before: Webster's
    method of sharing out seats. What stands at a position depends on the weights alone, and is found without those
    before it.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        self._weights = [weight / total for weight in weights]
        self._counts = [0] * len(weights)

    def __call__(self, position: int) -> tuple[int, int]:
        """(source, how many of it stand before)."""
        if not 0 <= position - sum(self._counts) <= 1000:
            # No source has had more than a seat or so above its share, nor less below: each is given what is surely
            # its own, and the rest one by one.
            sure = max(0, position - len(self._weights))
            self._counts = [max(0, int(weight * sure) - 1) for weight in self._weights]
        while sum(self._counts) < position:
            self._counts[self._next()] += 1
        source = self._next()
        return source, self._counts[source]

    def _next(self) -> int:
        claims = [weight / (count + 0.5) for weight, count in zip(self._weights, self._counts, strict=True)]
        return claims.index(max(claims))
