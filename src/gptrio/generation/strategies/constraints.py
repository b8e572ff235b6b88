"""Constraints of beam search: a phrase, one of several phrases, and the progress of a list of constraints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from gptrio.config.fields import has_type
from gptrio.errors import OptionError

_MOST_STEPS = 10_000


class Constraint(ABC):
    """A condition on the tokens of a beam, fulfilled step by step; subclass it for conditions of your own.

    A subclass sets `seqlen`, the most steps it takes, before `super().__init__()`, which tests the constraint.

    Raises:
        OptionError: following `advance` never fulfils the constraint.
    """

    seqlen: int

    def __init__(self) -> None:
        self.test()

    def test(self) -> None:
        """Follow `advance` to the end; raise OptionError when that does not fulfil the constraint."""
        name = type(self).__name__
        for _ in range(_MOST_STEPS):
            token = self.advance()
            if isinstance(token, list):
                token = token[0]
            if token is None or not self.does_advance(token):
                raise OptionError(f"{name}: does_advance({token!r}) must be True for what advance() names")
            if self.update(token)[1]:
                break
        if self.remaining() != 0:
            raise OptionError(f"{name}: remaining() is {self.remaining()} after following advance(); expected 0")
        self.reset()

    @abstractmethod
    def advance(self) -> int | list[int] | None:
        """Return the token, or the tokens any of which, would bring the constraint one step on (None: it is done)."""

    @abstractmethod
    def does_advance(self, token_id: int) -> bool:
        """Whether a token brings the constraint one step on."""

    @abstractmethod
    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take a token and return (stepped, completed, reset): one step on, fulfilled, or back at the start."""

    @abstractmethod
    def reset(self) -> None:
        """Go back to the start."""

    @abstractmethod
    def remaining(self) -> int:
        """Return the most steps that are left."""

    @abstractmethod
    def copy(self, stateful: bool = False) -> Constraint:
        """Return a copy: at the start, or with `stateful` where this one is."""


class DisjunctiveConstraint(Constraint):
    """One of several phrases must be written.

    Args:
        nested_token_ids: the phrases as lists of token ids; none may begin another.
    """

    def __init__(self, nested_token_ids: list[list[int]]) -> None:
        lists = isinstance(nested_token_ids, list) and all(isinstance(ids, list) for ids in nested_token_ids)
        if not lists or not nested_token_ids:
            raise OptionError(f"nested_token_ids={nested_token_ids!r} must be a list of lists of token ids, not empty")
        for index, ids in enumerate(nested_token_ids):
            if not ids or not _are_token_ids(ids):
                raise OptionError(f"nested_token_ids holds {ids!r}; expected token ids, one at least")
            others = nested_token_ids[:index] + nested_token_ids[index + 1 :]
            if any(other[: len(ids)] == ids for other in others):
                raise OptionError(
                    f"nested_token_ids={nested_token_ids!r}: {ids!r} begins another phrase; leave one out"
                )
        self.token_ids = nested_token_ids
        self.seqlen = max(len(ids) for ids in nested_token_ids)
        self.current_seq: list[int] = []
        self.completed = False

    def _next_tokens(self) -> list[int]:
        """Tokens that follow what is written, in the order of the phrases."""
        done = len(self.current_seq)
        begun = (ids for ids in self.token_ids if list(ids[:done]) == self.current_seq and len(ids) > done)
        return list(dict.fromkeys(ids[done] for ids in begun))

    def advance(self) -> list[int] | None:
        """Return the tokens any of which comes next (None: the constraint is fulfilled)."""
        return self._next_tokens() or None

    def does_advance(self, token_id: int) -> bool:
        """Whether a token comes next."""
        return _token(token_id) in self._next_tokens()

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take a token and return (stepped, completed, reset)."""
        stepped = self.does_advance(token_id)
        if stepped:
            self.current_seq = [*self.current_seq, token_id]
        else:
            self.reset()
        self.completed = stepped and not self._next_tokens()
        return stepped, self.completed, not stepped

    def reset(self) -> None:
        """Go back to the start."""
        self.completed = False
        self.current_seq = []

    def remaining(self) -> int:
        """Return the most steps that are left."""
        return 0 if self.completed else self.seqlen - len(self.current_seq)

    def copy(self, stateful: bool = False) -> DisjunctiveConstraint:
        """Return a copy: at the start, or with `stateful` where this one is."""
        new = type(self)(self.token_ids)
        if stateful:
            new.current_seq, new.completed = self.current_seq, self.completed
        return new


class PhrasalConstraint(Constraint):
    """A phrase must be written.

    Args:
        token_ids: its tokens.
    """

    def __init__(self, token_ids: list[int]) -> None:
        if not isinstance(token_ids, list) or not token_ids or not _are_token_ids(token_ids):
            raise OptionError(f"token_ids={token_ids!r} must be a list of token ids, not empty")
        self.token_ids = token_ids
        self.seqlen = len(token_ids)
        self.fulfilled_idx = -1  # index of the last token that is written
        self.completed = False

    def advance(self) -> int | None:
        """Return the next token of the phrase (None: it is written)."""
        return None if self.completed else self.token_ids[self.fulfilled_idx + 1]

    def does_advance(self, token_id: int) -> bool:
        """Whether a token comes next."""
        return _token(token_id) == self.advance()

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take a token and return (stepped, completed, reset)."""
        if not self.does_advance(token_id):
            self.reset()
            return False, False, True
        self.fulfilled_idx += 1
        self.completed = self.remaining() == 0
        return True, self.completed, False

    def reset(self) -> None:
        """Go back to the start."""
        self.completed = False
        self.fulfilled_idx = -1

    def remaining(self) -> int:
        """Return the steps that are left."""
        return self.seqlen - (self.fulfilled_idx + 1)

    def copy(self, stateful: bool = False) -> PhrasalConstraint:
        """Return a copy: at the start, or with `stateful` where this one is."""
        new = type(self)(self.token_ids)
        if stateful:
            new.fulfilled_idx, new.completed = self.fulfilled_idx, self.completed
        return new


class ConstraintListState:
    """Progress of a beam in a list of constraints: some fulfilled, at most one begun, the others pending.

    Args:
        constraints: what must be written, in any order.
    """

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self.constraints = constraints
        self.max_seqlen = max(constraint.seqlen for constraint in constraints)
        self.n_constraints = len(constraints)
        self.init_state()

    def init_state(self) -> None:
        """Go back to the start."""
        self.complete_constraints: list[Constraint] = []
        self.inprogress_constraint: Constraint | None = None
        self.pending_constraints = [constraint.copy() for constraint in self.constraints]

    @property
    def completed(self) -> bool:
        """Whether all constraints are fulfilled."""
        return not self.pending_constraints and self.inprogress_constraint is None

    def get_bank(self) -> int:
        """Return the number of fulfilled steps; beams are compared with those of the same number."""
        begun = self.inprogress_constraint
        partly = 0 if begun is None else self.max_seqlen - begun.remaining()
        return len(self.complete_constraints) * self.max_seqlen + partly

    def advance(self) -> list[int] | None:
        """Return the tokens that bring the begun constraint, or any pending one, a step on (None: there are none)."""
        begun = self.inprogress_constraint
        tokens: list[int] = []
        for constraint in self.pending_constraints if begun is None else [begun]:
            step = constraint.advance()
            tokens += [step] if isinstance(step, int) else step or []
        return tokens or None

    def reset(self, token_ids: Iterable[int] | None) -> None:
        """Go back to the start and take the tokens of a beam."""
        self.init_state()
        for token in token_ids or ():
            self.add(token)
            if self.completed:
                break

    def add(self, token_id: int) -> tuple[bool, bool]:
        """Take a token and return (complete, stepped): whether it fulfilled or advanced a constraint."""
        _token(token_id)
        if self.completed:
            return True, False
        constraint = self.inprogress_constraint
        if constraint is None:
            return self._begin(token_id)
        stepped, complete, reset = constraint.update(token_id)
        if reset:
            self.pending_constraints.append(constraint.copy())
            self.inprogress_constraint = None
        elif complete:
            self.complete_constraints.append(constraint)
            self.inprogress_constraint = None
        return complete, stepped

    def _begin(self, token_id: int) -> tuple[bool, bool]:
        """Begin the first pending constraint that a token advances, if any."""
        for index, constraint in enumerate(self.pending_constraints):
            if not constraint.does_advance(token_id):
                continue
            stepped, complete, _ = constraint.update(token_id)
            if not stepped:
                raise OptionError(f"{type(constraint).__name__}: update({token_id}) must step, as does_advance says")
            del self.pending_constraints[index]
            if complete:
                self.complete_constraints.append(constraint)
            else:
                self.inprogress_constraint = constraint
            return complete, True
        return False, False

    def copy(self, stateful: bool = True) -> ConstraintListState:
        """Return a copy: with the state of this one, or at the start."""
        new = ConstraintListState(self.constraints)
        if stateful:
            new.complete_constraints = [constraint.copy(stateful=True) for constraint in self.complete_constraints]
            begun = self.inprogress_constraint
            new.inprogress_constraint = None if begun is None else begun.copy(stateful=True)
            new.pending_constraints = [constraint.copy() for constraint in self.pending_constraints]
        return new


def _are_token_ids(ids: list[int]) -> bool:
    return all(isinstance(token, int) and token >= 0 for token in ids)


def _token(token_id: int) -> int:
    if not has_type(token_id, int):
        raise TypeError(f"token_id={token_id!r} is a {type(token_id).__name__}; expected an int")
    return token_id
