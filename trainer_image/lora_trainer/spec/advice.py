"""Advice as data: a code, and the values that its sentences are made of."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Severity(enum.StrEnum):
    """`WARNING` where work may be lost, or the result may not be what it seems."""

    WARNING = "Warning"
    INFO = "Info"


class Code(enum.StrEnum):
    """What a piece of advice is about, in the order in which advice of one severity is given. `rules.RULES` has what
    each means."""

    RANK_TOO_LOW = "RankTooLow"
    ALPHA_RATIO = "AlphaRatio"
    ALPHA_AT_HIGH_RANK = "AlphaAtHighRank"
    FEW_LAYERS = "FewLayers"
    SEVERAL_EPOCHS = "SeveralEpochs"
    MANY_DUPLICATES = "ManyDuplicates"
    STILL_IMPROVING = "StillImproving"
    HELD_OUT_LOSS_ROSE = "HeldOutLossRose"
    LARGE_BATCH = "LargeBatch"
    LEARNING_RATE = "LearningRate"
    QUANTIZATION_NOT_NEEDED = "QuantizationNotNeeded"
    QUANTIZATION_WOULD_FIT = "QuantizationWouldFit"
    COLUMNS_NOT_READ = "ColumnsNotRead"
    ROWS_CUT = "RowsCut"
    FEW_HELD_OUT_ROWS = "FewHeldOutRows"
    POD_MEMORY = "PodMemory"
    CLAIM_SIZE = "ClaimSize"
    SERVE_MERGED = "ServeMerged"
    MODULES_NOT_ADAPTED = "ModulesNotAdapted"
    LANGUAGE_MODEL_ALONE = "LanguageModelAlone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One thing that would make this run, or the next one, go better. `values` fill the sentences of its code."""

    code: str
    values: Mapping[str, str] = field(default_factory=dict)
