"""The bundled words: every one has a kind, and its state is the mean over its tokens."""

import numpy as np
import pytest
import torch

from ntps.course.vocabulary import KINDS, word_kinds, word_states, word_topics
from ntps.errors import NtpsError
from ntps.miniworld.words import all_words
from ntps.models import load_model

TEXTS = ["the film was good", "a good film", "the the zebra"]
SOME_KINDS = {"the": "function word", "film": "topic noun", "good": "mood", "dull": "mood"}


def test_word_states_are_means_of_hidden_states(tiny_llama):
    model = load_model(str(tiny_llama))
    words = word_states(model, TEXTS, kinds=SOME_KINDS, min_count=1, batch_size=2)
    assert words.words == ("film", "good", "the")
    assert words.counts.tolist() == [2, 2, 3]
    assert words.kinds == ("topic noun", "mood", "function word")
    each = []
    for text in TEXTS:
        ids = model.tokenize([text]).ids
        states = torch.stack(model.hidden_states(*model.pad(ids)))[:, 0].double()
        tokens = model.tokenizer.convert_ids_to_tokens(ids[0])
        each += [states[:, index] for index, token in enumerate(tokens) if token == "the"]
    assert np.allclose(words.means[:, 2], torch.stack(each).mean(0).numpy(), atol=1e-5)


def test_rare_words_are_left_out(tiny_llama):
    model = load_model(str(tiny_llama))
    assert word_states(model, TEXTS, kinds=SOME_KINDS, min_count=3).words == ("the",)
    with pytest.raises(NtpsError, match="no word occurs 9 times"):
        word_states(model, TEXTS, kinds=SOME_KINDS, min_count=9)
    with pytest.raises(NtpsError, match="min_count"):
        word_states(model, TEXTS, kinds=SOME_KINDS, min_count=0)


def test_every_bundled_word_has_a_kind():
    kinds = word_kinds()
    assert {word for word in all_words() if word not in kinds and word.isalpha()} == set()
    assert set(kinds.values()) == set(KINDS)
    assert kinds["the"] == "function word"
    assert kinds["oh"] == "watermark"


def test_topics_are_those_of_words_of_one_topic_alone():
    topics = word_topics()
    assert topics["telescope"] == "astronomy"
    assert "the" not in topics
