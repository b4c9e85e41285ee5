"""Work of the device that need not be waited for by what comes after it."""

from __future__ import annotations

from typing import Any

import torch


class Beside:
    """A context whose work runs on a stream of its own: after what came before :meth:`start`, up to :meth:`join`.

    For many small kernels beside a large one, which they go before wherever part of the device falls free. What is
    given up inside may be used anew outside only after :meth:`join`. On a CPU nothing of this changes anything. May
    be captured in a graph.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._context: Any = None

    def start(self) -> None:
        """The work waits for what has been asked for so far, and for nothing that follows."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())

    def __enter__(self) -> None:
        if self.stream is not None:
            self._context = torch.cuda.stream(self.stream)
            self._context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        if self._context is not None:
            self._context.__exit__(*exception)
            self._context = None

    def join(self) -> None:
        """What follows waits for the work."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
