"""Resuming: to the bit from any ranks on any other; a checkpoint that is damaged, old or another model's is refused."""

import json
import random
from dataclasses import asdict, fields

import pytest
import torch
from omni2vec.data.types import DataError
from omni2vec.train import parts, resume
from omni2vec.train.adapt import Seen
from omni2vec.train.leave import Left, together
from omni2vec.train.resume import State, existing, load, path_of, prune
from omni2vec.train.snapshot import Saver

from .shares import MOMENTS, Share, net, on_ranks, whole


def save(out, size=1, steps=1, trained=1, **settings):
    """Checkpoint `steps`, written by `size` ranks after `trained` updates."""

    def one(group):
        engine = Share(net(**settings), group.rank, size).train(trained)
        with Saver(engine, out, group, keep=9, base="model-a") as saver:
            saver.save(State(step=steps, scores={steps: 0.5}))

    assert on_ranks(size, one) == [None] * size
    return path_of(out, steps)


@pytest.mark.parametrize(("wrote", "reads"), [(1, 1), (2, 1), (1, 2), (2, 3), (5, 2), (3, 8)])
def test_what_any_ranks_saved_any_others_go_on_with_to_the_bit(tmp_path, wrote, reads):
    folder = save(tmp_path, wrote, steps=3, trained=3)
    shares = [Share(net(seed=1), r, reads) for r in range(reads)]
    states = on_ranks(reads, lambda group: load(shares[group.rank], folder, group))
    assert states == [State(step=3, scores={3: 0.5})] * reads
    resumed, through = whole(shares).train(2, first=3), Share(net()).train(5)
    for a, b in zip(resumed.net.parameters(), through.net.parameters(), strict=True):
        assert torch.equal(a, b)
        for kind in (*MOMENTS, "step"):
            assert torch.equal(resumed.optimizer.state[a][kind], through.optimizer.state[b][kind])


def test_any_range_is_read_across_the_borders_of_parts(tmp_path):
    folder = save(tmp_path, 4)
    found = resume.opened(folder).parts
    engine, draw = Share(net()).train(1), random.Random(0)
    for name, p in engine.net.named_parameters():
        flat = engine.optimizer.state[p]["exp_avg"].flatten()
        for _ in range(20):
            start, stop = sorted(draw.choices(range(p.numel() + 1), k=2))
            assert torch.equal(found.read(name, "exp_avg", start, stop), flat[start:stop])
        with pytest.raises(DataError, match=f"exp_avg of {name} has no element {p.numel()}"):
            found.read(name, "exp_avg", 0, p.numel() + 1)


def test_moments_that_were_never_saved_are_missed_by_a_key_error(tmp_path):
    found = resume.opened(save(tmp_path, trained=0)).parts
    assert found.read("scale", "weight", 0, 1) == torch.ones(1)
    with pytest.raises(KeyError):
        found.read("scale", "exp_avg", 0, 1)


def damage_missing(part):
    part.unlink()


def damage_cut(part):
    part.write_bytes(part.read_bytes()[:-4])


def damage_flipped(part):
    raw = bytearray(part.read_bytes())
    raw[-3] ^= 1
    part.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_missing, "part-00001-of-00003.safetensors of .* is missing"),
        (damage_cut, r"part-00001-of-00003.safetensors has [\d,]+ bytes, [\d,]+ were written"),
        (damage_flipped, "part-00001-of-00003.safetensors is not what was written: its digest is another"),
    ],
)
def test_a_damaged_part_is_named_on_one_rank_and_all_leave(tmp_path, damage, says):
    save(tmp_path)
    folder = save(tmp_path, 3, steps=2)
    damage(folder / "part-00001-of-00003.safetensors")
    shares = [Share(net(seed=1), r, 2) for r in range(2)]
    first, second = on_ranks(2, lambda group: load(shares[group.rank], folder, group))
    assert isinstance(first, DataError)
    with pytest.raises(DataError, match=f"{says}; remove that folder to resume from step-00000001"):
        raise first
    assert isinstance(second, Left)
    assert not any(hasattr(s, "got") for s in shares)


def test_parts_of_a_save_that_do_not_make_a_whole_are_refused(tmp_path):
    folder = save(tmp_path, 2)
    record = json.loads((folder / "state.json").read_text())
    record["parts"] = record["parts"][:1]
    (folder / "state.json").write_text(json.dumps(record))
    (folder / "part-00000-of-00002.safetensors").rename(folder / "part-00000-of-00001.safetensors")
    with pytest.raises(DataError, match=r"exp_avg of first.bias has 7 elements, of which the parts lack those from 3"):
        load(Share(net()), folder)


def test_a_checkpoint_of_another_model_names_the_first_difference_and_how_many(tmp_path):
    folder = save(tmp_path, 2)
    odd = net(width=9)
    odd.second.weight.requires_grad_(False)
    with pytest.raises(DataError, match=r"first.bias is \(7,\) there, \(9,\) here, and 2 more of 4 parameters differ"):
        load(Share(odd), folder)
    lacking = net()
    del lacking.scale
    lacking.added = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(DataError, match=r"added is not trained there, \(2,\) here, and 1 more of 4"):
        load(Share(lacking), folder)


def test_a_stage_that_starts_from_another_model_is_refused(tmp_path):
    folder = save(tmp_path)
    assert load(Share(net()), folder, base="model-a").step == 1
    with pytest.raises(DataError, match="its stage started from a model with digest model-a, this one from model-b"):
        load(Share(net()), folder, base="model-b")


def test_a_checkpoint_of_an_older_format_says_so(tmp_path):
    folder = path_of(tmp_path, 4)
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"")
    state = asdict(State(step=4))
    del state["scores"]
    (folder / "state.json").write_text(json.dumps(state))
    assert existing(tmp_path) == [folder]
    with pytest.raises(DataError, match=r"was written by an older omni2vec \(format 1; this one reads 2\)"):
        load(Share(net()), folder)


def test_the_state_comes_back_equal_with_its_scores(tmp_path):
    state = State(
        step=7, skipped_steps=1, skipped_sources={"a": 2}, skipped_keys=["a/1", "a/2"], best=0.75, best_step=5,
        without_gain=1, memory="vectors", chunk_tokens=512, ranks=2, footprint=(3.5, 1.0), budgets=(1, 2),
        scores={5: 0.75, 7: 0.7}, healthiest={"accuracy": 0.5}, loss_scale=(1024.0, 3),
        lacking={"b": 4}, mixer=Seen([(3, 5)], {"a": 0.5}, {"a": 2.0}, {"a": 1.5}, {"a": 1}),
    )  # fmt: skip
    plain = {f.name for f in fields(State) if getattr(state, f.name) == getattr(State(), f.name)}
    assert plain == {"stopped"}  # every other field is put to the test
    with Saver(Share(net()).train(1), tmp_path) as saver:
        saver.save(state)
    assert load(Share(net()), path_of(tmp_path, 7)) == state


@pytest.mark.parametrize(
    ("keep", "keep_best", "best_step", "left"),
    [
        (2, 0, 0, [5, 6]),
        (1, 1, 0, [3, 6]),
        (1, 2, 0, [2, 3, 6]),
        (1, 0, 2, [2, 6]),  # the best by validation, whose gain was asked to be larger
        (0, 1, 0, [3, 6]),
        (9, 1, 0, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_and_the_best_scored_are_kept(tmp_path, keep, keep_best, best_step, left):
    for step in range(1, 7):
        path_of(tmp_path, step).mkdir(parents=True)
        (path_of(tmp_path, step) / "state.json").write_text("{}")
    scores = {1: 0.1, 2: 0.8, 3: 0.9, 4: 0.2, 7: 0.95}  # the seventh was scored and not saved
    state = State(step=6, scores=scores, best=0.8 if best_step else None, best_step=best_step)
    prune(tmp_path, keep, state, keep_best)
    assert existing(tmp_path) == [path_of(tmp_path, s) for s in left]
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(left)
    assert resume.best_steps(state, 2) == [7, 3]


def test_a_new_start_removes_what_a_kill_left(tmp_path):
    folder = save(tmp_path)
    for name in ("step-00000002.1234abcd.partial", "step-00000000.gone"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "state.json").write_text("{}")
    assert existing(tmp_path) == [folder]
    Saver(Share(net()), tmp_path)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_an_error_of_one_rank_is_said_by_rank_0_and_the_others_leave():
    def one(group):
        def work():
            if group.rank == 2:
                raise OSError("the disk is gone")
            return group.rank

        return together(group, work)

    first, *others = on_ranks(3, one)
    assert (type(first), str(first)) == (DataError, "rank 2: the disk is gone")
    assert [type(o) for o in others] == [Left, Left]
    assert on_ranks(2, lambda group: together(group, lambda: group.rank)) == [0, 1]


def test_a_part_is_a_plain_safetensors_file(tmp_path):
    from safetensors.torch import load_file

    file = save(tmp_path, 2) / parts.name_of(1, 2)
    found, engine = load_file(file), Share(net(), 1, 2).train(1)
    assert found.keys() == {f"{p.kind}|{p.name}|{p.start}" for p in engine.pieces()}
    assert all(torch.equal(found[f"{p.kind}|{p.name}|{p.start}"], p.values) for p in engine.pieces())
