"""What a run of predictions found, to look at: ``index.html``, and on request a table and a contact sheet.

All of it is made of what lies in the run's folder, so that a resumed run ends with the page of the whole run, and the
same results give the same bytes.
"""

from anomalyclip.overview.page import PAGE, check_page, write_page
from anomalyclip.overview.summary import Summary, summarize
from anomalyclip.overview.table import SHEET, TABLE, write_sheet, write_table
from anomalyclip.overview.thumbnails import Thumbnails
from anomalyclip.overview.volumes import VOLUMES, write_volumes

__all__ = [
    "PAGE",
    "SHEET",
    "TABLE",
    "VOLUMES",
    "Summary",
    "Thumbnails",
    "check_page",
    "summarize",
    "write_page",
    "write_sheet",
    "write_table",
    "write_volumes",
]
