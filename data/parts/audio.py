"""Sounds: encoded bytes -> length and rate (header only), mono samples at the rate that is asked for.

PCM WAV is read by the standard library, any other container by soundfile (the extra "audio").
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, inf
from typing import TYPE_CHECKING, Any, BinaryIO

from ..types import Audio, Blob, DataError
from . import window

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Samples = np.ndarray[Any, np.dtype[np.float32]]

MAX_SECONDS = 6 * 3600.0  # as for clips
MAX_VALUES = 1 << 29  # samples of all channels after decoding: 2 GiB as float32
RATES = (100, 768_000)  # Hz
ZEROS = 16  # zero crossings of the resampling filter on either side
ROLLOFF = 0.95  # its cut-off, as a share of the lower Nyquist frequency
_BLOCK = 1 << 16  # outputs computed at a time
_READ = 1 << 20  # frames decoded at a time


def probe(blob: Blob, where: str) -> Audio:
    """Seconds and rate. Reads headers only. Raises DataError if it is no sound, cut short, or beyond the limits."""
    with _opened(blob, where) as sound:
        return Audio(blob, sound.frames / sound.rate, sound.rate)


def decode(audio: Audio, where: str, rate: int, seconds: float = inf) -> Tensor:
    """Samples (n,) float32 in -1 to 1 at `rate` Hz; channels are averaged. n = ceil(frames * rate / own rate).

    With `seconds`, the beginning of that length: to the bit what the whole would begin with, and no more of the sound
    is read and decoded than that takes. Raises DataError.
    """
    import torch

    with _opened(audio.blob, where) as sound:  # the limits hold for bytes that changed since packing too
        whole = -(-sound.frames * rate // sound.rate)
        count = whole if seconds >= whole / rate else max(1, round(seconds * rate))
        needed = sound.frames if count == whole else min(sound.frames, _reach(count, sound.rate, rate))
        mono, at = torch.empty(needed), 0
        while at < needed:
            values = sound.read(min(_READ, needed - at))
            if not len(values):
                raise DataError(f"{where}: {at:,} of {sound.frames:,} samples, then it breaks off; replace or drop it")
            mono[at : at + len(values)] = torch.from_numpy(values).mean(dim=1)
            at += len(values)
        return resample(mono, sound.rate, rate)[:count]


def _reach(count: int, rate: int, to: int) -> int:
    """How many samples at `rate` the first `count` at `to` depend on: the filter looks ahead."""
    if rate == to:
        return count
    factor = gcd(rate, to)
    width = _filters(rate // factor, to // factor).shape[1] // 2
    return (count - 1) * rate // to + width + 2


def resample(samples: Tensor, rate: int, to: int) -> Tensor:
    """(n,) at `rate` Hz -> (ceil(n * to / rate),) at `to` Hz, by a windowed sinc in polyphase form.

    Output i stands at input time i * rate / to. With common factors removed its filter depends on i modulo `to` only.
    """
    import torch

    if rate == to:
        return samples
    factor = gcd(rate, to)
    step, phases = rate // factor, to // factor
    filters = _filters(step, phases)
    width = filters.shape[1] // 2
    windows = torch.nn.functional.pad(samples, (width, width + 1)).unfold(0, filters.shape[1], 1)
    blocks = []
    for places in torch.arange(-(-samples.numel() * phases // step)).split(_BLOCK):
        moments = places * step
        blocks.append((windows[moments // phases] * filters[moments % phases]).sum(dim=1))
    return torch.cat(blocks)


@lru_cache(maxsize=16)
def _filters(step: int, phases: int) -> Tensor:
    """(phases, taps) float32. Row r is for an output that stands r / phases input samples behind an input sample."""
    import torch

    cut = min(1.0, phases / step) * ROLLOFF  # in half-cycles per input sample
    width = int(-(-ZEROS // cut))
    taps = torch.arange(-width, width + 1, dtype=torch.float64)
    distance = (taps - torch.arange(phases, dtype=torch.float64)[:, None] / phases) * cut
    window = torch.cos(distance.clamp(-ZEROS, ZEROS) * torch.pi / ZEROS / 2) ** 2
    filters = torch.sinc(distance) * window
    # A constant stays that constant whatever the phase.
    return (filters / filters.sum(dim=1, keepdim=True)).float()


@dataclass(frozen=True)
class _Sound:
    """An opened sound. read(n): the next n frames, (n, channels) float32; fewer at its end."""

    frames: int
    rate: int
    channels: int
    read: Callable[[int], Samples]


@contextmanager
def _opened(blob: Blob, where: str) -> Iterator[_Sound]:
    """Reads the header, holds it against the limits, and gives the samples as they are asked for."""
    with window.opened(blob) as file:
        pcm = _is_pcm_wave(file.read(4096))
        file.seek(0)
        with (_wave if pcm else _other)(file, where) as sound:
            frames, rate, channels = sound.frames, sound.rate, sound.channels
            if not RATES[0] <= rate <= RATES[1] or frames / rate > MAX_SECONDS or frames * channels > MAX_VALUES:
                raise DataError(
                    f"{where}: a sound of {frames / max(rate, 1):,.0f} s at {rate:,} Hz in {channels} channels; limits "
                    f"{MAX_SECONDS:,.0f} s, {RATES[0]:,} to {RATES[1]:,} Hz, {MAX_VALUES:,} values: cut it before "
                    "packing"
                )
            if frames <= 0:
                raise DataError(f"{where}: a sound of no length; replace or drop it")
            yield sound


def _is_pcm_wave(head: bytes) -> bool:
    """RIFF/WAVE whose format chunk says PCM (1), or extensible (0xFFFE) with PCM behind it."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return False
    at = head.find(b"fmt ", 12, 4096)
    kind = head[at + 8 : at + 10]
    return at > 0 and (kind == b"\x01\0" or (kind == b"\xfe\xff" and head[at + 32 : at + 34] == b"\x01\0"))


@contextmanager
def _wave(file: BinaryIO, where: str) -> Iterator[_Sound]:
    length = window.size(file)
    try:
        sound = wave.open(file, "rb")  # noqa: SIM115  (closed below)
        width, rate = sound.getsampwidth(), sound.getframerate()
        if width not in (1, 2, 3, 4) or rate <= 0:
            raise wave.Error(f"{8 * width} bits at {rate} Hz")
    except (wave.Error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{where}: a WAV that cannot be read ({error}); replace or drop it") from error
    with sound:
        frames, channels = sound.getnframes(), sound.getnchannels()
        if frames * channels * width > length:
            raise DataError(
                f"{where}: the header speaks of {frames * channels * width:,} bytes of sound and the file has "
                f"{length:,}; it was cut short: replace or drop it"
            )
        yield _Sound(frames, rate, channels, lambda count: _values(sound.readframes(count), width, channels))


def _values(raw: bytes, width: int, channels: int) -> Samples:
    """Little-endian integers of `width` bytes -> (n, channels) float32 in -1 to 1."""
    import numpy as np

    raw = raw[: len(raw) // (width * channels) * width * channels]
    if width == 1:  # the only unsigned one
        values = np.frombuffer(raw, np.uint8).astype(np.float32) - 128
    elif width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = (wide.view("<i4")[:, 0] >> 8).astype(np.float32)
    else:
        values = np.frombuffer(raw, f"<i{width}").astype(np.float32)
    return (values / np.float32(2 ** (8 * width - 1))).reshape(-1, channels)


@contextmanager
def _other(file: BinaryIO, where: str) -> Iterator[_Sound]:
    soundfile, length = _soundfile(where), window.size(file)

    def tried(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise DataError(
                f"{where}: {length:,} bytes that are no sound libsndfile can read ({error}); replace or drop it"
            ) from error

    with tried(lambda: soundfile.SoundFile(file)) as sound:
        yield _Sound(
            int(sound.frames),
            int(sound.samplerate),
            int(sound.channels),
            lambda count: tried(lambda: sound.read(count, dtype="float32", always_2d=True)),
        )


def _soundfile(where: str) -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise DataError(f'{where}: not PCM WAV, which needs soundfile: pip install "omni2vec[audio]"') from error
    return soundfile
