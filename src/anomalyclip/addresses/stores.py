"""Requests to stores through fsspec: which library answers, several tries, and errors that show no secrets."""

import errno
import os
import random
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from anomalyclip.addresses.address import Address, masked
from anomalyclip.errors import AnomalyCLIPError, InputError, reason

T = TypeVar("T")
Options = tuple[tuple[str, Any], ...]
"""What an address says of its store besides the scheme, such as a host."""

TRIES = 4
"""How often a request is made before it counts as failed."""
PAUSE = 0.5
"""Seconds before the second try; twice as long before each further one."""

_INSTALL = {
    **dict.fromkeys(("s3", "s3a", "http", "https"), "pip install 'anomalyclip[remote]'"),
    **dict.fromkeys(("gs", "gcs"), "pip install 'anomalyclip[remote]' gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "pip install 'anomalyclip[remote]' adlfs"),
}

_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    AnomalyCLIPError,
    TypeError,
    ValueError,
)
"""Errors that another try does not change."""
_FINAL_NAMES = ("NoCredentialsError", "ProfileNotFound", "ClientAuthenticationError", "RefreshError")
_PASSING_STATUS = (408, 425, 429)
"""Of the statuses from 400 to 499, those that pass."""


def store_of(address: Address) -> tuple[Any, str]:
    """Return the file system of an address, and the object's path in it.

    Raises
    ------
    AnomalyCLIPError
        The library that it needs is missing, or it cannot be understood.
    """
    scheme = address.scheme
    try:
        from fsspec.registry import get_filesystem_class

        kind = get_filesystem_class(scheme)
        options = kind._get_kwargs_from_urls(address.url)
        key = (scheme, tuple(sorted(options.items())))
        store = of_process(os.getpid(), *key) if kind.async_impl else _made(*key)
        return store, kind._strip_protocol(address.url)
    except ImportError as error:
        how = f"{_INSTALL.get(scheme, _INSTALL['s3'] + ' and what it names')} ({error})"
        raise AnomalyCLIPError(f"{address}: addresses with {scheme}:// need another library: {how}") from None
    except Exception as error:
        raise AnomalyCLIPError(f"{address}: this address cannot be used ({masked(reason(error))})") from None


@lru_cache(maxsize=16)
def of_process(_: int, scheme: str, options: Options) -> Any:
    """Return the file system that all threads of a process share, with its connections."""
    return _made(scheme, options)


def _made(scheme: str, options: Options) -> Any:
    import fsspec

    chosen = dict(options)
    if scheme in (
        "s3",
        "s3a",
    ):  # s3fs and `request` try again; botocore would do it below them, 100 times in all
        configured = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})
        chosen["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **configured}
    return fsspec.filesystem(scheme, **chosen)


def request(address: Address, action: Callable[[Any, str], T], doing: str = "read") -> T:
    """Return what `action` returns for a file system and a path; it is tried several times.

    Parameters
    ----------
    address : Address
        Of the object.
    action : callable
        Called with the file system and the object's path in it.
    doing : str
        The participle of what it does, for messages.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    InputError
        It failed for another reason.
    AnomalyCLIPError
        The local disk is full, or a library is missing.
    """
    store, path = store_of(address)
    for number in range(1, TRIES + 1):
        try:
            return action(store, path)
        except FileNotFoundError:
            raise FileNotFoundError(str(address)) from None
        except Exception as error:
            if number == TRIES or _is_final(error):
                raise _error(address, error, doing, number) from None
        time.sleep(PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1))
    raise AssertionError("unreachable")


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _PASSING_STATUS
    return isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES or _is_full(error)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _error(address: Address, error: Exception, doing: str, tries: int) -> AnomalyCLIPError:
    if isinstance(error, AnomalyCLIPError):
        return error
    if _is_full(error):
        return AnomalyCLIPError(f"{address}: no space left on this machine for a temporary copy")
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return InputError(f"{address}: no permission; check the credentials for this address")
    said = f"HTTP status {status}" if isinstance(status, int) else " ".join(masked(reason(error)).split())
    often = f" in {tries} tries" if tries > 1 else ""
    return InputError(f"{address}: cannot be {doing}{often} ({said})")
