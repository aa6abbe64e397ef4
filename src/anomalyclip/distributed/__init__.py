"""Runs on a Ray cluster: images to Parquet files, nothing twice and nothing lost (``pip install 'anomalyclip[ray]'``).

`predict` does a whole run. `Predictor` is for pipelines of your own:
``dataset.map_batches(Predictor, fn_constructor_kwargs={"spec": spec}, compute=ActorPoolStrategy(size=4))``.
"""

from anomalyclip.distributed.predictor import Predictor, map_of
from anomalyclip.distributed.run import Cluster, predict

__all__ = ["Cluster", "Predictor", "map_of", "predict"]
