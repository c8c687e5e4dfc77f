"""Who a process is, from what torchrun, deepspeed or srun put into its environment."""

import pytest
from omni2vec.launch.place import Place, environment, first_host, outside
from omni2vec.launch.words import RecipeError

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "gpu[07-09,12],login1",
}


@pytest.mark.parametrize("env", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}])
def test_alone_is_no_place(env):
    assert outside(env) is None


def test_a_batch_script_is_one_process_whatever_its_job_asks_for():
    assert outside({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "77"}) is None


def test_deepspeed_and_torchrun_set_torchs_variables():
    assert outside(TORCH) == Place(3, 4, 1, 1, "gpu1", 29500)


def test_torchruns_own_store_is_met_under_the_number_of_its_try():
    env = {**TORCH, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "x"}
    place = outside({**env, "TORCHELASTIC_RESTART_COUNT": "2"})
    assert place.served and place.name == "x/2"


def test_srun_is_understood(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no scontrol
    assert outside(SLURM) == Place(9, 16, 1, 8, "gpu07", 10_000 + 77 * 16 + 2)


def test_torchs_variables_go_before_slurms():
    assert outside({**SLURM, **TORCH}).address == "gpu1"


def test_half_a_place_is_an_error_that_names_the_rest():
    with pytest.raises(RecipeError, match="RANK, MASTER_PORT are not set"):
        outside({"WORLD_SIZE": "2", "MASTER_ADDR": "a"})
    with pytest.raises(RecipeError, match="SLURM_PROCID is not set"):
        outside({name: value for name, value in SLURM.items() if name != "SLURM_PROCID"})


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
def test_what_is_no_number_is_named(name):
    with pytest.raises(RecipeError, match=f"{name}='two': not a whole number"):
        outside({**TORCH, name: "two"})


@pytest.mark.parametrize(
    "name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "MASTER_PORT"]
)
def test_what_is_no_number_of_slurms_is_named(name):
    with pytest.raises(RecipeError, match=f"{name}='two': not a whole number"):
        outside({**SLURM, "MASTER_ADDR": "gpu7", name: "two"})


@pytest.mark.parametrize("rank", ["-1", "4"])
def test_a_rank_outside_of_the_world_is_refused(rank):
    with pytest.raises(RecipeError, match=f"RANK={rank} with WORLD_SIZE=4: expected 0 to 3"):
        outside({**TORCH, "RANK": rank})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu7", "gpu7"), ("gpu[07-09,12],b1", "gpu07"), ("a,b", "a"), ("r[1,3]n-x", "r1n-x"), ("a-b-3", "a-b-3")],
)
def test_the_first_host_of_a_node_list(nodes, host, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert first_host(nodes) == host


def test_a_ranks_environment_has_torchs_variables_and_none_of_torchruns():
    env = environment(
        Place(3, 4, 1, 2, "gpu1", 29500), "run/train/1", {"TORCHELASTIC_USE_AGENT_STORE": "True", "A": "b"}
    )
    assert {**TORCH, "OMNI2VEC_BOARD": "run/train/1", "A": "b"}.items() <= env.items()
    assert not any(name.startswith("TORCHELASTIC") for name in env) and int(env["OMP_NUM_THREADS"]) >= 1


def test_a_number_of_threads_that_was_asked_for_stays():
    assert environment(Place(0, 2, 0, 2, "a", 1), "", {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"
