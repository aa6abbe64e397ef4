"""``anomalyclip serve``: the page, and the service for other programs."""

import typer

from anomalyclip.cli import options
from anomalyclip.cli.console import out
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.serve.settings import ServeSettings
from anomalyclip.spec import DetectorSpec


@options.with_options
def serve(
    context: typer.Context,
    spec: DetectorSpec,
    settings: ServeSettings,
    threshold: options.Threshold = None,
) -> None:
    """Serve a page to look at images with, and the same model to other programs.

    Open the printed address in a browser, or send images to it: see docs/serve.md. Nothing that is sent is written to
    disk. Stop it with Ctrl-C.
    """
    try:
        from anomalyclip.serve import running
    except ModuleNotFoundError as error:
        raise AnomalyCLIPError(f"serve needs {error.name}: pip install 'anomalyclip[serve]'") from None
    settings.key()
    settings.check_tls()
    listening = running.bound(settings)
    detector = spec.load(threshold=threshold)

    def ready() -> None:
        limits = detector.threshold
        values = "none: no verdicts" if limits is None else f"score {limits.score}, pixel {limits.pixel}"
        origin = "" if limits is None or not limits.origin else f" ({limits.origin})"
        out().print(f"address    {running.address(listening, settings)}")
        out().print(f"model      {detector.describe().title}")
        out().print(f"threshold  {values}{origin}")
        out().file.flush()

    running.run(detector, settings, listening, ready)
