"""What a user can do about an attribute that a checkpoint cannot hold as data."""

from npg.checkpoints import trust_remedy


def remedy(place: str) -> str:
    """Words for an error or a warning.

    Args:
        place: Of the value: "agent.", the attribute, and where the value is in that.

    Returns:
        The words.
    """
    part, _, rest = place.partition(".")
    if part != "agent" or not rest:
        return trust_remedy(place)
    attribute = rest.partition(".")[0]
    return (
        f"{trust_remedy(place)}; or give it to load() yourself, "
        f"custom_objects={{{attribute!r}: ...}}"
    )
