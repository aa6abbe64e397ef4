"""Addresses such as ``s3://bucket/line 1/a.png``: what they are, what is below them, copies of what is at them.

Only an `Address` is followed. Whoever takes addresses from users turns them into it with `as_address`; whoever takes
texts from elsewhere, such as a server, does not, and nothing below follows them.
"""

from anomalyclip.addresses.address import Address, as_address, as_place, local_path, masked, require_here
from anomalyclip.addresses.copies import fetched, folder_on_disk, on_disk
from anomalyclip.addresses.listing import (
    beginning,
    ending,
    entries,
    exists,
    is_dir,
    is_folder,
    length,
    objects,
)
from anomalyclip.addresses.writing import delete, put

__all__ = [
    "Address",
    "as_address",
    "as_place",
    "beginning",
    "delete",
    "ending",
    "entries",
    "exists",
    "fetched",
    "folder_on_disk",
    "is_dir",
    "is_folder",
    "length",
    "local_path",
    "masked",
    "objects",
    "on_disk",
    "put",
    "require_here",
]
