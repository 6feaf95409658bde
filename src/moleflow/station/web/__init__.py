"""The station over HTTP: routes, what they take and give, and who may ask. Nothing below imports it."""

from .access import Access, Token, new_token, read_tokens
from .app import create_app

__all__ = ["Access", "Token", "create_app", "new_token", "read_tokens"]
