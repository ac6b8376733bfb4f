"""The explorer: a server on this machine that shows a set of images in a browser."""

from __future__ import annotations

import contextlib
import html
import os
import secrets
import socket
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from pricepix._checks import optional_module, printable, short, whole_number
from pricepix.explore.catalog import Catalog
from pricepix.explore.history import History
from pricepix.explore.scores import CacheScores, ModelScores
from pricepix.explore.sheets import Sheets
from pricepix.images.image_set import ImageSet
from pricepix.location import Location
from pricepix.store.attributes import check_attributes, check_digest, check_values
from pricepix.store.image_store import ImageStore
from pricepix.store.objects import StoreObjects, read_root

__all__ = ["Explorer", "explore"]

_ADDRESS: Final = "127.0.0.1"
_LONGEST_WAIT: Final = 30.0


class Explorer:
    """A page that shows a set of images, served to this machine until it is closed.

    `explore` opens one. In a notebook it shows itself in a frame.

    Attributes
    ----------
    url : str
        Address of the page, with the token without which it shows nothing. Whoever has it can look at the images and
        their bars, from this machine.
    notes : list of str
        What does not fit together: scores of other images, bars of another zone.
    """

    def __init__(self, answers: Any, port: int) -> None:
        from pricepix.explore.site import application

        uvicorn = optional_module("uvicorn", "explore", "explore")
        self._answers = answers
        self.notes: list[str] = list(answers.notes)
        token = secrets.token_urlsafe(24)
        self._socket = _listen(port)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://{_ADDRESS}:{self.port}/{token}/"
        config = uvicorn.Config(
            application(answers, token), log_config=None, log_level="warning", access_log=False, lifespan="off",
            ws="none", loop="asyncio", http="h11", server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None
        self._door: Path | None = None

    def __repr__(self) -> str:
        images = self._answers.images
        state = "closed" if self._socket.fileno() < 0 else self.url
        return printable(f"Explorer({images.location}: {len(images):,} images, {state})", "")

    def _repr_html_(self) -> str:
        if self._socket.fileno() < 0:
            return f"<p>{html.escape(repr(self))}</p>"
        address = html.escape(self.url, quote=True)
        return (
            f'<iframe src="{address}" title="pricepix explorer" width="100%" height="760" '
            f'style="border:1px solid #8886;border-radius:4px"></iframe>'
            f'<p style="font-size:.85em"><a href="{address}" target="_blank" rel="noopener">open in a tab</a></p>'
        )

    def __enter__(self) -> Explorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Explorer:
        """Serve in a thread of its own; return the explorer once it answers."""
        run = self._server.run
        self._thread = threading.Thread(
            target=run, kwargs={"sockets": [self._socket]}, name="pricepix-explore", daemon=True
        )
        self._thread.start()
        end = time.monotonic() + _LONGEST_WAIT
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.close()
                raise OSError(f"the explorer did not start on {self.url}")
            time.sleep(0.005)
        return self

    def serve(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve in this thread until Ctrl-C, which is a KeyboardInterrupt then.

        Parameters
        ----------
        started : callable
            Called once the page can be opened.
        """
        # The socket listens already: a browser that comes early waits.
        started()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def open(self) -> None:
        """Open the page in the browser of this machine.

        The browser is given a file that leads to the page, and that nobody else may read: all users of a machine see
        the command lines of each other's programs, and so would see the token.
        """
        if self._door is None:
            handle, path = tempfile.mkstemp(prefix="pricepix-explore-", suffix=".html")
            self._door = Path(path)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                address = html.escape(self.url, quote=True)
                file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">')
        webbrowser.open(self._door.as_uri())

    def close(self) -> None:
        """Stop serving. Pages that are open say that they have lost their server."""
        if self._door is not None:
            self._door.unlink(missing_ok=True)
            self._door = None
        self._server.should_exit = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)
        self._socket.close()


def explore(
    images: Any,
    *,
    factor: Any = None,
    model: Any = None,
    panel: Any = None,
    embedding: Any = None,
    horizon: int | None = None,
    port: int = 0,
    browser: bool = False,
) -> Explorer:
    """Open a local page to look through images.

    It shows a window among its bars, its exact pixels, forward returns and scores; sheets of windows by score, error,
    return, likeness or at random; and the same bars drawn by other specs. Nothing is ever written into a store.

    Parameters
    ----------
    images : ImageSet, str or path
        A store, its path, or panel images.
    factor : FactorCache, str or path, optional
        Scores of the images: what sheets are sorted by. Where they are of other images, the page says so.
    model : path, network or ensemble, optional
        A run, a checkpoint or a network: scores single windows and says what speaks for them.
    panel : Panel, MarketCache, or anything ``Panel.from_table`` takes, optional
        The bars; by default those that the images have. Each window is drawn from them again, and the page says where
        the pixels differ.
    embedding : Embedding, str or path, optional
        Of these images, what ``pricepix.factor.embed`` writes: what "similar" means. Without it, the share of ink in
        the same place.
    horizon : int, optional
        Which horizon a model that learnt several is asked about.
    port : int
        Of 127.0.0.1; 0 for any that is free.
    browser : bool
        Open the page in the browser of this machine.

    Returns
    -------
    Explorer
        Its ``url`` is the address; ``close`` ends it. In a notebook it shows itself.

    Raises
    ------
    ImportError
        Without starlette and uvicorn; the message is the line that installs them.
    FileNotFoundError, ValueError
        If there is no store, cache or model, it is damaged, or the model takes other images.
    OSError
        If the port is taken.
    """
    found = prepare(
        images, factor=factor, model=model, panel=panel, embedding=embedding, horizon=horizon, port=port
    ).start()
    if browser:
        found.open()
    return found


def prepare(
    images: Any,
    *,
    factor: Any = None,
    model: Any = None,
    panel: Any = None,
    embedding: Any = None,
    horizon: int | None = None,
    port: int = 0,
) -> Explorer:
    """Return an explorer that does not serve yet; the arguments are those of `explore`."""
    optional_module("starlette", "explore", "explore")
    from pricepix.explore.answers import Answers

    port = whole_number(port, "port", 0, 65535)
    shown = images if isinstance(images, ImageSet) else _open_read_only(images)
    if hasattr(shown.spec, "parts"):
        raise ValueError(
            f"{shown.kind} {shown.location} shows several images a window: explore one of its sets"
        )
    catalog = Catalog(shown)
    # Ahead of the first question; of 17 million windows it takes about a second.
    threading.Thread(target=_load, args=(catalog,), name="pricepix-explore-index", daemon=True).start()
    source = shown.panel if panel is None else panel
    history = None if source is None else History.of(source)
    scores = None if factor is None else CacheScores(factor, catalog)
    asked = None if model is None else ModelScores(model, shown, horizon)
    if horizon is not None and model is None:
        raise ValueError(f"horizon={short(horizon)} is asked of a model: give model=, or leave it out")
    features = None if embedding is None else _opened_embedding(embedding)
    if features is not None and features.attrs.get("spec_digest") != shown.spec.digest:
        raise ValueError(
            f"embedding={short(str(embedding))} is of images of another spec than {shown.kind} {shown.location}: make "
            "it of these images with pricepix.factor.embed"
        )
    return Explorer(Answers(Sheets(catalog, scores, features), history, scores, asked), port)


def _opened_embedding(source: Any) -> Any:
    from pricepix.factor.embedding import Embedding, open_embedding

    return source if isinstance(source, Embedding) else open_embedding(source)


def _open_read_only(source: Any) -> ImageStore:
    """Open a store without completing an append that was stopped, which ``open_store`` would do: reads see it."""
    location = Location.of(source)
    root = read_root(location)
    check_attributes(root["attributes"], location.name)
    check_digest(root, location.name)
    check_values(root["attributes"], location.name)
    return ImageStore(StoreObjects(location, root))


def _load(catalog: Catalog) -> None:
    # What is damaged is told to whoever asks for it.
    with contextlib.suppress(ValueError, OSError, MemoryError):
        catalog.load()


def _listen(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.bind((_ADDRESS, port))
        found.listen(64)
    except OSError as error:
        found.close()
        raise OSError(
            error.errno,
            f"port={port} of {_ADDRESS} cannot be used ({error.strerror}): give another, or 0 for any",
        ) from error
    return found
