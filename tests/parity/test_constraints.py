"""Beam constraints and prompt lookup against transformers 4.56.2, along random tokens."""

import pytest
import torch

import gptrio

transformers = pytest.importorskip("transformers")

LISTS = [
    [("PhrasalConstraint", [1, 2, 3])],
    [("PhrasalConstraint", [1, 1, 2]), ("PhrasalConstraint", [2])],
    [("DisjunctiveConstraint", [[1, 2], [1, 3, 0], [2]])],
    [("DisjunctiveConstraint", [[1, 2], [3]]), ("PhrasalConstraint", [0, 1]), ("PhrasalConstraint", [2, 2])],
]


ONE_LIST = [1]
WORDS = {
    "PhrasalConstraint": [
        [1, 2], (1, 2), [], None, 3, [-1], [1.0], ["a"], [True], [[1]], torch.tensor([1, 2]), "ab", {1: 2}, [2**40],
    ],
    "DisjunctiveConstraint": [
        [[1, 2], [3]], [[1, 2], [1]], [[1], [1, 2]], [[1], [1]], [ONE_LIST, ONE_LIST], [], [[1], []], [(1, 2)], [1, 2],
        ([1], [2]), [[1], [-1]], [[1.0]], None, [[True]], [[1, 2], [1, 3]],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, rows in WORDS.items() for words in rows], ids=str)
def test_constructors_take_and_refuse_what_upstreams_do(name, words):
    results = []
    for library in (gptrio, transformers):
        try:
            made = getattr(library, name)(words)
        except ValueError:
            results.append("refused")
        else:
            results.append((made.token_ids, made.seqlen, made.advance()))
    assert results[0] == results[1]


def build(library, rows):
    return library.ConstraintListState([getattr(library, name)(ids) for name, ids in rows])


@pytest.mark.parametrize("rows", LISTS, ids=str)
def test_list_state_follows_upstream(rows):
    generator = torch.Generator().manual_seed(2)
    for _ in range(60):
        ours, theirs = build(gptrio, rows), build(transformers, rows)
        for token in torch.randint(0, 4, (12,), generator=generator).tolist():
            assert ours.advance() == theirs.advance()
            assert ours.add(token) == theirs.add(token)
            assert (ours.completed, ours.get_bank()) == (theirs.completed, theirs.get_bank())
            copies = ours.copy(), theirs.copy()
            assert copies[0].get_bank() == copies[1].get_bank()
            assert copies[0].advance() == copies[1].advance()


@pytest.mark.parametrize("rows", LISTS, ids=str)
def test_reset_replays_a_beam(rows):
    tokens = [0, 1, 2, 3, 1, 1, 2, 2, 0, 1]
    ours, theirs = build(gptrio, rows), build(transformers, rows)
    ours.reset(tokens)
    theirs.reset(tokens)
    assert (ours.completed, ours.get_bank(), ours.advance()) == (theirs.completed, theirs.get_bank(), theirs.advance())


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("ends", [None, 3, [0, 3]], ids=str)
def test_prompt_lookup(size, ends):
    arguments = {"num_output_tokens": 4, "max_matching_ngram_size": size, "max_length": 100}
    ours = gptrio.PromptLookupCandidateGenerator(eos_token_id=ends, **arguments)
    tensor = torch.tensor([] if ends is None else ends).reshape(-1)
    theirs = transformers.generation.PromptLookupCandidateGenerator(eos_token_id=tensor, **arguments)
    generator = torch.Generator().manual_seed(4)
    for length in (1, 2, 5, 12, 40):
        for _ in range(10):
            ids = torch.randint(0, 6, (1, length), generator=generator)
            assert torch.equal(ours.get_candidates(ids)[0], theirs.get_candidates(ids)[0])


def test_prompt_lookup_leaves_room_for_the_models_own_token():
    ids = torch.tensor([[1, 2, 3, 4, 1]])
    drafts = [gptrio.PromptLookupCandidateGenerator(max_length=most).get_candidates(ids)[0] for most in (5, 6, 7, 9)]
    assert [draft.shape[1] for draft in drafts] == [5, 5, 6, 8]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gptrio.PhrasalConstraint([]), "token_ids=\\[\\]"),
        (lambda: gptrio.PhrasalConstraint([1, -2]), "token ids"),
        (lambda: gptrio.DisjunctiveConstraint([[1], [1, 2]]), "begins another phrase"),
        (lambda: gptrio.DisjunctiveConstraint([]), "must be a list of lists"),
        (lambda: gptrio.DisjunctiveConstraint([[1], []]), "one at least"),
        (lambda: gptrio.PromptLookupCandidateGenerator(num_output_tokens=0), "num_output_tokens=0"),
    ],
)
def test_impossible_arguments_are_named(build, message):
    with pytest.raises(gptrio.OptionError, match=message):
        build()


class Endless(gptrio.Constraint):
    """A constraint that is never fulfilled."""

    def __init__(self):
        self.seqlen = 1
        super().__init__()

    def advance(self):
        return 1

    def does_advance(self, token_id):
        return True

    def update(self, token_id):
        return True, False, False

    def reset(self):
        pass

    def remaining(self):
        return 1

    def copy(self, stateful=False):
        return self


def test_custom_constraint_is_tried_out():
    with pytest.raises(gptrio.OptionError, match="Endless: remaining"):
        Endless()


@pytest.mark.parametrize("name", ["PhrasalConstraint", "DisjunctiveConstraint"])
def test_copies_and_counts_of_one_constraint(name):
    ids = [1, 2, 3] if name == "PhrasalConstraint" else [[1, 2, 3], [1, 4]]
    ours, theirs = getattr(gptrio, name)(ids), getattr(transformers, name)(ids)
    for token in (1, 2, 3):
        assert ours.does_advance(token) == theirs.does_advance(token)
        assert ours.update(token) == theirs.update(token)
        assert ours.remaining() == theirs.remaining()
        assert ours.copy(stateful=True).advance() == theirs.copy(stateful=True).advance()
        assert ours.copy().remaining() == theirs.copy().remaining() == 3
    with pytest.raises(TypeError, match="expected an int"):
        ours.does_advance("1")


def test_phrase_starts_over_after_a_wrong_token():
    constraint = gptrio.PhrasalConstraint([1, 2])
    constraint.update(1)
    assert constraint.update(3) == (False, False, True)
    assert constraint.advance() == 1
    constraint.test()  # a constraint of the package passes its own trial
    assert constraint.remaining() == 2
