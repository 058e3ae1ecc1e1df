"""What lessons print besides tables: paragraphs that fit beside a picture and on a small screen."""

from ntps._text import wrap


def say(*paragraphs: object) -> None:
    """Print paragraphs, each in lines of at most 80 characters.

    Args:
        *paragraphs: Sentences, commands, or whatever says of itself what it is in a sentence.
    """
    for paragraph in paragraphs:
        print("\n".join(wrap(str(paragraph))))
