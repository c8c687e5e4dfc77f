"""What the doctor finds here, and how it reads versions."""

import subprocess
import sys

import pytest
from omni2vec.launch import doctor
from omni2vec.launch.facts import environment


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.14.1+cu130", (2, 14, 1)), ("5.17.0rc1", (5, 17, 0)), ("3.0.dev2", (3, 0)), ("", ()), ("7", (7,))],
)
def test_a_version_is_its_leading_numbers(version, numbers):
    assert doctor.release(version) == numbers


@pytest.mark.parametrize(
    ("version", "good"), [("2.11.0", True), ("2.10.9", False), ("3.0.0", False), ("", False), ("2.99", True)]
)
def test_a_range_holds_its_lower_end_alone(version, good):
    assert doctor.within(version, (2, 11), (3,)) is good


def test_an_environment_that_runs_the_tests_has_no_blocker():
    findings = doctor.examine()
    assert {"Python", "torch", "torchvision", "transformers", "compiler", "disk", "threads"} <= {
        f.what for f in findings
    }
    assert [f for f in findings if f.grade == "blocker"] == []


def test_every_fault_comes_with_a_remedy():
    assert all(f.remedy for f in doctor.examine() if f.grade != "good")


def test_a_missing_torch_is_a_blocker_with_its_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda package: "")
    first = next(doctor._torch())
    assert first.grade == "blocker" and "pip install" in first.remedy


def test_the_command_prints_no_secret_and_exits_0():
    import os

    secret = "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"
    done = subprocess.run(
        [sys.executable, "-m", "omni2vec", "doctor"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_TOKEN": secret, "WANDB_API_KEY": secret},
    )
    assert done.returncode == 0, done.stdout
    assert secret not in done.stdout + done.stderr


def test_facts_hold_versions_and_no_host_or_path():
    import platform

    facts = environment()
    assert facts["omni2vec"] and facts["torch"].startswith("2.")
    text = " ".join(facts.values())
    assert platform.node() not in text and "/" not in text
