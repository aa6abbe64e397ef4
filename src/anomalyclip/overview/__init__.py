"""What a run of predictions found, to look at: ``index.html``, and on request a table and a contact sheet.

All of it is made of what lies in the run's folder, so that a resumed run ends with the page of the whole run, and the
same results give the same bytes.
"""

from anomalyclip.overview.films import Films
from anomalyclip.overview.page import PAGE, check_page, check_remote_page, write_page
from anomalyclip.overview.summary import Summary, summarize
from anomalyclip.overview.table import SHEET, TABLE, write_sheet, write_table
from anomalyclip.overview.thumbnails import Thumbnails
from anomalyclip.overview.wholes import VIDEOS, VOLUMES, write_wholes

__all__ = [
    "PAGE",
    "SHEET",
    "TABLE",
    "VIDEOS",
    "VOLUMES",
    "Films",
    "Summary",
    "Thumbnails",
    "check_page",
    "check_remote_page",
    "summarize",
    "write_page",
    "write_sheet",
    "write_table",
    "write_wholes",
]
