"""What is a secret and what only looks like one."""

from __future__ import annotations

import pytest
from omni2vec.train.redact import is_secret, without_secrets


def test_fields_named_like_secrets_stay_at_home_and_token_counts_do_not() -> None:
    record = {"hub": {"hf_token": "x", "token": "x"}, "steps": [{"apiKey": "x", "chunk_tokens": 5}], "max_tokens": 3}
    assert without_secrets(record) == {"hub": {}, "steps": [{"chunk_tokens": 5}], "max_tokens": 3}


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN", "dbPassword", "Authorization"])
def test_names_that_speak_of_a_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["chunk_tokens", "tokens", "key", "keys", "monkey", "author", "tokenizer", "seed"])
def test_names_that_do_not(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1B2" * 8,
        "sk-" + "proj-abcdefgh12345678",
        "ghp_" + "a1B2" * 9,
        "AKIA" + "ABCD" * 4,
        "Bearer abcdef.ghijkl",
        "https://me:secretword@host/path",
    ],
)
def test_values_that_are_secrets_by_their_form(secret: str) -> None:
    found = without_secrets({"note": f"given {secret} it failed"})["note"]
    assert found.startswith("given ")
    assert found.endswith(" it failed")
    assert "(removed)" in found
    assert secret not in found


def test_what_only_resembles_a_secret_stays() -> None:
    record = {
        "digest": "0123456789abcdef" * 2,
        "model": "sk-learn",
        "url": "https://host:8080/a@b",
        "x": [1, None, 2.5],
    }
    assert without_secrets(record) == record


def test_values_of_the_environment_are_found_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER_TOKEN", "correct horse")
    monkeypatch.setenv("SHORT_TOKEN", "yes")  # too common to look for
    assert without_secrets([{"why": "said correct horse, yes"}]) == [{"why": "said (removed), yes"}]
