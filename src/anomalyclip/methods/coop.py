"""CoOp-style prompts: a learned context before words that name the class, trained on whole images.

References: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022; Zhou et al., "AnomalyCLIP", ICLR
2024, whose tables have such a baseline. Its code was never published, so this is our reading of it.
"""

from dataclasses import replace
from pathlib import Path

import torch

from anomalyclip.contexts import ContextTexts, load_context
from anomalyclip.engines.torch import TorchScorer
from anomalyclip.errors import AnomalyCLIPError
from anomalyclip.methods.worded import ClassScorer, Parts, build_worded
from anomalyclip.methods.words import plain_core
from anomalyclip.spec import DetectorSpec
from anomalyclip.texts import Phrases
from anomalyclip.trained import check_backbone


def build(spec: DetectorSpec) -> TorchScorer | ClassScorer:
    """Return the scorer of a spec.

    Raises
    ------
    AnomalyCLIPError
        There is no context, or it does not fit the backbone.
    """
    if spec.trained is None:
        raise AnomalyCLIPError(
            "method 'coop' has a trained part: give --trained FILE, from `anomalyclip train --method coop`"
        )
    path, context = Path(spec.trained), load_context(spec.trained)
    # The words are those that the context was trained with.
    worded = replace(spec, normal=(context.normal,), abnormal=(context.abnormal,))

    def with_context(parts: Parts) -> Parts:
        check_backbone(context.info, parts.weights_sha256(), path)
        facts = {**parts.said.facts, "trained": spec.trained, "trained_on": context.info.get("trained_on")}

        def texts(class_name: str | None) -> ContextTexts:
            phrases = parts.said.texts(class_name)
            assert isinstance(phrases, Phrases)
            return ContextTexts(context, torch.cat(phrases.sides))

        said = replace(parts.said, texts=texts, facts=facts, training=context.info)
        return replace(parts, said=said, hashes={"context_sha256": context.digest()})

    return build_worded(worded, plain_core, words="coop", templates="none", parts=with_context)
