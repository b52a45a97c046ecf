"""The study of a search: where it is kept, how trials are drawn and ended, and how several processes share it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from filelock import BaseFileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lit_ft.assets import lock_beside
from lit_ft.errors import UserError
from lit_ft.tasks.monitored import Mode
from lit_ft.tuning.space import Dimension, TuneConfig, list_combinations
from lit_ft.tuning.storage import open_storage, refuse_lost_storage

RUN, REASON, EPOCHS, CHOSEN, CONTINUES = "run", "reason", "epochs", "chosen", "continues"
"""What is noted of a trial: the folder of its run, why it failed, its epochs, the model that its run handed back, and
the interrupted trial before it."""

_MAKE_SECONDS = 2.0  # that the tables of a database take

_DIRECTIONS: dict[Mode, Literal["minimize", "maximize"]] = {"min": "minimize", "max": "maximize"}


class SeededSampler(optuna.samplers.BaseSampler):
    """A tree-structured Parzen estimator whose random numbers depend on the seed and the number of the trial alone.

    So processes that share a study draw other values than each other, and one that is resumed draws what it would have
    drawn (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization). Of a space with an end nothing is drawn
    twice, as the same trial with the same seed comes to the same.

    Args:
        seed: The seed; None for other numbers each time.
        space: What is tried.
    """

    def __init__(self, seed: int | None, space: Mapping[str, Dimension]) -> None:
        self._seed = seed
        self._distributions = build_distributions(space)
        self._combinations = None if seed is None else list_combinations(space)
        self._number = -1
        self._sampler: optuna.samplers.BaseSampler | None = None

    def _of(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        if self._sampler is None or self._number != trial.number:
            words = None if self._seed is None else np.random.SeedSequence([self._seed, trial.number])
            seed = None if words is None else int(words.generate_state(1)[0])
            # Of trials that are running, it draws nothing close by.
            self._sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
            self._number = trial.number
        return self._sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The dimensions that are drawn together."""
        if self._combinations is not None:
            return self._distributions
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of those."""
        sampler = self._of(trial)
        if self._combinations is None:
            return sampler.sample_relative(study, trial, search_space)
        together = sampler.infer_relative_search_space(study, trial)
        drawn = sampler.sample_relative(study, trial, together)
        for name, distribution in search_space.items():
            if name not in drawn:
                drawn[name] = sampler.sample_independent(study, trial, name, distribution)
        tried = [one.params for one in study.get_trials(deepcopy=False)]
        untried = [one for one in self._combinations if one not in tried]
        if drawn in untried or not untried:
            return drawn
        return untried[int(np.random.default_rng([self._seed or 0, trial.number]).integers(len(untried)))]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of another dimension."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


def open_study(
    folder: Path,
    config: TuneConfig,
    space: Mapping[str, Dimension],
    mode: Mode,
    seed: int | None,
    max_epochs: int | None,
) -> optuna.Study:
    """The study of a folder, made where there is none.

    Args:
        folder: Its folder, whose name it has.
        config: The search.
        space: What is tried.
        mode: Whether the least or the greatest value is best.
        seed: Seed of what is drawn.
        max_epochs: Epochs of a whole trial; None where these have no limit.

    Raises:
        UserError: If the storage cannot be opened.
    """
    sampler, pruner = SeededSampler(seed, space), build_pruner(config, max_epochs)

    def create() -> optuna.Study:
        return optuna.create_study(
            study_name=folder.name,
            storage=open_storage(config, folder),
            sampler=sampler,
            pruner=pruner,
            direction=_DIRECTIONS[mode],
            load_if_exists=True,
        )

    with refuse_lost_storage(config, ImportError, OSError, ValueError):  # as over an URL that is none, or another file
        folder.mkdir(parents=True, exist_ok=True)
        with hold_study(folder):  # else two processes would make the tables of a database at once
            try:
                return create()
            except SQLAlchemyError:  # a machine with another folder may have made them meanwhile
                time.sleep(_MAKE_SECONDS)
                return create()


@contextmanager
def hold_study(folder: Path) -> Iterator[None]:
    """Holds a study for this process, as far as the file system of its folder has locks."""
    lock = lock_beside(folder / "study")
    try:
        with suppress(OSError, NotImplementedError):
            lock.acquire()
        yield
    finally:
        lock.release()


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Lets Optuna log nothing but errors: what becomes of each trial is printed here."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def build_pruner(config: TuneConfig, max_epochs: int | None) -> optuna.pruners.BasePruner:
    """What ends trials early.

    Raises:
        UserError: If Hyperband is asked for without a number of epochs.
    """
    if config.pruner is None:
        return optuna.pruners.NopPruner()
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=config.least_epochs)
    if max_epochs is None or max_epochs < 1:
        raise UserError("`tune.pruner`: hyperband needs the number of epochs; give `trainer.max_epochs`, or median")
    return optuna.pruners.HyperbandPruner(min_resource=min(config.least_epochs, max_epochs), max_resource=max_epochs)


def build_distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    """The dimensions of a space as a study takes them."""
    return {name: _build_distribution(one) for name, one in space.items()}


def _build_distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.keys)
    low, high = dimension.values
    if dimension.kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=dimension.kind == "log")


def list_counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that were begun, without those that go on as another one."""
    continued = {trial.user_attrs.get(CONTINUES) for trial in trials}
    return [one for one in trials if one.state != TrialState.WAITING and one.number not in continued]


def begin_trial(
    study: optuna.Study, folder: Path, space: Mapping[str, BaseDistribution], limit: int, is_local: bool
) -> tuple[Trial, BaseFileLock] | None:
    """Draws the next trial; first those that a process has left unfinished. None where there are enough.

    Args:
        study: The study.
        folder: Its folder.
        space: What is drawn.
        limit: Number of trials of all processes.
        is_local: Whether the study is kept in that folder, so that each of its processes has its locks there.

    Returns:
        The trial, and the lock that its process holds until its end.
    """
    with hold_study(folder):
        _requeue_lost(study, folder, is_local)
        if len(list_counted(study.get_trials(deepcopy=False))) >= limit:
            return None
        trial = study.ask(dict(space))
        lock = _lock_of(folder, trial.number)
        with suppress(OSError, NotImplementedError):
            lock.acquire(timeout=0)
    return trial, lock


def release_trial(lock: BaseFileLock, is_told: bool = True) -> None:
    """Lets go of a trial that has ended.

    Args:
        lock: Its lock.
        is_told: Whether the study was told so; else the file of the lock stays, by which the trial is taken up.
    """
    if is_told:
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def requeue(study: optuna.Study, trial: Trial | FrozenTrial) -> None:
    """Ends a trial that was interrupted, and lets the next one go on with its run."""
    if all(one.user_attrs.get(CONTINUES) != trial.number for one in study.get_trials(deepcopy=False)):
        study.enqueue_trial(trial.params, {CONTINUES: trial.number, RUN: trial.user_attrs.get(RUN)})
    study.tell(trial.number, state=TrialState.FAIL)


def _requeue_lost(study: optuna.Study, folder: Path, is_local: bool) -> None:
    """Takes up the trials whose processes were killed: nobody holds their locks."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        lock = _lock_of(folder, trial.number)
        if not is_local and not Path(lock.lock_file).is_file():  # of a machine that has another folder
            continue
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError, NotImplementedError):  # it goes on, or that cannot be known
            continue
        requeue(study, trial)
        release_trial(lock)


def _lock_of(folder: Path, number: int) -> BaseFileLock:
    return lock_beside(folder / f"trial_{number}")
