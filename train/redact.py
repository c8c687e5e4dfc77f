"""Keys and tokens, kept out of every log: by the name of a field, by the form of a value, by the environment's own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REMOVED = "(removed)"
_LEAST = 8  # characters: a shorter value of the environment is too common a word to look for

_NAME = re.compile(
    r"(^|_)(token|secret|password|passwd|passphrase|api_?key|access_key|secret_key|private_key|credentials?|"
    r"auth|authorization|cookie)$",
    re.IGNORECASE,
)
# Tokens that say by their first letters whose they are, authorization headers, and passwords inside an address.
_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[opsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|wandb_v\d_\w{16,}|local-[0-9a-f]{40}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,})"
    r"|(?<=Bearer )[\w.~+/=-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def without_secrets(value: Any) -> Any:
    """A record as it may leave the machine: no field whose name speaks of a secret, no value that is one."""
    return _walk(value, of_environment())


def of_environment() -> tuple[str, ...]:
    """Values of this process's variables whose names speak of a secret, the longest first."""
    found = {v for k, v in os.environ.items() if is_secret(k) and len(v) >= _LEAST}
    return tuple(sorted(found, key=len, reverse=True))


def is_secret(name: str) -> bool:
    """Whether a field or variable of this name holds a secret: hf_token and apiKey do, max_tokens does not."""
    return bool(_NAME.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)))


def _walk(value: Any, known: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {_clean(str(k), known): _walk(v, known) for k, v in value.items() if not is_secret(str(k))}
    if isinstance(value, list | tuple):
        return [_walk(v, known) for v in value]
    return _clean(value, known) if isinstance(value, str) else value


def _clean(text: str, known: tuple[str, ...]) -> str:
    for secret in known:
        text = text.replace(secret, REMOVED)
    return _VALUE.sub(REMOVED, text)
