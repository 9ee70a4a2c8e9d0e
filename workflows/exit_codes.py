"""The end of a command: one line for an error, and an exit code.

Libraries raise; nothing between them and this module turns an error into text.
"""

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

from storage.errors import ConfigError, SkysiftError
from storage.values import printable

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_QUARANTINED, EXIT_DELIVERED = 0, 1, 2, 3, 4
EXIT_INTERRUPTED = 128 + signal.SIGINT
_AGAIN_S = 1.0
_NO_SPACE_TEXTS = ("no space left on device", "os error 28", "disk quota exceeded")


class Interrupted(BaseException):
    """Ctrl-C, in a form that click passes on as it is."""


class _Stopped(BaseException):
    """A signal stops the process; context managers clean up on the way out, as after Ctrl-C."""


def run_to_exit_code(command: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command and return its exit code; errors become one line on stderr.

    Parameters
    ----------
    command
        The command; the integer that it returns, if any, is the exit code.
    debug
        Write the traceback as well.
    """
    with _stop_signals() as received:
        try:
            result = command()
            return result if isinstance(result, int) else EXIT_DONE
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "skysift"
            _say(f"{one_line(error.format_message())} (`{path} --help` shows how)")
            return EXIT_USAGE
        except click.ClickException as error:
            _say(one_line(error.format_message()))
            return error.exit_code
        except (click.Abort, Interrupted, KeyboardInterrupt):
            if sys.stderr.isatty():
                click.echo(err=True)  # the terminal shows ^C without an end of line
            _say("interrupted; what was committed is kept, and the same command continues")
            return EXIT_INTERRUPTED
        except _Stopped:
            return _say_stopped(received[0])
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output left; Python complains about the flush
            return EXIT_FAILED
        except Exception as error:
            if debug:
                traceback.print_exception(error)
            if received:  # a library turned the exception of the signal into this error
                return _say_stopped(received[0])
            line, code = failure_line(error)
            _say(line)
            return code


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Raise :class:`_Stopped` on SIGTERM and SIGHUP in the block; list the signals that came.

    An exception that a signal raises in a finalizer, a callback of C code or an event loop goes no
    further. So a timer raises it again each second, except while code cleans up after it.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        handled = sys.exception()
        while handled and not isinstance(handled, _Stopped):
            handled = handled.__context__
        if not handled:
            raise _Stopped

    previous = {
        number: signal.signal(number, stop)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under `nohup`
    }
    try:
        yield received
    finally:
        if received:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say_stopped(number: int) -> int:
    name = signal.Signals(number).name
    _say(f"stopped by {name}; what was committed is kept, and the same command continues")
    return 128 + number


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal is gone
        click.echo(f"skysift: {printable(line)}", err=True)


def failure_line(error: BaseException) -> tuple[str, int]:
    """Describe an error in one line; return the line and the exit code of the command.

    The error that says most wins, wherever it is in the chain of causes: a full disk, then a
    house error, then an error of the operating system.
    """
    chain = list(_causes(error))
    for cause in chain:
        if is_no_space(cause):
            place = getattr(cause, "filename", None)
            return (
                f"no space left on the disk{f' while writing {place}' if place else ''}: free some "
                "space or choose another place and run the same command again; "
                "what was committed is kept",
                EXIT_FAILED,
            )
    for cause in chain:
        if isinstance(cause, SkysiftError):
            code = EXIT_USAGE if isinstance(cause, ConfigError) else EXIT_FAILED
            return one_line(str(cause)), code
    for cause in chain:
        if isinstance(cause, OSError) and cause.strerror:
            place = f"{cause.filename}: " if cause.filename else ""
            return f"{place}{cause.strerror}", EXIT_FAILED
    inner = chain[-1]
    return (
        f"unexpected {type(inner).__name__}: {one_line(str(inner)) or 'no message'}; "
        "run again with --debug to see where, and please report it",
        EXIT_FAILED,
    )


def is_no_space(error: BaseException) -> bool:
    """Tell whether an error says that a disk or quota is full, whichever library raised it."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return any(text in str(error).lower() for text in _NO_SPACE_TEXTS)


def one_line(text: str) -> str:
    r"""Join the lines of a message.

    Examples
    --------
    >>> one_line("a\n  b")
    'a b'
    """
    return " ".join(text.split())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, through Ray's wrappers, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        inner = getattr(current, "cause", None)
        if isinstance(inner, BaseException):  # Ray's copy of a worker's error; its text is a trace
            current = inner
            continue
        yield current
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
