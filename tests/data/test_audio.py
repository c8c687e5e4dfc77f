"""Sounds: lengths from headers, samples as the references have them, limits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from omni2vec.data.parts import audio
from omni2vec.data.types import Audio, Blob, DataError

from .samples import wav


def sine(hertz: float, rate: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def test_a_wav_has_the_seconds_and_rate_of_its_header() -> None:
    data = wav(np.zeros((4410, 2)), 22_050, channels=2)
    assert audio.probe(Blob(data), "x") == Audio(Blob(data), 0.2, 22_050)


def test_probing_a_file_reads_its_part_of_it(tmp_path: Path) -> None:
    data = wav(np.zeros(80), 8000)
    (tmp_path / "a").write_bytes(b"before" + data + b"behind")
    blob = Blob(path=str(tmp_path / "a"), offset=6, length=len(data))
    assert audio.probe(blob, "x").seconds == 0.01


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_samples_of_every_width_equal_soundfile(subtype: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    values = np.random.default_rng(0).uniform(-1, 1, (500, 2))
    file = io.BytesIO()
    soundfile.write(file, values, 16_000, format="WAV", subtype=subtype)
    sound = audio.probe(Blob(file.getvalue()), "x")
    file.seek(0)
    reference = soundfile.read(file, dtype="float32")[0].mean(axis=1)
    torch.testing.assert_close(audio.decode(sound, "x", 16_000), torch.from_numpy(reference), rtol=0, atol=1e-6)


def test_flac_is_read_by_soundfile() -> None:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, sine(440, 8000, 0.5), 8000, format="FLAC")
    sound = audio.probe(Blob(file.getvalue()), "x")
    assert (sound.seconds, sound.rate) == (0.5, 8000)
    torch.testing.assert_close(
        audio.decode(sound, "x", 8000), torch.from_numpy(sine(440, 8000, 0.5)).float(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("rate", "to"), [(8000, 16_000), (44_100, 16_000), (16_000, 16_000), (22_050, 24_000), (7999, 16_000)]
)
def test_a_resampled_tone_is_the_tone_at_the_new_rate(rate: int, to: int) -> None:
    out = audio.resample(torch.from_numpy(sine(440, rate, 0.5)).float(), rate, to)
    expected = torch.from_numpy(sine(440, to, 0.5)).float()
    assert abs(len(out) - len(expected)) <= 2  # half a second of an odd rate is no whole number of samples
    expected = torch.from_numpy(sine(440, to, 0.6)).float()[: len(out)]
    inside = slice(to // 50, -to // 50)  # the filter sees silence beyond either end
    torch.testing.assert_close(out[inside], expected[inside], rtol=0, atol=2e-3)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    out = audio.resample(torch.from_numpy(sine(7000, 16_000, 0.5)).float(), 16_000, 8000)
    assert out[400:-400].abs().max() < 2e-3


def test_a_decoded_length_is_the_rounded_up_share() -> None:
    sound = audio.probe(Blob(wav(np.zeros(1001), 8000)), "x")
    assert len(audio.decode(sound, "x", 3000)) == 376  # 375.375


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"RIFF1234WAVEnonsense", "no sound libsndfile can read"),
        (b"", "no sound libsndfile can read"),
        (wav(np.zeros(1000), 8000)[:500], "was cut short"),
        (wav(np.zeros(1000), 8000)[:30], "cannot be read"),
        (wav(np.zeros(0), 8000), "no length"),
        (wav(np.zeros(10), 20), "limits"),
        (wav(np.zeros(1000), 800_000), "limits"),
    ],
)
def test_a_bad_sound_is_an_error_that_names_where(data: bytes, message: str) -> None:
    pytest.importorskip("soundfile")
    with pytest.raises(DataError, match=f"here: .*{message}"):
        audio.probe(Blob(data), "here")


def test_a_sound_beyond_six_hours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MAX_SECONDS", 0.5)
    with pytest.raises(DataError, match="a sound of 1 s at 8,000 Hz"):
        audio.probe(Blob(wav(np.zeros(8000), 8000)), "here")


def test_damaged_bytes_give_a_data_error_or_samples() -> None:
    data, generator = bytearray(wav(sine(440, 8000, 0.05), 8000)), np.random.default_rng(0)
    for _ in range(300):
        damaged = data.copy()
        damaged[int(generator.integers(60))] ^= int(generator.integers(1, 256))
        try:
            sound = audio.probe(Blob(bytes(damaged)), "x")
            assert torch.isfinite(audio.decode(sound, "x", sound.rate)).all()
        except DataError:
            pass
