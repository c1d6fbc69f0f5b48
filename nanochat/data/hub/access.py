"""How this machine may use the hub: its address, the token of the login, and why it refuses a request."""

from __future__ import annotations

from collections.abc import Mapping

from nanochat import runtime
from nanochat.errors import PreflightError

DEFAULT_ENDPOINT = "https://huggingface.co"

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def endpoint() -> str:
    """Return the address of the hub: `HF_ENDPOINT`, or the public one."""
    return (runtime.environment("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def read_token() -> str | None:
    """Return the token from `HF_TOKEN`, else from the file that `hf auth login` writes, else None.

    A token that is about to expire is renewed over the network.

    Raises:
        PreflightError: there is a token but it cannot be read or renewed.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import OIDCError

    try:
        return get_token()
    except (OIDCError, OSError, UnicodeDecodeError) as error:
        raise PreflightError(f"the token of the hub cannot be read ({error}); {_LOG_IN}") from error


def explain_refusal(status: int, headers: Mapping[str, str], *, page: str, token: str | None) -> str | None:
    """Return why the hub refused a request and what to do, or None if its answer has another reason.

    Args:
        status: the HTTP status of the answer.
        headers: the headers of the answer.
        page: the address of the data set's page.
        token: the token that was sent, or None.
    """
    code, reason = headers.get("X-Error-Code", ""), headers.get("X-Error-Message", "")
    if reason.startswith("Invalid credentials"):
        return f"the hub does not accept the token of this machine; {_LOG_IN}"
    if code == "EntryNotFound":
        return f"the data set has no such file ({status})"
    if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
        then = "wait until its authors have granted access" if token else _LOG_IN
        return f"the data set is gated ({status}): accept its terms at {page}, then {then}"
    if code == "RepoNotFound" or status in (401, 404):
        access = "the account of your token cannot see it" if token else f"needs a login: {_LOG_IN}"
        return f"no such data set at {page} ({status}); check the name, or it is private and {access}"
    return None
