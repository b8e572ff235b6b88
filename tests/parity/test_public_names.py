"""Names that the reference offers at its top for these families: here too, or absent for a reason."""

from __future__ import annotations

import pytest
import transformers

import gptrio

GROUPS = (
    "cache_utils",
    "configuration_utils",
    "generation",
    "modeling_utils",
    "pytorch_utils",
    "tokenization_utils",
    "tokenization_utils_base",
    "tokenization_utils_fast",
    "utils",
)

ABSENT = {
    "AlternatingCodebooksLogitsProcessor": "for models of speech (Bark)",
    "WhisperTimeStampLogitsProcessor": "for models of speech (Whisper)",
    "FlaxWhisperTimeStampLogitsProcessor": "likewise",
    "BeamScorer": "deprecated: a part of the reference's old beam search",
    "BeamSearchScorer": "deprecated: a part of the reference's old beam search",
    "ConstrainedBeamSearchScorer": "deprecated: a part of the reference's old beam search",
    "CacheLayerMixin": "the base of the reference's cache layers",
    "ChunkedSlidingLayer": "for models with chunked attention (Llama 4)",
    "HybridCache": "deprecated: DynamicCache(config=...) and StaticCache know windows",
    "HybridChunkedCache": "for models with chunked attention (Llama 4)",
    "SinkCache": "removed from the reference, which only raises an error under this name",
    "SlidingWindowCache": "deprecated: StaticCache knows windows",
    "HQQQuantizedCache": "quantization by another library; QuantizedCache needs none",
    "HQQQuantizedLayer": "quantization by another library; QuantizedCache needs none",
    "QuantoQuantizedCache": "quantization by another library; QuantizedCache needs none",
    "QuantoQuantizedLayer": "quantization by another library; QuantizedCache needs none",
    "apply_chunking_to_forward": "a helper of other families' feed-forward layers",
    "infer_device": "a helper of the reference's examples",
    "PYTORCH_PRETRAINED_BERT_CACHE": "deprecated name of the hub's cache folder",
    "PYTORCH_TRANSFORMERS_CACHE": "deprecated name of the hub's cache folder",
    "TRANSFORMERS_CACHE": "deprecated name of the hub's cache folder",
    "TF2_WEIGHTS_NAME": "weights of TensorFlow",
    "TF_WEIGHTS_NAME": "weights of TensorFlow",
    "MODEL_CARD_NAME": "a file that neither library reads",
    "SPIECE_UNDERLINE": "for tokenizers of SentencePiece",
    "add_start_docstrings": "writes the reference's documentation",
    "add_end_docstrings": "writes the reference's documentation",
}


def offered() -> set[str]:
    structure = transformers._import_structure
    return {name for group in GROUPS for name in structure.get(group, [])}


def test_every_name_is_there_or_absent_for_a_reason():
    missing = {name for name in offered() if not hasattr(gptrio, name)}
    assert missing - ABSENT.keys() == set()


def test_the_reasons_are_of_names_that_are_absent():
    assert ABSENT.keys() <= offered()
    assert [name for name in ABSENT if hasattr(gptrio, name)] == []


@pytest.mark.parametrize("name", sorted(offered() - ABSENT.keys()))
def test_constants_and_enumerations_have_the_references_values(name):
    ours, theirs = getattr(gptrio, name), getattr(transformers, name)
    if isinstance(theirs, str):
        assert ours == theirs
    elif hasattr(theirs, "__members__"):
        assert {key: item.value for key, item in theirs.__members__.items()}.items() <= {
            key: item.value for key, item in ours.__members__.items()
        }.items()
    else:
        assert callable(ours) == callable(theirs)
