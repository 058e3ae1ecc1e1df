"""What a score is read against, put beside it: shuffled labels, intervals, fresh weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ntps.errors import NtpsError
from ntps.scoring.intervals import Interval
from ntps.scoring.nulls import CONTROLLED, LayerNull, check_control
from ntps.scoring.results import ScoreResult


def add_evidence(
    result: ScoreResult,
    *,
    nulls: Sequence[LayerNull] | None = None,
    intervals: Mapping[int, Mapping[str, Interval]] | None = None,
    control: ScoreResult | None = None,
) -> ScoreResult:
    """Return a result whose layers carry `null`, `interval` and `control`, in its table, JSON, pictures and page.

    Args:
        result: From `ntps.score`.
        nulls: From `ntps.permutation_null`, at the ranks of the result.
        intervals: From `ntps.scoring.intervals.jackknife`; those of held-out shares stay.
        control: The same architecture with fresh weights, on the same task.

    Raises:
        NtpsError: If they lack a layer of the result, or were made at other ranks, or on another task.
    """
    if control is not None:
        check_control(result, control)
    by_layer = {null.layer: null for null in nulls or ()}
    layers = []
    for scored in result.layers:
        found = scored
        if nulls is not None:
            null = by_layer.get(scored.layer)
            if null is None or (null.k_u, null.k_v) != (scored.k_u, scored.k_v):
                at = "is missing" if null is None else f"is of ranks {null.k_u}, {null.k_v}"
                raise NtpsError(
                    f"the null of layer {scored.layer} {at}; ask for it at ranks {scored.k_u}, {scored.k_v}."
                )
            found = replace(found, null={"ntps": null.ntps.to_dict(), "explained": null.explained.to_dict()})
        if intervals is not None:
            if scored.layer not in intervals:
                raise NtpsError(f"there is no interval for layer {scored.layer}.")
            more = {name: interval.to_dict() for name, interval in intervals[scored.layer].items()}
            found = replace(found, interval={**more, **(found.interval or {})})
        if control is not None:
            fresh = control[scored.layer]
            found = replace(found, control={name: getattr(fresh, name) for name in CONTROLLED})
        layers.append(found)
    return replace(result, layers=tuple(layers))
