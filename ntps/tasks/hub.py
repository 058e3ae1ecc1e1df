"""Tables of labelled text from the hub: its files by the readers of local files, everything else by `datasets`.

`datasets` reads a CSV file as pandas does: NA is no value to it, and 007 is 7; and it downloads every split. So it only
says which files there are, and those of the split that is read are downloaded: all of them, as a sample is drawn at
random from all rows. Its answer is kept for work offline once they are in the local cache.
"""

import json
import logging
import re
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps._files import atomic_write, from_json, read_json, sha256_json
from ntps.errors import NtpsError
from ntps.tasks.files import EXTENSIONS
from ntps.tasks.sources import choose_split, declared_classes, from_dataset, from_files, own_reading
from ntps.tasks.tables import Table

_ADDRESS = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{40})/(.+)")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The files of a data set that consists of tables.

    Attributes:
        repository: Name on the hub.
        commit: Commit, 40 hex digits.
        splits: Paths within the repository by split.
        declared: Class names of the columns for which the data set declares them.
    """

    repository: str
    commit: str
    splits: dict[str, tuple[str, ...]]
    declared: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, builder: Any) -> "_Files | None":
        """Return the files that a builder of `datasets` would read, unless some are no tables or need its options."""
        splits: dict[str, tuple[str, ...]] = {}
        commits = set()
        for split, addresses in (builder.config.data_files or {}).items():
            found = [_ADDRESS.fullmatch(str(address)) for address in addresses]
            if not all(match and Path(match[3]).suffix.lower() in EXTENSIONS for match in found):
                return None
            splits[str(split)] = tuple(match[3] for match in found if match)
            commits |= {(match[1], match[2]) for match in found if match}
        if len(commits) != 1 or own_reading(builder.config):
            return None
        declared = declared_classes(builder.info.features or {})
        ((repository, commit),) = commits
        return cls(repository=repository, commit=commit, splits=splits, declared=declared)

    def local(self, split: str, *, online: bool) -> dict[str, list[Path]]:
        """Return the splits, with files for one: in the local cache; `online`, those that it lacks are downloaded."""
        from huggingface_hub import hf_hub_download

        options: Any = {"repo_type": "dataset", "revision": self.commit, "local_files_only": not online}
        return {
            name: [Path(hf_hub_download(self.repository, path, **options)) for path in paths if name == split]
            for name, paths in self.splits.items()
        }


def read_hub(name: str, config: str | None, split: str | None, revision: str | None, hint: str = "") -> Table:
    """Read a data set from the hub, or from the local cache if the hub does not answer.

    Raises:
        NtpsError: If there is no such data set, configuration, split or revision, or it cannot be reached.
    """
    if not _hub.is_name(name):
        raise NtpsError(f"{name}: file not found, and not a valid name of a data set on the hub.{hint}")
    online = _hub.reachable()
    try:
        with _hub.quiet(), nullcontext() if online else _hub.offline():
            table = _read(name, config, split, revision, online)
    except NtpsError:
        raise
    except Exception as error:
        if not online:
            raise NtpsError(
                f"data set {name!r} cannot be loaded: {_hub.why_not_found('it')}; "
                f"use a local file or folder ({', '.join(EXTENSIONS)}) or a bundled miniworld/ task.{hint}"
            ) from error
        raise NtpsError(f"data set {name!r} cannot be loaded: {_hub_reason(error)}.{hint}") from error
    table.source = {"kind": "hub", "path": name, "config": config, "revision": revision, **table.source}
    return table


def _read(name: str, config: str | None, split: str | None, revision: str | None, online: bool) -> Table:
    import datasets
    from huggingface_hub import constants

    asked = sha256_json({"config": config, "revision": revision})
    kept = Path(constants.HF_ASSETS_CACHE) / "ntps" / "datasets" / name.replace("/", "--") / f"{asked}.json"
    files = None
    if not online:
        with suppress(NtpsError):  # none is there
            files = from_json(_Files, read_json(kept))
    if files is None:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
        files = _Files.of(builder)
    if files is None:
        builder.download_and_prepare()
        if builder.info.builder_name == "csv":
            logger.warning("%s was read by the reader of datasets, to which NA is no value and 007 is 7.", name)
        return from_dataset(builder.as_dataset(), name, split)
    paths = files.local(choose_split(tuple(files.splits), name, split)[1], online=online)
    if online:
        with suppress(NtpsError):  # a cache that may only be read
            atomic_write(kept, json.dumps(asdict(files)))
    table = from_files(paths, name, split)
    table.declared |= files.declared
    return table


def _hub_reason(error: Exception) -> str:
    """Return a clause that says why a data set did not load from a hub that answers."""
    text = " ".join(str(error).split())
    if "scripts are no longer supported" in text:
        return "it is a loading script, which datasets no longer runs; try its revision 'refs/convert/parquet'"
    if "gated" in text:
        return "request access on its page, then log in with `hf auth login`"
    return text[:400].rstrip(".") or type(error).__name__
