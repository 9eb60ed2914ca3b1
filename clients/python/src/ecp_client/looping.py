"""An event loop in a thread of its own, for the synchronous facades; it knows nothing of what runs on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ecp_client.errors import ClientError, ClosedError, WrongThreadError

T = TypeVar("T")

STOP_SECONDS_MAX = 10.0


class LoopThread:
    """Runs an event loop until `stop`. The thread is a daemon: it does not keep a dying process alive."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], *, timeout_seconds: float) -> T:
        """Runs a coroutine there and returns what it returns, or raises what it raises.

        Raises:
            TimeoutError: it took longer than `timeout_seconds`; it was cancelled.
            WrongThreadError: called in the loop's own thread.
            ClosedError: the loop has ended.
        """
        try:
            self.check_other()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except (ClientError, RuntimeError) as error:
            coroutine.close()
            raise error if isinstance(error, ClientError) else ClosedError("the client is closed") from error
        try:
            return future.result(timeout_seconds)
        except TimeoutError:
            future.cancel()
            raise

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        """Runs a function there soon; what it returns is lost. Raises ClosedError when the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError as error:
            raise ClosedError("the client is closed") from error

    def check_other(self) -> None:
        """Raises WrongThreadError in the loop's own thread, which cannot wait for itself."""
        if threading.current_thread() is self._thread:
            raise WrongThreadError(
                "a callback must not wait for the client: tell another thread to do it, or return first"
            )

    def stop(self) -> None:
        """Ends loop and thread; safe to repeat."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_SECONDS_MAX)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
