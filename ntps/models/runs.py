"""A pass over the texts, or the one that an output folder kept, when model, texts and settings are the same."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntps.core.moments import Moments
from ntps.errors import NtpsError
from ntps.models.features import Features
from ntps.models.passes import collect
from ntps.models.plan import make_request

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel
    from ntps.tasks.load import Task


@dataclass(frozen=True)
class Pass:
    """What a pass gave.

    Attributes:
        moments: Its moments.
        features: Pooled states, in float16 where they fit, if they were asked for.
        reports: Whether this process, of several, is the one that says so.
    """

    moments: Moments
    features: Features | None
    reports: bool


def run_pass(
    model: "LanguageModel",
    task: "Task",
    folder: Path | None,
    *,
    name: str = "",
    keep_features: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Pass:
    """Return the moments, and the features on request, from the folder when they are those asked for.

    Args:
        model: From `ntps.load_model`.
        task: From `ntps.load_task`.
        folder: Where `moments.safetensors` and `features.safetensors` are kept; `None` keeps nothing.
        name: Put before the files' names, `control` for instance.
        keep_features: Whether features are wanted too.
        quiet: Say nothing on stderr.
        **options: As `ntps.collect_moments`.

    Raises:
        NtpsError: As `ntps.collect_moments`.
    """

    def say(message: str) -> None:
        if not quiet and reports:
            print(f"ntps: {message}", file=sys.stderr)

    reports = os.environ.get("RANK", "0") == "0"
    request = {key: value for key, value in options.items() if key != "batch_size"}
    asked = make_request(model.n_layers, model.max_positions, task, **request)
    key = asked.key(model.fingerprint, model.dtype, task)
    prefix = f"{name}-" if name else ""
    kept, shown = None, None
    if folder is not None:
        shown = folder / f"{prefix}moments.safetensors"
        try:
            kept = _kept(folder, prefix, key, keep_features)
        except NtpsError as error:
            say(str(error))
    if kept is not None:
        say(f"using the moments in {shown}: same model, texts and settings.")
        return Pass(*kept, reports)
    wanted: dict[str, Any] = {"progress": False if quiet else None, **options}
    moments, features = collect(model, task, keep_features=keep_features, feature_dtype="float16", **wanted)
    if reports:
        skipped, cut = moments.metadata["n_skipped"], moments.metadata["n_truncated"]
        if skipped:
            say(f"{skipped} of {len(task)} texts have no token and were left out.")
        if cut:
            say(f"{cut} of {len(task)} texts are longer than {moments.metadata['max_length']} tokens and were cut.")
        if folder is not None:
            moments.save(folder / f"{prefix}moments.safetensors")
            if features is not None:
                features.save(folder / f"{prefix}features.safetensors", key=key)
    return Pass(moments, features, reports)


def _kept(folder: Path, prefix: str, key: str, keep_features: bool) -> tuple[Moments, Features | None] | None:
    """Return what the folder holds under this key, or `None` when something is missing or of another pass."""
    path = folder / f"{prefix}moments.safetensors"
    if not path.is_file():
        return None
    moments = Moments.load(path)
    if moments.metadata.get("key") != key:
        return None
    if not keep_features:
        return moments, None
    features = Features.load(folder / f"{prefix}features.safetensors", key=key)
    return None if features is None else (moments, features)
