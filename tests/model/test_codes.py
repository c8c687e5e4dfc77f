"""Codes of vectors: what they hold, that products of them are exact, and how near a fitted step comes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omni2vec.model.codes import binary, calibrated, floats, int8, levels, signs, similar, step_at, top
from torch import Tensor


def vectors(count: int = 20, dim: int = 64, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_int8_rounds_to_the_nearest_code_and_cuts_at_both_ends() -> None:
    given = torch.tensor([[0.0, 0.26, -0.26, 1.24, -0.75, 99.0, -99.0, 63.5]])
    codes = int8(given, 0.5)
    assert codes.dtype == torch.int8
    assert codes.tolist() == [[0, 1, -1, 2, -2, 127, -127, 127]]  # a half goes to the even code
    assert floats(codes, 0.5).tolist() == [[0, 0.5, -0.5, 1, -1, 63.5, -63.5, 63.5]]


@pytest.mark.parametrize(("bits", "most"), [(2, 1), (4, 7), (8, 127)])
def test_codes_of_fewer_bits_are_cut_sooner(bits: int, most: int) -> None:
    assert top(bits) == most == int(int8(torch.tensor([[1e9]]), 1.0, bits))
    assert int(int8(torch.tensor([[-1e9]]), 1.0, bits)) == -most


def test_no_number_is_further_from_its_code_than_half_a_step() -> None:
    x = vectors()
    step = float(x.abs().max()) / 127
    assert float((floats(int8(x, step), step) - x).abs().max()) <= step * (0.5 + 1e-5)


def test_what_is_no_number_stays_that_in_training() -> None:
    assert levels(torch.tensor([[float("nan")]]), 0.1).isnan().all()


@pytest.mark.parametrize("dim", [8, 1024, 1030, 4096])
def test_products_of_int8_codes_are_exact(dim: int) -> None:
    draw = torch.Generator().manual_seed(dim)
    a, b = (torch.randint(-127, 128, (n, dim), generator=draw, dtype=torch.int8) for n in (5, 7))
    a[0], b[0] = 127, 127  # the largest sum there can be
    found = similar(a, b)
    assert found.dtype == torch.int32
    assert found.tolist() == (a.long() @ b.long().T).tolist()
    with torch.autocast("cpu", torch.bfloat16):
        assert similar(a, b).tolist() == found.tolist()


@pytest.mark.parametrize("dim", [8, 1024, 4096])
def test_products_of_binary_codes_count_the_bits_that_differ(dim: int) -> None:
    a, b = vectors(5, dim, 1), vectors(7, dim, 2)
    codes = binary(a), binary(b)
    assert codes[0].shape == (5, dim // 8) and codes[0].dtype == torch.uint8
    differ = [[bin(int.from_bytes(bytes(x ^ y))).count("1") for y in codes[1].numpy()] for x in codes[0].numpy()]
    assert similar(*codes).tolist() == (dim - 2 * np.array(differ)).tolist()
    assert similar(*codes).tolist() == (signs(a) @ signs(b).T).int().tolist()


def test_bits_stand_as_numpy_packs_them() -> None:
    x = vectors()
    x[0, :3] = torch.tensor([0.0, -0.0, 1e-30])  # zero has no sign: its bit is not set
    assert np.array_equal(binary(x).numpy(), np.packbits(x.numpy() > 0, axis=1))
    assert signs(x[0, :3]).tolist() == [-1, -1, 1]


def test_the_order_by_codes_is_the_order_by_what_they_stand_for() -> None:
    q, d = vectors(4), vectors(50, seed=1)
    step = float(calibrated(q, d))
    codes = similar(int8(q, step), int8(d, step))
    exact = floats(int8(q, step), step, torch.float64) @ floats(int8(d, step), step, torch.float64).T
    torch.testing.assert_close(codes.double() * step**2, exact, rtol=1e-12, atol=1e-12)
    assert float((exact - q.double() @ d.double().T).abs().max()) < 0.01


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_fitted_step_has_the_least_error_of_those_around_it(bits: int) -> None:
    x = vectors(500)

    def error(step: float) -> float:
        return float((floats(int8(x, step, bits), step) - x).square().sum())

    step = float(calibrated(x, bits=bits))
    assert step > 0 and error(step) < min(error(step * 2), error(step / 2), error(float(x.abs().max()) / top(bits) * 3))
    assert error(step) / len(x) < 4.0**-bits * 6  # of a squared length of 1: a bit is worth a factor of four


def test_a_step_is_fitted_to_rows_however_many_and_to_none() -> None:
    many = vectors(9000, 256)
    assert abs(float(calibrated(many)) / float(calibrated(many[:1000])) - 1) < 0.3
    assert float(calibrated(torch.zeros(3, 8))) == float(calibrated(torch.zeros(0, 8))) == 1


def test_the_step_of_a_prefix_grows_as_its_numbers_do() -> None:
    x = vectors(2000, 256)
    whole, prefix = calibrated(x), calibrated(F.normalize(x[:, :64], dim=1))
    assert float(step_at(whole, 256, 64)) == 2 * float(whole)
    assert abs(float(prefix) / float(step_at(whole, 256, 64)) - 1) < 0.25


def test_codes_that_make_no_sense_are_refused() -> None:
    x = vectors(2, 12)
    with pytest.raises(ValueError, match="binary codes of 12 dimensions; expected a multiple of 8"):
        binary(x)
    with pytest.raises(ValueError, match="codes of 9 bits; expected 2 to 8"):
        int8(x, 0.1, bits=9)
    with pytest.raises(ValueError, match="step=0; expected a number above 0"):
        int8(x, 0)
    with pytest.raises(ValueError, match=r"torch.int8 \(2, 12\) and torch.uint8"):
        similar(int8(x, 0.1), binary(vectors(2, 8)))
