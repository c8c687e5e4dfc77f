"""Sounds: encoded bytes -> length and rate (header only), mono samples at the rate that is asked for.

PCM WAV is read by the standard library, any other container by soundfile (the extra "audio").
"""

from __future__ import annotations

import wave
from functools import lru_cache
from io import BytesIO
from math import gcd
from typing import TYPE_CHECKING, Any

from ..types import Audio, Blob, DataError

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


def probe(blob: Blob, where: str) -> Audio:
    """Seconds and rate. Reads headers only. Raises DataError if it is no sound, cut short, or beyond the limits."""
    data = blob.read()
    frames, rate, channels = _probe_wave(data, where) if _is_pcm_wave(data) else _probe_soundfile(data, where)
    if not RATES[0] <= rate <= RATES[1] or frames / rate > MAX_SECONDS or frames * channels > MAX_VALUES:
        raise DataError(
            f"{where}: a sound of {frames / max(rate, 1):,.0f} s at {rate:,} Hz in {channels} channels; limits "
            f"{MAX_SECONDS:,.0f} s, {RATES[0]:,} to {RATES[1]:,} Hz, {MAX_VALUES:,} values: cut it before packing"
        )
    if frames == 0:
        raise DataError(f"{where}: a sound of no length; replace or drop it")
    return Audio(blob, frames / rate, rate)


def decode(audio: Audio, where: str, rate: int) -> Tensor:
    """Samples (n,) float32 in -1 to 1 at `rate` Hz; channels are averaged. n = ceil(frames * rate / own rate)."""
    import torch

    data = audio.blob.read()
    probe(Blob(data), where)  # the limits hold for bytes that changed since packing too
    values, own = _decode_wave(data, where) if _is_pcm_wave(data) else _decode_soundfile(data, where)
    mono = torch.from_numpy(values).mean(dim=1)
    return resample(mono, own, rate)


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


def _is_pcm_wave(data: bytes) -> bool:
    """RIFF/WAVE whose format chunk says PCM (1), or extensible (0xFFFE) with PCM behind it."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    at = data.find(b"fmt ", 12, 4096)
    kind = data[at + 8 : at + 10]
    return at > 0 and (kind == b"\x01\0" or (kind == b"\xfe\xff" and data[at + 32 : at + 34] == b"\x01\0"))


def _probe_wave(data: bytes, where: str) -> tuple[int, int, int]:
    with _open_wave(data, where) as sound:
        frames, size = sound.getnframes(), sound.getnchannels() * sound.getsampwidth()
        if frames * size > len(data):
            raise DataError(
                f"{where}: the header speaks of {frames * size:,} bytes of sound and the file has {len(data):,}; "
                f"it was cut short: replace or drop it"
            )
        return frames, sound.getframerate(), sound.getnchannels()


def _decode_wave(data: bytes, where: str) -> tuple[Samples, int]:
    import numpy as np

    with _open_wave(data, where) as sound:
        width, channels, rate = sound.getsampwidth(), sound.getnchannels(), sound.getframerate()
        raw = sound.readframes(sound.getnframes())
    raw = raw[: len(raw) // (width * channels) * width * channels]
    if width == 1:  # the only unsigned one
        values = np.frombuffer(raw, np.uint8).astype(np.float32) - 128
    elif width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = (wide.view("<i4")[:, 0] >> 8).astype(np.float32)
    else:
        values = np.frombuffer(raw, f"<i{width}").astype(np.float32)
    return (values / np.float32(2 ** (8 * width - 1))).reshape(-1, channels), rate


def _open_wave(data: bytes, where: str) -> wave.Wave_read:
    try:
        sound = wave.open(BytesIO(data), "rb")  # noqa: SIM115  (the caller closes it)
        if sound.getsampwidth() not in (1, 2, 3, 4) or sound.getframerate() <= 0:
            raise wave.Error(f"{8 * sound.getsampwidth()} bits at {sound.getframerate()} Hz")
        return sound
    except (wave.Error, EOFError, RuntimeError, ValueError) as error:
        raise DataError(f"{where}: a WAV that cannot be read ({error}); replace or drop it") from error


def _probe_soundfile(data: bytes, where: str) -> tuple[int, int, int]:
    soundfile = _soundfile(where)
    try:
        info = soundfile.info(BytesIO(data))
    except (RuntimeError, ValueError, TypeError) as error:
        raise _unreadable(data, where, error) from error
    return int(info.frames), int(info.samplerate), int(info.channels)


def _decode_soundfile(data: bytes, where: str) -> tuple[Samples, int]:
    soundfile = _soundfile(where)
    try:
        values, rate = soundfile.read(BytesIO(data), dtype="float32", always_2d=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _unreadable(data, where, error) from error
    return values, int(rate)


def _unreadable(data: bytes, where: str, error: Exception) -> DataError:
    return DataError(
        f"{where}: {len(data):,} bytes that are no sound libsndfile can read ({error}); replace or drop it"
    )


def _soundfile(where: str) -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise DataError(f'{where}: not PCM WAV, which needs soundfile: pip install "omni2vec[audio]"') from error
    return soundfile
