"""URLs as messages and records may hold them."""

import re


def shown(url: str) -> str:
    """A URL as messages may show it: without user, password, query and fragment, which may hold secrets."""
    # A password may hold '/', '?' or '#' unquoted: after 'user:' all goes up to the last '@'.
    credentials = r"(?:[^/?#@]*:.*@|[^/?#]*@)?"
    return re.sub(rf"^([\w+.-]+://)?{credentials}([^?#]*).*$", r"\1\2", url, flags=re.DOTALL)
