"""Addresses of shards elsewhere: a URL or "pipe:command". They may hold tokens, which nobody is told."""

from __future__ import annotations

import re

_SECRET = r"(?:token|secret|password|passwd|api-?_?key|access-?_?key|credential)"
_SECRETS = (  # (?<!\\): the quote that ends one may be escaped, in JSON
    (r"(://)[^/?#\s'\"]+@", r"\1***@"),  # up to the last @: a password may hold one
    (r"([?&][^=&\s'\"#]+)=[^&\s'\"#]*(?<!\\)", r"\1=***"),
    (r"(?i)(authorization\s*[:=]\s*)[^'\"\n]+(?<!\\)", r"\1***"),
    (r"(?i)(\b(?:bearer|basic)\s+)[^\s'\"]+(?<!\\)", r"\1***"),
    (rf"(?i)([\w-]*{_SECRET}[\w-]*\s*[:=]\s*|--[\w-]*{_SECRET}[\w-]*\s+)[^\s'\"&]+(?<!\\)", r"\1***"),
    (r"(\s(?:-u|--user|--proxy-user)[ =]?)[^\s'\"]+(?<!\\)", r"\1***"),
)
_SIGNED = r"(?i)([?&](?:x-(?:amz|goog)-[\w-]+|signature|sig|expires|policy|key-pair-id|\w*token)=)[^&\s'\"#]*"
_USERS = (  # elsewhere than on the web a user has a folder of his own
    (r"(?i)(\bhttps?://)[^/?#\s'\"]+@", r"\1"),
    (r"(://[^/:?#\s'\"@]+):[^/?#\s'\"]*@", r"\1@"),
)
# A command goes up to the quote that it began with, or to the end of its line; a URL is one word.
_IN_TEXT = re.compile(
    r"""(?<=")pipe:(?:\\.|[^"\\\n])*|(?<=')pipe:(?:\\.|[^'\\\n])*|\bpipe:[^\n]*|\b[A-Za-z][\w+.-]*://[^\s'"<>`]+"""
)


def is_remote(address: str) -> bool:
    return address.startswith("pipe:") or re.match(r"[A-Za-z][\w+.-]*://", address) is not None


def redacted(text: str) -> str:
    """An address, or a message with addresses in it, without passwords, tokens and values of queries."""
    for pattern, instead in _SECRETS:
        text = re.sub(pattern, instead, text)
    return text


def redacted_text(text: str) -> str:
    """A text (a record, a table, a card) in which every URL and "pipe:command" is `redacted`, and nothing else."""
    return _IN_TEXT.sub(lambda found: redacted(found[0]), text)


def unsigned(address: str) -> str:
    """The address without passwords, and what changes each time that it is signed: it names the same files."""
    for pattern, instead in _USERS:
        address = re.sub(pattern, instead, address)
    return re.sub(_SIGNED, r"\1", address)
