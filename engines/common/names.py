"""Class names as people and prompts spell them."""


def class_words(name: str) -> str:
    """A class name as prompts spell it: lower case, underscores and hyphens as spaces."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
