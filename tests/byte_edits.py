"""Random edits of file contents, for tests that read damaged files."""

from hypothesis import strategies as st

SPECIAL = [
    b'"',
    b",",
    b"\n",
    b"\r\n",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"-1",
    b"1e3",
    b"\xd9\xa1",
]
Edit = tuple[int, int, bytes]  # position, number of bytes to remove, bytes to insert
EDITS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.integers(0, 3),
        st.binary(max_size=4) | st.sampled_from(SPECIAL),
    )
)


def apply_edits(data: bytes, edits: list[Edit]) -> bytes:
    for position, n_removed, inserted in edits:
        at = position % (len(data) + 1)
        data = data[:at] + inserted + data[at + n_removed :]
    return data
