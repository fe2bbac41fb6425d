"""InputError, hints for its messages, and the OS errors that the user can fix."""

import difflib
import errno
from collections.abc import Iterable


class InputError(Exception):
    """Invalid user input: one line that names the problem and the fix. Scripts exit with code 2."""

    def __init__(self, message: str):
        # DataLoader re-raises an error of a worker with the traceback as message: keep the end.
        line = message.rpartition("errors.InputError: ")[2].strip()
        # Escape control characters, which file names and file contents may hold.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean x?)" with the known name that is most similar; "" if none is."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {similar[0]}?)" if similar else ""


DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE_ERRNOS = (errno.EROFS, errno.EACCES, errno.EPERM)
NOT_A_FOLDER_ERRNOS = (errno.ENOTDIR, errno.EEXIST)
WRITE_REMEDIES = {  # of errors in writing a file, by errno
    **dict.fromkeys(DISK_FULL_ERRNOS, "free some space"),
    **dict.fromkeys(NOT_WRITABLE_ERRNOS, "make its folder writable, or set another"),
    **dict.fromkeys(NOT_A_FOLDER_ERRNOS, "a file has the name of a folder; rename it"),
    errno.ENAMETOOLONG: "use a shorter name",
}
