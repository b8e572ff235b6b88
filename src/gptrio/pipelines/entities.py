"""Entities of a text, from the probabilities of its tokens' labels."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptrio.pipelines.spans import Span, is_continuation

Entity = dict[str, Any]
Scores = NDArray[np.floating[Any]]


class AggregationStrategy(str, Enum):
    """How tokens become entities.

    Attributes:
        NONE: not at all; each token has its own label.
        SIMPLE: neighbours of one tag are an entity; a label that starts with "B-" begins a new one.
        FIRST: like SIMPLE; a word has the label of its first token.
        AVERAGE: like SIMPLE; a word has the label of the highest mean score.
        MAX: like SIMPLE; a word has the label of its token with the highest score.
    """

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


BY_WORD = (AggregationStrategy.FIRST, AggregationStrategy.AVERAGE, AggregationStrategy.MAX)


class EntityMixin:
    """The steps from tokens to entities, which a pipeline's subclass can override one by one."""

    model: Any
    tokenizer: Any

    def gather_pre_entities(
        self,
        sentence: str,
        input_ids: NDArray[np.integer[Any]],
        scores: Scores,
        offset_mapping: Sequence[Span] | None,
        special_tokens_mask: NDArray[np.integer[Any]],
        aggregation_strategy: AggregationStrategy,
        word_ids: Sequence[int | None] | None = None,
        word_to_chars_map: Sequence[Span] | None = None,
    ) -> list[Entity]:
        """What is known of each token (T,) that is not special, from scores (T, labels) and places.

        `word_ids` (T,) and the place of each word in the text are for places that count from the start of a word.
        """
        entities = []
        for index, token_scores in enumerate(scores):
            if special_tokens_mask[index]:
                continue
            number = int(input_ids[index])
            word: str = self.tokenizer.convert_ids_to_tokens(number)
            start, end = (None, None) if offset_mapping is None else offset_mapping[index]
            word_id = None if word_ids is None else word_ids[index]
            if start is not None and end is not None and word_id is not None and word_to_chars_map is not None:
                start, end = (place + word_to_chars_map[word_id][0] for place in (start, end))
            is_subword = False
            if start is not None and end is not None:
                is_subword = is_continuation(sentence, word, (start, end), self.tokenizer)
                if number == self.tokenizer.unk_token_id:
                    word, is_subword = sentence[start:end], False
            known = {"word": word, "scores": token_scores, "start": start, "end": end}
            entities.append({**known, "index": index, "is_subword": is_subword})
        return entities

    def aggregate(self, pre_entities: list[Entity], aggregation_strategy: AggregationStrategy) -> list[Entity]:
        """Label tokens or words, and group them if the strategy asks for it."""
        if aggregation_strategy in BY_WORD:
            return self.group_entities(self.aggregate_words(pre_entities, aggregation_strategy))
        entities = [
            {**self._labelled(token["scores"]), **{name: token[name] for name in ("index", "word", "start", "end")}}
            for token in pre_entities
        ]
        return entities if aggregation_strategy == AggregationStrategy.NONE else self.group_entities(entities)

    def aggregate_words(self, entities: list[Entity], aggregation_strategy: AggregationStrategy) -> list[Entity]:
        """Join the tokens of each word, which get one label."""
        words: list[list[Entity]] = []
        for token in entities:
            if words and token["is_subword"]:
                words[-1].append(token)
            else:
                words.append([token])
        return [self.aggregate_word(word, aggregation_strategy) for word in words]

    def aggregate_word(self, entities: list[Entity], aggregation_strategy: AggregationStrategy) -> Entity:
        """Join the tokens of a word."""
        if aggregation_strategy == AggregationStrategy.AVERAGE:
            scores = np.nanmean(np.stack([token["scores"] for token in entities]), axis=0)
        elif aggregation_strategy == AggregationStrategy.MAX:
            scores = max((token["scores"] for token in entities), key=lambda scores: scores.max())
        else:
            scores = entities[0]["scores"]
        return {**self._labelled(scores), **self._place(entities)}

    def group_entities(self, entities: list[Entity]) -> list[Entity]:
        """Join neighbours with one tag."""
        groups: list[list[Entity]] = []
        last = None
        for entity in entities:
            prefix, tag = self.get_tag(entity["entity"])
            if tag == last and prefix != "B":
                groups[-1].append(entity)
            else:
                groups.append([entity])
            last = tag
        return [self.group_sub_entities(group) for group in groups]

    def group_sub_entities(self, entities: list[Entity]) -> Entity:
        """Join the tokens, or words, of an entity."""
        score = np.nanmean([entity["score"] for entity in entities])
        return {"entity_group": entities[0]["entity"].split("-", 1)[-1], "score": score, **self._place(entities)}

    def get_tag(self, entity_name: str) -> tuple[str, str]:
        """Return "B" or "I" and the tag of a label; labels without either count as "I"."""
        return (entity_name[0], entity_name[2:]) if entity_name.startswith(("B-", "I-")) else ("I", entity_name)

    def aggregate_overlapping_entities(self, entities: list[Entity]) -> list[Entity]:
        """Keep the longest of overlapping entities, and of equally long ones that with the higher score."""
        kept: list[Entity] = []
        for entity in sorted(entities, key=lambda entity: entity["start"]):
            if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
                kept.append(entity)
            elif _rank(entity) > _rank(kept[-1]):
                kept[-1] = entity
        return kept

    def _labelled(self, scores: Scores) -> Entity:
        best = int(scores.argmax())
        return {"entity": self.model.config.id2label[best], "score": scores[best]}

    def _place(self, entities: list[Entity]) -> Entity:
        word = self.tokenizer.convert_tokens_to_string([entity["word"] for entity in entities])
        return {"word": word, "start": entities[0]["start"], "end": entities[-1]["end"]}


def _rank(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
