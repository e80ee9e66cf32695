"""The start page: a person can try the service by hand. One file of our own, nothing from elsewhere."""

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).parent / "ui" / "index.html"


@dataclass(frozen=True)
class Page:
    """A page and the headers it goes with."""

    text: str
    headers: dict[str, str]


def start_page() -> Page:
    """The page; its policy lets the browser run what is written in it, and ask nobody but this service."""
    text = _FILE.read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        f"script-src {_hashes('script', text)}",
        f"style-src {_hashes('style', text)}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return Page(text, {"content-security-policy": "; ".join(policy), "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"})


def _hashes(tag: str, text: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
