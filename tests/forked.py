"""Processes of their own that need not import everything first: each is forked from one that has done so."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

# One server for each process of pytest. It has no threads, and so can fork.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["lit_ft.cli.lightning", "lit_ft.data", "lit_ft.features.cache"])
SECONDS = 240  # after which a process is ended that does not end itself


def start(function, *args, out, err=None, **variables):
    """Starts a function in a process, with what it prints in a file or two, and variables of the environment.

    A variable that is ``None`` is left out.
    """
    environment = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    files = [str(Path(file).absolute()) for file in (out, err) if file]
    process = _SERVER.Process(target=_enter, args=(function, args, files, os.getcwd(), environment))
    process.start()
    return process


def _enter(function, args, files, folder, environment):
    opened = [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for file in files]
    os.dup2(opened[0], 1)
    os.dup2(opened[-1], 2)
    os.environ.clear()
    os.environ |= environment
    os.chdir(folder)
    sys.exit(function(*args))


def wait(*processes, seconds=SECONDS):
    """The exit codes of processes, which are killed if they take longer."""
    try:
        for process in processes:
            process.join(seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def call(function, *args):
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=_SERVER) as pool:
        return pool.submit(function, *args).result(SECONDS)


def command(*args, folder, **variables):
    """Runs a command of lit-ft in a process, and gives its exit code and what it printed."""
    files = [Path(folder, f"{name}.txt") for name in ("out", "err")]
    (code,) = wait(start(lit_ft_main, [*map(str, args)], out=files[0], err=files[1], **variables))
    return CompletedProcess(args, code, *(file.read_text() for file in files))


def lit_ft_main(args):
    from lit_ft.cli import main

    return main(args)
