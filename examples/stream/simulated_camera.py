"""A camera in a thread, a live view in the terminal, and how the disk keeps up.

`python simulated_camera.py run.ome.zarr` records until Ctrl-C, which leaves a good file, as a
closed terminal and `kill -9` do (`bioio-tk recover run.ome.zarr` then completes its metadata).
`--seconds 2` stops by itself; try `--fps 2000 --memory 16 --backpressure raise` on a slow disk.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

import numpy as np

from bioio_tk import AcquisitionSettings, create_stream, dims_from_standard_axes
from bioio_tk.errors import BioIOError

SHADES = " .:-=+*#%@"


class Camera(threading.Thread):
    """Hands over frames of drifting cells, all in the same buffer, as cameras do."""

    def __init__(self, stream, size: int, fps: float) -> None:
        super().__init__(daemon=True)
        self.stream, self.size, self.fps = stream, size, fps
        self.stopped = threading.Event()
        self.failure: BioIOError | None = None

    def run(self) -> None:
        """Take frames until somebody says stop or the stream does not take any more."""
        rng = np.random.default_rng(1)
        yx = np.mgrid[: self.size, : self.size] / self.size
        noise = rng.integers(90, 110, (self.size, self.size), "uint16")
        buffer = np.empty_like(noise)
        start, number = time.perf_counter(), 0
        while not self.stopped.wait(start + number / self.fps - time.perf_counter()):
            middle = 0.5 + 0.3 * np.array([np.sin(number / 20), np.cos(number / 20)])
            distance = ((yx - middle[:, None, None]) ** 2).sum(0)
            buffer[:] = noise + (1500 * np.exp(-distance * 80)).astype("uint16")
            about = {"delta_t": time.perf_counter() - start, "exposure_time": 0.9 / self.fps}
            try:
                self.stream.append(buffer, frame_metadata=about)
            except BioIOError as exc:
                self.failure = exc
                return
            number += 1


def thumbnail(frame: np.ndarray, rows: int = 12, columns: int = 36) -> str:
    """Return a frame as letters."""
    y = np.linspace(0, frame.shape[0] - 1, rows).astype(int)
    x = np.linspace(0, frame.shape[1] - 1, columns).astype(int)
    small = frame[np.ix_(y, x)].astype(float)
    span = max(float(np.ptp(small)), 1.0)
    levels = ((small - small.min()) / span * (len(SHADES) - 1)).astype(int)
    return "\n".join("".join(SHADES[level] for level in row) for row in levels)


def watch(camera: Camera, view, seconds: float) -> None:
    """Show the newest frame and how the stream is doing, until the time is over."""
    end = time.perf_counter() + seconds
    while camera.is_alive() and time.perf_counter() < end:
        time.sleep(0.25)
        if not view.shape[0]:
            continue
        if sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        print(thumbnail(np.asarray(view[view.shape[0] - 1])))
        stats = camera.stream.stats
        print(
            f"{stats.frames_appended} frames, {stats.frames_stored} safe; {stats.fps:.0f} a second "
            f"({stats.mb_per_second:.0f} MB/s); waiting {stats.queue_depth}, at worst "
            f"{stats.queue_high_water} of {stats.queue_capacity}; blocked "
            f"{stats.blocked_seconds:.2f} s",
            flush=True,
        )


def record(args: argparse.Namespace) -> int:
    """Record, and return how many frames are in the file."""
    settings = AcquisitionSettings(
        root_path=args.path,
        dimensions=dims_from_standard_axes({"t": None, "y": args.size, "x": args.size}),
        dtype="uint16",
        overwrite=args.overwrite,
        backpressure=args.backpressure,
        max_memory_bytes=args.memory << 20,
    )
    with create_stream(settings) as stream:
        camera = Camera(stream, args.size, args.fps)
        camera.start()
        try:
            watch(camera, stream.view(), args.seconds)
        except KeyboardInterrupt:
            print("stopped")
        camera.stopped.set()
        camera.join()
    if camera.failure is not None:
        raise camera.failure
    print(f"see: bioio-tk info {stream.path}")
    return stream.stats.frames_stored


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", help="run.ome.zarr or run.ome.tiff")
    parser.add_argument("--fps", type=float, default=50)
    parser.add_argument("--size", type=int, default=512, help="pixels along each side")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--memory", type=int, default=256, help="MiB for frames that wait")
    parser.add_argument("--backpressure", choices=["block", "raise", "spill"], default="block")
    parser.add_argument("--overwrite", action="store_true")
    try:
        print(record(parser.parse_args()), "frames are in the file")
    except (BioIOError, OSError, ValueError) as exc:
        sys.exit(f"Error: {exc}")
