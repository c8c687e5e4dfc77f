"""Tunes of a few tones, by instrument, pitch, melody, tempo and rhythm, as 16-bit WAV through the standard library."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from ..types import Audio, Blob, Item, digest
from .compositions import Split, pairs
from .dice import Dice
from .vocabulary import MELODIES, NUMBERS, PITCHES, RHYTHMS, TEMPOS

RATE = 8000  # Hz
HERTZ = {"low": 165.0, "middle": 330.0, "high": 660.0}  # of the first tone
SEMITONES = {"rising": 2, "falling": -2, "steady": 0}  # from tone to tone
SECONDS = {"slow": 0.32, "fast": 0.16}  # from tone to tone, in the mean
BEATS = {"even": (1.0, 1.0), "galloping": (1.45, 0.55)}  # of SECONDS, in turn
Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Tune:
    """`look` seeds what no text speaks of: loudness and a detuning of up to a third of a semitone."""

    count: str
    tempo: str
    pitch: str
    instrument: str
    melody: str
    rhythm: str
    look: int

    def texts(self) -> tuple[str, ...]:
        """Every sentence that describes it."""
        tones = f"{self.count} {self.tempo} {self.pitch} {self.instrument} tones"
        return f"{tones}, {self.melody} in {self.rhythm} steps", f"a {self.melody} {self.rhythm} tune of {tones}"

    @property
    def id(self) -> str:
        return digest("tune", self.texts()[0])


def any_tune(dice: Dice, split: Split) -> Tune:
    count, instrument = dice.pick(pairs("sounds", split))
    tempo, pitch, melody, rhythm = (dice.pick(w) for w in (TEMPOS, PITCHES, MELODIES, RHYTHMS))
    return Tune(count, tempo, pitch, instrument, melody, rhythm, dice.below(1 << 30))


def item(tune: Tune) -> Item:
    return Item((wav(sound(tune)),), tune.id)


def sound(tune: Tune) -> Samples:
    """The tune as samples in [-1, 1] at RATE."""
    dice = Dice("look", tune.look)
    loudness, hertz = dice.between(0.5, 0.8), HERTZ[tune.pitch] * 2 ** dice.between(-1 / 36, 1 / 36)
    tones = []
    for k in range(NUMBERS.index(tune.count) + 1):
        length = round(SECONDS[tune.tempo] * BEATS[tune.rhythm][k % 2] * RATE)
        frequency = hertz * 2 ** (k * SEMITONES[tune.melody] / 12)
        tones.append(_tone(PARTIALS[tune.instrument], frequency, length, tune.instrument == "bell"))
    return loudness * np.concatenate(tones)


def wav(samples: Samples) -> Audio:
    file = BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return Audio(Blob(file.getvalue()), len(samples) / RATE, RATE)


PARTIALS: dict[str, tuple[tuple[float, float], ...]] = {  # (multiple of the tone's frequency, strength)
    "flute": ((1.0, 1.0), (2.0, 0.12)),
    "organ": ((1.0, 1.0), (2.0, 0.7), (3.0, 0.4), (4.0, 0.5)),
    "bell": ((1.0, 1.0), (2.76, 0.6), (5.4, 0.35)),
    "buzzer": tuple((float(n), 1 / n) for n in range(1, 16, 2)),
}


def _tone(partials: tuple[tuple[float, float], ...], frequency: float, length: int, rings: bool) -> Samples:
    """One tone and the silence behind it. Partials close to half the rate are left out, since they would alias."""
    t = np.arange(length) / RATE
    total = sum(strength for _, strength in partials)
    waves = (s * np.sin(2 * np.pi * f * frequency * t) for f, s in partials if f * frequency < 0.45 * RATE)
    seconds = length / RATE
    attack = np.minimum(t / 0.006, 1)
    envelope: Samples = attack * (np.exp(-t * 12) if rings else np.clip((0.8 * seconds - t) / 0.02, 0, 1))
    result: Samples = np.sum(list(waves), axis=0) / total * envelope
    return result
