"""Timing a function on the CPU or on a CUDA device, there optionally as a replayed graph."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from pyro_vsm import parallel


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: the median over rounds of the mean of each, and the smallest and largest round."""

    ms: float
    least: float
    most: float


def rounds(advance: Callable[[], object], device: torch.device, seconds: float, number: int = 7) -> Timing:
    """Times calls of something that is warm, in so many rounds that take about ``seconds`` together.

    Args:
        advance: what is timed; on CUDA it may return before its work is done.
        device: where it works.
        seconds: about how long to measure.
        number: rounds.
    """

    def span(calls: int) -> float:
        if device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            for _ in range(calls):
                advance()
            last.record()
            last.synchronize()
            return first.elapsed_time(last)
        started = time.perf_counter()
        for _ in range(calls):
            advance()
        return 1e3 * (time.perf_counter() - started)

    once = span(1)
    # several processes that talk to each other inside must make as many calls
    calls = parallel.shared(max(1, int(1e3 * seconds / number / max(once, 1e-3))))
    found = [span(calls) / calls for _ in range(number)]
    return Timing(statistics.median(found), min(found), max(found))


def timed(
    function: Callable[[], object], device: torch.device, *, graph: bool, seconds: float, warmup: int = 3
) -> Timing:
    """Times a function, captured as a CUDA graph where ``graph`` is set and the device is one."""
    if not (graph and device.type == "cuda"):
        for _ in range(warmup):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return rounds(function, device, seconds)
    stream = _warm_stream(device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        kept = function()
    captured.replay()
    timing = rounds(captured.replay, device, seconds)
    del kept, captured
    return timing


@cache
def _warm_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all warm-ups: a library keeps a workspace of its own for every stream that it has seen."""
    return torch.cuda.Stream(device)


def peak_megabytes(device: torch.device) -> float:
    """Most memory in use so far: of the device's allocator on CUDA, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows has none
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def reset_memory(device: torch.device) -> None:
    """Forget the peak so far and what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def machine(device: torch.device) -> str:
    """What was measured on: device, threads, library."""
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        model = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        if info.exists():
            lines = [line for line in info.read_text(errors="replace").splitlines() if line.startswith("model name")]
            model = lines[0].partition(":")[2].strip() if lines else model
        name = f"{model}, {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__}"
