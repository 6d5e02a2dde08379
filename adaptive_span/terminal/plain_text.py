"""Make text fit to be printed and kept: nothing in it steers a terminal, and no password or token is left in it."""

import os
import re
import unicodedata

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (also the direction of text), half characters, line ends
SECRET = r"key|token|secret|passw|credential|signature"
USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
QUERY = re.compile(rf"([?&;][^=&;\s'\"]*(?:{SECRET}|sig)[^=&;\s'\"]*=)[^&;\s'\"]+", re.IGNORECASE)
SETTING = re.compile(r"(\b[A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSW)[A-Z0-9_]*=)[^\s'\"]{8,}")  # as a shell sets a variable


def printable(text: str) -> str:
    """Return text in which characters that could steer a terminal are written out; line ends stay."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in STEERING and character not in "\n\t"
        else character
        for character in text
    )


def masked(text: str) -> str:
    """Return text without passwords and tokens: those in addresses and settings, and those of this environment."""
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(SECRET, name, re.IGNORECASE) and not os.path.exists(value):
            text = text.replace(value, "***")
    for pattern, instead in ((USER, "***"), (QUERY, r"\1***"), (SETTING, r"\1***")):
        text = pattern.sub(instead, text)
    return text


def without_secrets(value: object) -> object:
    """Return plain values with every text in them masked."""
    if isinstance(value, dict):
        return {key: without_secrets(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_secrets(part) for part in value]
    return masked(value) if isinstance(value, str) else value


def shown(text: object) -> str:
    """Return text that is safe to print or log."""
    return printable(masked(str(text)))


def one_line(text: object) -> str:
    """Return text that is safe to print or log, in one line."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")
