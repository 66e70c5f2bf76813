"""The manners of diffusers and transformers: quiet, and errors in one line.

Knows nothing about models.
"""


def silence_libraries() -> None:
    """No progress bars of diffusers and transformers: dengine shows its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
