"""Small real videos, written frame by frame with times of their own."""

from fractions import Fraction

import numpy as np

_ENCODERS = {"mpeg4": {"qmin": "1", "qmax": "2"}, "libx265": {"x265-params": "log-level=none"}}
"""Fine enough to keep grays, and silent."""

MILLISECOND = Fraction(1, 1000)


def write_video(path, frames, *, codec="mpeg4", layout="yuv420p", rotation=0, stretch=None, **options):
    """Write (seconds, picture) pairs; a picture is (H, W, 3) uint8, or (H, W) uint16 for gray layouts."""
    import av

    pairs = list(frames)
    height, width = pairs[0][1].shape[:2]
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, layout
        stream.time_base = stream.codec_context.time_base = MILLISECOND
        stream.codec_context.options = _ENCODERS.get(codec, {})
        if stretch is not None:
            stream.codec_context.sample_aspect_ratio = stretch
        if rotation:
            stream.set_display_rotation(rotation)
        for seconds, picture in pairs:
            given = layout if picture.dtype == np.uint16 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), given)
            frame.pts, frame.time_base = round(seconds * 1000), MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def uneven(seconds, steps=(0.04, 0.07, 0.15)):
    """Times from 0 in steps that vary, as those of a camera that waits for light."""
    time, count = 0.0, 0
    while time < seconds:
        yield round(time, 3)
        time += steps[count % len(steps)]
        count += 1


def plain(level, size=(64, 48)):
    return np.full((size[1], size[0], 3), level, np.uint8)
