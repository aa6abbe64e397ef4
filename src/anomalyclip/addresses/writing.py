"""Objects are written whole or not at all."""

import os
from typing import Any

from anomalyclip.addresses.address import OBJECT_STORES, Address
from anomalyclip.addresses.stores import request
from anomalyclip.errors import AnomalyCLIPError, InputError


def put(file: str | os.PathLike[str], address: Address) -> None:
    """Write a file to an address: there is the whole object then, or what was there before.

    Object stores show an object when its last byte has arrived. Elsewhere the file is written under another name
    first, and then renamed.

    Raises
    ------
    AnomalyCLIPError
        It cannot be written.
    """

    def whole(store: Any, path: str) -> None:
        if address.scheme in OBJECT_STORES:
            store.put_file(os.fspath(file), path)
            return
        folder, _, name = path.rpartition("/")
        store.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{name}.tmp"
        store.put_file(os.fspath(file), temporary)
        store.mv(temporary, path)

    try:
        _written(address, whole)
    except FileNotFoundError:
        raise AnomalyCLIPError(
            f"{address}: cannot be written; there is no such bucket, or no such container"
        ) from None


def delete(address: Address) -> None:
    """Delete an object, if it is there.

    Raises
    ------
    AnomalyCLIPError
        It cannot be deleted.
    """
    try:
        _written(address, lambda store, path: store.rm_file(path))
    except FileNotFoundError:
        return


def check_can_be_written(address: Address) -> None:
    """Refuse addresses to which nothing can be written.

    Raises
    ------
    AnomalyCLIPError
        It is one of the web.
    """
    if address.is_web or address.inner:
        raise AnomalyCLIPError(
            f"{address}: results cannot be written to this address; give a folder, or an address such as s3://bucket/run"
        )


def _written(address: Address, action: Any) -> None:
    try:
        request(address, action, "written")
    except InputError as error:
        raise AnomalyCLIPError(str(error)) from None
