"""The model hub without long waits or noise: whether it answers, what the local cache holds, quiet loading."""

import os
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

_CONNECT_SECONDS = 2.0  # the hub's own libraries retry for 23 s before they report that there is no network
_reached: set[str] = set()


def is_name(name: str) -> bool:
    """Return whether a repository on the hub can have this name."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII) is not None


def endpoint() -> str:
    """Return the hub's address: `HF_ENDPOINT`, or the public hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def offline_requested() -> bool:
    """Return whether the user asked for offline work (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`)."""
    from huggingface_hub import constants

    variables = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return bool(constants.HF_HUB_OFFLINE) or any(
        (value or "").upper() in {"1", "ON", "YES", "TRUE"} for value in variables
    )


def reachable() -> bool:
    """Return whether the hub answers within about two seconds (`HF_HUB_ETAG_TIMEOUT` seconds if that is set).

    It sends one request without retries, through the environment's proxies. Any answer counts, even an error page or a
    refused certificate: the hub's own library then says what is wrong. A hub that has answered once is not asked again.
    """
    address = endpoint()
    if offline_requested():
        return False
    if address in _reached:
        return True
    try:
        seconds = float(os.environ["HF_HUB_ETAG_TIMEOUT"])
    except (KeyError, ValueError):
        seconds = _CONNECT_SECONDS

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
        except (OSError, ValueError) as error:
            refused = isinstance(getattr(error, "reason", None), ssl.SSLError)
            if not (refused or isinstance(error, urllib.error.HTTPError)):
                return
        _reached.add(address)

    # A thread, because looking a name up has no timeout of its own and may hang for longer than the request may.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return address in _reached


@contextmanager
def offline() -> Iterator[None]:
    """Make the hub's libraries use their local cache only, and restore their settings afterwards.

    This is for `datasets.load_dataset`, which has no parameter for it; models are read with `local_files_only=True`.
    """
    from huggingface_hub import constants

    modules = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    with ExitStack() as restore:
        for module in modules:
            restore.callback(setattr, module, "HF_HUB_OFFLINE", module.HF_HUB_OFFLINE)
            module.HF_HUB_OFFLINE = True
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the loading bars and log lines of transformers and datasets inside the block; download bars stay.

    It also keeps transformers from asking the hub, in a background thread, to convert weights that are not safetensors.
    """
    from huggingface_hub import utils
    from transformers.utils import logging

    datasets = sys.modules.get("datasets")
    with ExitStack() as restore:
        for library in (logging, utils.logging, *([datasets.logging] if datasets else [])):
            restore.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
        # transformers' switch also turns off the hub's download bars; those are put back at once.
        hub_bars = utils.disable_progress_bars if utils.are_progress_bars_disabled() else utils.enable_progress_bars
        if logging.is_progress_bar_enabled():
            restore.callback(hub_bars)
            restore.callback(logging.enable_progress_bar)
            logging.disable_progress_bar()
            hub_bars()
        if datasets and not datasets.are_progress_bars_disabled():
            restore.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        name = "DISABLE_SAFETENSORS_CONVERSION"
        if name not in os.environ:
            restore.callback(os.environ.pop, name, None)
            os.environ[name] = "1"
        yield


def cached_file(name: str, filename: str, revision: str | None = None) -> Path | None:
    """Return the local cache's copy of a file of a model's revision (by default main), or None."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, filename, revision=revision or "main")
    return Path(path) if isinstance(path, str) else None


def cached_commit(name: str, filename: str, revision: str | None = None) -> str | None:
    """Return the commit of a model's revision (by default main) at which the local cache has a file, or None."""
    path = cached_file(name, filename, revision)
    return None if path is None else path.parents[len(Path(filename).parts) - 1].name


def is_cached(name: str, files: Sequence[str], revision: str | None) -> bool:
    """Return whether the local cache has a model's files and they need no update: no branch or tag was named."""
    needs_no_update = revision is None or re.fullmatch("[0-9a-f]{40}", revision) is not None
    return needs_no_update and all(cached_commit(name, file, revision) for file in files)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, without its full stop, for use in a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def why_not_found(what: str) -> str:
    """Return the clause that says why a hub name did not load: offline mode, no answer, or no such name."""
    if offline_requested():
        return f"HF_HUB_OFFLINE is set and {what} is not in the local cache"
    return f"{endpoint()} cannot be reached and {what} is not in the local cache (offline, or no such name)"
