"""Addresses of shards elsewhere: a URL or "pipe:command". They may hold tokens, which nobody is told."""

from __future__ import annotations

import re

_SECRET = r"(?:token|secret|password|passwd|api-?_?key|access-?_?key|credential)"
_SECRETS = (
    (r"(://)[^/@\s'\"]+@", r"\1***@"),
    (r"([?&][^=&\s'\"#]+)=[^&\s'\"#]*", r"\1=***"),
    (r"(?i)(authorization\s*[:=]\s*)[^'\"\n]+", r"\1***"),
    (r"(?i)(\b(?:bearer|basic)\s+)[^\s'\"]+", r"\1***"),
    (rf"(?i)([\w-]*{_SECRET}[\w-]*\s*[:=]\s*|--[\w-]*{_SECRET}[\w-]*\s+)[^\s'\"&]+", r"\1***"),
    (r"(\s(?:-u|--user|--proxy-user)[ =]?)[^\s'\"]+", r"\1***"),
)
_SIGNED = r"(?i)([?&](?:x-(?:amz|goog)-[\w-]+|signature|sig|expires|policy|key-pair-id|\w*token)=)[^&\s'\"#]*"


def is_remote(address: str) -> bool:
    return address.startswith("pipe:") or re.match(r"[A-Za-z][\w+.-]*://", address) is not None


def redacted(text: str) -> str:
    """An address, or a message with addresses in it, without passwords, tokens and values of queries."""
    for pattern, instead in _SECRETS:
        text = re.sub(pattern, instead, text)
    return text


def unsigned(address: str) -> str:
    """The address without what changes each time that it is signed: it names the same files."""
    return re.sub(_SIGNED, r"\1", address)
