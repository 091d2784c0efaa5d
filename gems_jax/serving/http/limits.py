"""How much a service takes on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a service.

    Args:
      batch_size: requests that are ranked at once.
      max_wait: seconds that a request waits for others to be ranked with, if nothing else is being ranked.
      max_queue: requests that wait; more are told to come again.
      timeout: seconds until a call is given up.
      max_k: results of a request, and the width of the search.
      max_requests: requests of a call.
      max_items: items of a list that a request allows, denies or has as its history.
      max_text: characters of a query, a user or an id.
      max_body: bytes of a call.
    """

    batch_size: int = 16
    max_wait: float = 0.005
    max_queue: int = 1024
    timeout: float = 30.0
    max_k: int = 20
    max_requests: int = 256
    max_items: int = 1000
    max_text: int = 2000
    max_body: int = 1 << 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "max_wait"):
                raise ValueError(f"--{name} must be above 0, got {value}")
