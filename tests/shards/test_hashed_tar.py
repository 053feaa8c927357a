"""hashed_tar.py, held against tarfile."""

import hashlib
import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.hashed_tar import HashedTar

NAMES = st.text("abcXYZ019_-", min_size=1, max_size=150)  # over 100 letters need a header of their own


@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=30))
def test_it_writes_what_tarfile_writes_and_says_where_and_with_which_hash(members: dict[str, bytes]):
    ours, theirs = io.BytesIO(), io.BytesIO()
    tar = HashedTar(ours)
    offsets = {name: tar.add(name, data) for name, data in members.items()}
    tar.finish()
    with tarfile.open(fileobj=theirs, mode="w") as other:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            other.addfile(member, io.BytesIO(data))
    assert ours.getvalue() == theirs.getvalue()
    assert tar.size == len(ours.getvalue())
    assert tar.sha256.hexdigest() == hashlib.sha256(ours.getvalue()).hexdigest()
    ours.seek(0)
    with tarfile.open(fileobj=ours) as read:
        assert {member.name: member.offset_data for member in read} == offsets
