"""Buckets of Google's store, by tensorstore: on its own servers, or on an emulator's."""

import functools
import os
from collections.abc import Mapping
from typing import Any

# By which Google's own packages and gcsfs find an emulator; they send it no credentials.
EMULATOR = "STORAGE_EMULATOR_HOST"
_ADDRESS = "TENSORSTORE_GCS_HTTP_URL"


def open_bucket(bucket: str, retries: Mapping[str, Any]) -> Any:
    """A bucket; nothing is asked yet.

    Args:
      bucket: its name.
      retries: of requests that fail, for tensorstore.
    """
    emulator = os.environ.get(EMULATOR)
    if emulator:
        os.environ[_ADDRESS] = emulator if "://" in emulator else f"http://{emulator}"
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        # gcsfs would look for credentials to ask Google, not the emulator, what kind of bucket it is.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import tensorstore

    context = {"gcs_request_retries": retries}
    return tensorstore.KvStore.open({"driver": "gcs", "bucket": bucket, "context": context}).result()


def check_empty(store: Any, first: str, bucket: str, retries: Mapping[str, Any]) -> None:
    """Checks that a list of objects is empty because there are none.

    Tensorstore takes a list that is refused for an empty one. It does know refusals to read, whether or not there is
    such an object; of a missing bucket it says the same as of a missing object.

    Args:
      store: the bucket, opened.
      first: what the names of these objects begin with.
      bucket: its name.
      retries: of requests that fail, for tensorstore.

    Raises:
      ValueError: the store refuses to list them.
    """
    store.read(f"{first}?", byte_range=slice(0, 0)).result()
    _find(bucket, os.environ.get(_ADDRESS, "https://storage.googleapis.com"), tuple(retries.items()))


@functools.lru_cache(maxsize=64)
def _find(bucket: str, address: str, retries: tuple[tuple[str, Any], ...]) -> None:
    """Asks for a bucket without credentials: if it is there, that is refused or granted."""
    import tensorstore

    context = {"http_request_retries": dict(retries)}
    spec = {"driver": "http", "base_url": f"{address}/storage/v1/b/{bucket}", "context": context}
    try:
        found = tensorstore.KvStore.open(spec).result().read("").result().state == "value"
    except ValueError as error:
        if "PERMISSION_DENIED" not in str(error):
            raise
        found = True
    if not found:
        raise ValueError(f"NOT_FOUND: there is no bucket {bucket}")
