"""Settings checked at the door: what was got, what is needed, and which setting."""


def require(name: str, got: object, needed: str, holds: bool) -> None:
    """Raises ValueError unless the claim holds. Write claims so that nan fails them."""
    if not holds:
        raise ValueError(f"{name}: got {got!r}, needs to be {needed}")
