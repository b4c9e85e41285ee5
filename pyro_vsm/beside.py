"""Work of the device that need not be waited for by what comes after it."""

from __future__ import annotations

from typing import Any

import torch


class Beside:
    """A context whose work runs on a stream of its own, from where it is entered until :meth:`join`.

    For work that fills little of the device together with other such work. On a CPU it changes nothing. May be
    captured in a graph.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._context: Any = None

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
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
