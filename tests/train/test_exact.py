"""Two ranks give the weights of one process with the whole batch, for every engine, memory plan and ZeRO stage."""

from pathlib import Path

import pytest

from ..ranks import run


@pytest.fixture(scope="module")
def found():
    return run(Path(__file__).parent / "exact.py", 2)


def test_three_steps_on_two_ranks_give_the_weights_of_one_process_with_the_whole_batch(found):
    cases = {name: values for name, values in found[0].items() if "troubled" not in name}
    assert {name.split(":")[0] for name in cases} == {"local", "zero 1", "zero 2", "zero 3"}
    for name, (by_norm, by_part, largest, losses) in cases.items():
        if "bf16" in name:  # packed otherwise than one process packs: rounding differs
            assert by_norm < 0.03 and by_part < 0.1 and losses < 0.03, (name, by_norm, by_part, losses)
        else:
            assert by_norm < 1e-5, (name, by_norm)
            assert by_part < 1e-4, (name, by_part)
            assert largest < 5e-5, (name, largest)
            assert losses < 1e-5, (name, losses)


@pytest.mark.parametrize("engine", ["local", "zero 2"])
def test_what_befalls_one_rank_is_known_to_both_and_costs_no_weight(found, engine):
    for rank in (0, 1):
        told = found[rank][f"{engine}: troubled"]
        assert told["embed"] == told["backward"] == "no memory"
        assert not told["finite"] and 0 < told["blame"] <= 12
        assert told["kept"] and told["then"]
