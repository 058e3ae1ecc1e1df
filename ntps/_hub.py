"""The model hub without waiting and without noise: is it there, what went wrong, and quiet loading."""

import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_CONNECT_SECONDS = 2.0  # the hub's own libraries retry for 23 s before they say that there is no network
_reached: set[str] = set()


def endpoint() -> str:
    """Return the hub's address: `HF_ENDPOINT`, or the public hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def offline_requested() -> bool:
    """Return whether the reader asked for offline work (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`)."""
    from huggingface_hub import constants

    wanted = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return bool(constants.HF_HUB_OFFLINE) or any(
        (value or "").upper() in {"1", "ON", "YES", "TRUE"} for value in wanted
    )


def reachable() -> bool:
    """Return whether the hub answers within about two seconds (`HF_HUB_ETAG_TIMEOUT` seconds where that is set).

    One request without retries, through the proxies of the environment. Any answer counts, an error page or a refused
    certificate too: then the hub's own library says what is wrong. A hub that has answered once is not asked again.
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
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            answered.set()
        except urllib.error.URLError as error:
            if "SSL" in type(error.reason).__name__:
                answered.set()
        except (OSError, ValueError):
            pass
        else:
            answered.set()

    # A thread, because looking a name up has no timeout of its own and may hang for longer than the request may.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if answered.is_set():
        _reached.add(address)
    return answered.is_set()


@contextmanager
def offline() -> Iterator[None]:
    """Have the hub's libraries use their local cache only, and put their settings back afterwards."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the loading bars and log lines of transformers and datasets inside the block; download bars stay."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    with ExitStack() as restore:
        for library in (logging, datasets.logging, hub_logging):
            restore.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
        if logging.is_progress_bar_enabled():
            restore.callback(_bars, logging.enable_progress_bar)
            _bars(logging.disable_progress_bar)
        if not datasets.are_progress_bars_disabled():
            restore.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        yield


def _bars(switch: Any) -> None:
    """Turn transformers' bars on or off; its switch turns the hub's download bars with it, which are put back."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    switch()
    (disable_progress_bars if disabled else enable_progress_bars)()


def commit_of(name: str, revision: str | None, filename: str) -> str | None:
    """Return the commit at which a file of a model was read, from where the local cache keeps it, or None."""
    from transformers.utils import cached_file

    found = cached_file(name, filename, revision=revision or "main")
    match = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", str(found))
    return match[1] if match else None


def first_line(error: BaseException) -> str:
    """Return the first line with words in an error's message, without its final full stop, for use in a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def why_not_found(what: str) -> str:
    """Return the clause for a hub name that did not load: asked for offline work, no answer, or no such name."""
    if offline_requested():
        return f"HF_HUB_OFFLINE is set and {what} is not in the local cache"
    return f"{endpoint()} cannot be reached and {what} is not in the local cache (offline, or no such name)"
