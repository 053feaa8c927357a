import hashlib

from pipeline.shards.sample import digest_of_keys


def test_the_digest_of_keys_is_that_of_a_sorted_list_file(tmp_path):
    (tmp_path / "val.txt").write_text("2007_000033\n2007_000042\n")
    expected = hashlib.sha256((tmp_path / "val.txt").read_bytes()).hexdigest()
    assert digest_of_keys(["2007_000042", "2007_000033"]) == expected
