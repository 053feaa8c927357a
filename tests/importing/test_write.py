"""An import is whole or not there, goes on after a stop, and gives the same bytes every time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import own
from pipeline.errors import DatasetError, UserError
from pipeline.importing import making
from pipeline.importing import write as writing
from pipeline.importing.write import Settings, import_data
from tests.importing.conftest import (
    FIXTURES,
    encoded,
    jpeg,
    labels_of,
    pairs,
    record_of,
    tree,
    unpacked,
    write,
)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_input_gives_the_same_bytes_on_one_core_or_several(workers: int, tmp_path: Path):
    source = write(tmp_path / "in", pairs(20))
    import_data(source, tmp_path / "one", Settings())
    import_data(source, tmp_path / "two", Settings(workers=workers))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_folder_a_zip_and_tars_give_the_same_labels(tmp_path: Path):
    folder = unpacked("cvat", tmp_path / "cvat")
    for mode in ("", "gz", "bz2"):
        with tarfile.open(tmp_path / f"cvat.tar{mode}", f"w:{mode}") as packed:
            packed.add(folder, "task")
    import_data(folder, tmp_path / "out", Settings())
    for archive in (FIXTURES / "cvat.zip", *sorted(tmp_path.glob("cvat.tar*"))):
        out = tmp_path / f"from-{archive.name}"
        import_data(archive, out, Settings())
        for inner in ("images", "masks", "splits"):
            assert {p.name for p in (out / inner).iterdir()} == {
                p.name for p in (tmp_path / "out" / inner).iterdir()
            }
        assert tree(out / "masks") == tree(tmp_path / "out/masks")
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_the_result_is_a_folder_of_own_data(tmp_path: Path):
    import_data(write(tmp_path / "in", pairs()), tmp_path / "out", Settings())
    own.copy(tmp_path / "out", tmp_path / "raw", ["background", "class1", "class2"])
    assert own.LAYOUT.sample(own.root(tmp_path / "raw"), "p0", 3).key == "p0"


def test_a_second_run_makes_nothing_again(tmp_path: Path, fcn: Callable, capsys):
    source = write(tmp_path / "in", pairs())
    assert fcn("import", source, tmp_path / "out") == 0
    before = tree(tmp_path / "out")
    assert fcn("import", source, tmp_path / "out") == 0
    assert "4 photos (4 were there)" in capsys.readouterr().out
    assert tree(tmp_path / "out") == before


def test_a_mended_mask_is_imported_alone(tmp_path: Path):
    source = write(tmp_path / "in", pairs() | {"classes.txt": "a\nb\nc\n"})
    import_data(source, tmp_path / "out", Settings())
    before = tree(tmp_path / "out")
    write(source, {"masks/p1.png": encoded(np.ones((12, 16), np.uint8))})
    assert import_data(source, tmp_path / "out", Settings()).num_kept == 3
    changed = {name for name, content in tree(tmp_path / "out").items() if content != before[name]}
    assert changed == {"masks/p1.png", "import.json"}


def test_a_photo_that_left_the_source_leaves_the_import(tmp_path: Path):
    source = write(tmp_path / "in", pairs())
    import_data(source, tmp_path / "out", Settings())
    (source / "images/p3.jpg").unlink()
    result = import_data(source, tmp_path / "out", Settings())
    assert (result.num_photos, result.left_out) == (3, {"masks/p3.png": "a mask without a photo"})
    assert not (tmp_path / "out/images/p3.jpg").exists()


@pytest.mark.parametrize(
    "name", ["masks/p1.png", "images/extra.jpg", "splits/mine.txt", "splits/train.txt", "classes.txt"]
)
def test_an_import_that_the_user_changed_is_not_overwritten(name: str, tmp_path: Path):
    source = write(tmp_path / "in", pairs())
    import_data(source, tmp_path / "out", Settings())
    write(tmp_path / "out", {name: b"mine"})
    before = tree(tmp_path / "out")
    with pytest.raises(DatasetError, match=name):
        import_data(source, tmp_path / "out", Settings())
    assert tree(tmp_path / "out") == before


def test_a_folder_that_is_no_import_is_not_touched(tmp_path: Path):
    write(tmp_path / "out", {"thesis.txt": "years of work"})
    with pytest.raises(DatasetError, match="out"):
        import_data(write(tmp_path / "in", pairs()), tmp_path / "out", Settings())
    assert tree(tmp_path / "out") == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize("dest", ["in/out", "in", "."])
def test_a_destination_in_the_source_is_refused(dest: str, tmp_path: Path):
    source = write(tmp_path / "in", pairs())
    before = tree(tmp_path)
    with pytest.raises(DatasetError):
        import_data(source, tmp_path / dest, Settings())
    assert tree(tmp_path) == before


def test_a_stopped_import_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path / "in", pairs(8))
    import_data(source, tmp_path / "whole", Settings())
    calls = []
    real = making.finished

    def stop_at_the_fifth(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(making, "finished", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        import_data(source, tmp_path / "out", Settings())
    assert not (tmp_path / "out").exists()
    assert import_data(source, tmp_path / "out", Settings()).num_kept == 4
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_killed_import_leaves_nothing_at_the_final_name_and_goes_on(tmp_path: Path):
    files = pairs(400)
    source = write(tmp_path / "in", files)
    command = [
        sys.executable,
        "-m",
        "pipeline.cli.main",
        "import",
        str(source),
        str(tmp_path / "out"),
        "--workers",
        "2",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    journal = tmp_path / ".out.importing" / writing.JOURNAL
    deadline = time.monotonic() + 60
    while (
        not (journal.exists() and journal.stat().st_size)
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if (tmp_path / "out").exists():
        pytest.skip("the import was faster than the kill")
    result = import_data(source, tmp_path / "out", Settings())
    assert result.num_kept > 0
    import_data(source, tmp_path / "whole", Settings())
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_file_cut_off_by_a_crash_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path / "in", pairs())
    import_data(source, tmp_path / "whole", Settings())
    with monkeypatch.context() as patch:
        patch.setattr(writing, "make_lists", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_data(source, tmp_path / "out", Settings())
    work = tmp_path / ".out.importing"
    (work / "masks/p2.png").write_bytes((work / "masks/p2.png").read_bytes()[:20])
    lines = (work / writing.JOURNAL).read_text().splitlines()
    without_files = json.loads(lines[0]) | {"written": {}}
    (work / writing.JOURNAL).write_text(
        "\n".join([json.dumps(without_files), *lines[1:], '{"key": "p3", "ha'])
    )
    assert import_data(source, tmp_path / "out", Settings()).num_kept == 2
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_what_systems_and_tools_leave_is_passed_over_and_counted(tmp_path: Path):
    junk = {
        "images/.DS_Store": b"x",
        "images/._p0.jpg": b"x",
        "masks/Thumbs.db": b"x",
        "masks/desktop.ini": b"x",
        "__MACOSX/images/p0.jpg": b"x",
        ".git/config": b"x",
    }
    write(tmp_path / "in", pairs() | junk | {"images/notes.docx": b"x", "images/q.HEIC": b"x"})
    result = import_data(tmp_path / "in", tmp_path / "out", Settings())
    assert (result.num_photos, result.num_passed_over) == (4, len(junk))
    assert record_of(tmp_path / "out")["passed_over"] == len(junk)
    assert result.left_out.keys() == {"images/notes.docx", "images/q.HEIC"}
    assert "convert" in result.left_out["images/q.HEIC"]


def test_links_are_left_out_and_said(tmp_path: Path):
    source = write(tmp_path / "in", pairs())
    write(tmp_path / "secret", {"a.jpg": b"x"})
    (source / "images/link.jpg").symlink_to(tmp_path / "secret/a.jpg")
    (source / "linked").symlink_to(tmp_path / "secret")
    result = import_data(source, tmp_path / "out", Settings())
    assert {"images/link.jpg", "linked"} <= result.left_out.keys()


def test_a_class_without_a_training_pixel_is_warned_of(tmp_path: Path, fcn: Callable, capsys):
    write(tmp_path / "in", pairs() | {"classes.txt": "background\ncat\ndog\nunicorn\n"})
    assert fcn("import", tmp_path / "in", tmp_path / "out") == 0
    assert "unicorn" in capsys.readouterr().out.partition("warning")[2]


def test_two_formats_that_fit_ask_for_a_choice(tmp_path: Path, fcn: Callable, capsys):
    source = unpacked("coco", tmp_path / "in")
    unpacked("labelme", source)
    assert fcn("import", source, tmp_path / "out") == 2
    assert "--format" in capsys.readouterr().err
    assert fcn("import", source, tmp_path / "out", "--format", "coco") == 0
    assert record_of(tmp_path / "out")["format"] == "coco"


@pytest.mark.parametrize("arguments", [["--format", "cvat"], ["--format", "nonsense"], ["--range", "2", "1"]])
def test_options_that_do_not_fit_are_refused(arguments: list[str], tmp_path: Path, fcn: Callable, capsys):
    assert fcn("import", write(tmp_path / "in", pairs()), tmp_path / "out", *arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_an_export_of_cvat_as_pascal_voc_names_the_other_export(tmp_path: Path, fcn: Callable, capsys):
    source = unpacked("cvat", tmp_path / "in")
    shutil.rmtree(source / "SegmentationClass")
    assert fcn("import", source, tmp_path / "out") == 2
    assert "Segmentation mask 1.1" in capsys.readouterr().err


def test_memory_stays_flat(tmp_path: Path):
    """The photos are read one at a time: a large import takes no more than a small one."""
    big = encoded(np.eye(1500, dtype=np.uint8))
    photo = encoded(np.zeros((1500, 1500, 3), np.uint8))
    peaks = []
    for num in (4, 24):
        source = tmp_path / f"in{num}"
        write(
            source,
            {f"images/{n}.png": photo for n in range(num)} | {f"masks/{n}.png": big for n in range(num)},
        )
        code = (
            "import resource, sys; from pathlib import Path; from pipeline.importing.write import *; "
            f"import_data(Path({str(source)!r}), Path({str(tmp_path / f'out{num}')!r}), Settings()); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] < peaks[0] + 30  # MiB; one photo has 7, twenty more would be 130


def test_a_zip_from_a_mac_is_read(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name, content in pairs().items():
            packed.writestr(f"my export/{name}", content)
            packed.writestr(f"__MACOSX/my export/._{Path(name).name}-{len(name)}", b"x")
    result = import_data(tmp_path / "a.zip", tmp_path / "out", Settings())
    assert (result.num_photos, result.num_passed_over) == (4, 8)


def test_several_tasks_of_cvat_beside_each_other_are_one_data_set(tmp_path: Path, fcn: Callable, capsys):
    source = tmp_path / "in"
    unpacked("cvat", source / "task_1")
    unpacked("cvat", source / "task_2")
    result = import_data(source, tmp_path / "out", Settings())
    assert result.num_photos == 8
    write(
        source,
        {"task_2/labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nx:51,221,255::\n"},
    )
    assert fcn("import", source, tmp_path / "other") == 2
    assert "task_2/labelmap.txt" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_found_however_a_mac_spells_their_letters(form: str, tmp_path: Path):
    source = unpacked("coco", tmp_path / "in")
    (photo,) = source.rglob("stra*")
    photo.rename(photo.with_name(unicodedata.normalize(form, "stra\u00dfe \u00e9.jpg")))
    (path,) = source.rglob("instances_train*")
    text = path.read_text().replace("stra\\u00dfe.v2.jpg", "stra\\u00dfe \\u00e9.jpg")
    path.write_text(text)
    assert import_data(source, tmp_path / "out", Settings()).num_photos == 4


PAIRED = {  # photos and their masks
    "left and right eye": {"images/0_L.jpg": "masks/0_L.png", "images/0_R.jpg": "masks/0_R.png"},
    "photos whose names are those of masks": {"images/man_with_mask.jpg": "masks/man_with_mask.png"},
    "beside each other": {"man_with_mask.jpg": "man_with_mask.png", "b.jpg": "b_mask.png"},
    "one folder": {"images/a.jpg": "images/a_mask.png", "images/b.JPG": "images/b_Segmentation.png"},
    "endings in capitals": {"a.png": "a_GT.png", "b.png": "b_Label.png"},
}


@pytest.mark.parametrize("layout", PAIRED)
def test_a_photo_finds_its_mask_by_its_name(layout: str, tmp_path: Path):
    files: dict[str, bytes | str] = {}
    for number, (photo, mask) in enumerate(PAIRED[layout].items()):
        picture = np.full((12, 16, 3), 9 * number, np.uint8)
        files[photo] = encoded(picture) if photo.endswith("png") else jpeg(seed=number)
        files[mask] = encoded(np.resize(np.array([0, 1, 2 + number], np.uint8), (12, 16)))
    extra = {
        "images/other.jpg": jpeg(seed=9),
        "masks/other.png": encoded(np.resize(np.uint8([0, 1]), (12, 16))),
    }
    files |= (
        extra
        if "masks/" in "".join(files)
        else {"other.jpg": jpeg(seed=9), "other_gt.png": extra["masks/other.png"]}
    )
    result = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings())
    labels = labels_of(tmp_path / "out")
    assert set(PAIRED[layout]) <= set(labels)
    assert not result.left_out
    for number, photo in enumerate(PAIRED[layout]):
        present = sorted({0, 1, *(2 + n for n in range(len(PAIRED[layout])))})
        assert labels[photo].max() == present.index(2 + number)


def test_a_photo_of_the_same_name_in_another_folder_is_not_taken_for_a_missing_one(
    tmp_path: Path, fcn: Callable, capsys
):
    images = [
        {"id": n, "file_name": name, "height": 12, "width": 16}
        for n, name in enumerate(("cam1/1.jpg", "cam1/2.jpg"))
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    content["annotations"] = [
        {"id": n, "image_id": n, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]} for n in range(2)
    ]
    files: dict[str, bytes | str] = {
        "instances.json": json.dumps(content),
        "cam1/1.jpg": jpeg(),
        "cam2/2.jpg": jpeg(seed=1),
    }
    assert fcn("import", write(tmp_path / "in", files), tmp_path / "out") == 2
    assert "cam1/2.jpg" in capsys.readouterr().err
    # Where the whole layout is another one, the name decides
    files = {"instances.json": files["instances.json"], "photos/1.jpg": jpeg(), "photos/2.jpg": jpeg(seed=1)}
    assert fcn("import", write(tmp_path / "moved", files), tmp_path / "out") == 0


def test_a_single_class_is_refused(tmp_path: Path, fcn: Callable, capsys):
    assert fcn("import", write(tmp_path / "in", pairs(values=(0,))), tmp_path / "out") == 2
    assert "background" in capsys.readouterr().err


def test_of_two_imports_to_one_folder_the_second_is_told_so(tmp_path: Path, fcn: Callable, capsys):
    write(tmp_path / "in", pairs())
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from pipeline.files import lock\n"
            f"with lock(Path({str(tmp_path / '.out.lock')!r}), ''): print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert fcn("import", tmp_path / "in", tmp_path / "out") == 2
    assert "imports to" in capsys.readouterr().err
    holder.communicate()
    assert fcn("import", tmp_path / "in", tmp_path / "out") == 0


def test_a_worker_that_is_killed_ends_the_import_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parent = os.getpid()

    def die(*_: object, **__: object) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(making, "finished", die)
    with pytest.raises(UserError, match="--workers"):
        import_data(write(tmp_path / "in", pairs(30)), tmp_path / "out", Settings(workers=2))
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_a_destination_is_named_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fcn: Callable):
    write(tmp_path / "in", pairs())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert fcn("import", "../in", "../here/../out/") == 0
    assert (tmp_path / "out/import.json").is_file()


def test_files_that_a_file_manager_left_in_the_import_do_not_block_the_next(tmp_path: Path):
    debris = {".DS_Store": b"x", "images/Thumbs.db": b"x", "masks/._p1.png": b"x"}
    source = write(tmp_path / "in", pairs())
    write(tmp_path / "out", {".DS_Store": b"x"})
    import_data(source, tmp_path / "out", Settings())
    expected = tree(tmp_path / "out")
    write(tmp_path / "out", debris)
    assert import_data(source, tmp_path / "out", Settings()).num_kept == 4
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("is_import", [True, False])
def test_a_repository_in_the_folder_is_not_lost(is_import: bool, tmp_path: Path):
    source = write(tmp_path / "in", pairs())
    if is_import:
        import_data(source, tmp_path / "out", Settings())
    write(tmp_path / "out", {".git/HEAD": b"ref", ".DS_Store": b"x"})
    before = tree(tmp_path / "out")
    with pytest.raises(DatasetError, match="out"):
        import_data(source, tmp_path / "out", Settings())
    assert tree(tmp_path / "out") == before


def test_a_class_that_its_folder_keeps_out_of_training_is_warned_of_with_the_option_that_divides_it(
    tmp_path: Path,
):
    files: dict[str, bytes | str] = {}
    for folder, value in (("cat", 1), ("dog", 2)):
        files |= pairs(4, values=(0, value), folder=f"{folder}/")
        files |= {f"images/{folder}/p{number}.jpg": jpeg(seed=10 * value + number) for number in range(4)}
    source = write(tmp_path / "in", files)
    (warning,) = import_data(source, tmp_path / "out", Settings()).warnings
    assert "--group '(.*)'" in warning
    assert import_data(source, tmp_path / "out", Settings(group="(.*)")).warnings == []


def test_an_exports_own_splits_are_not_to_be_grouped_otherwise(tmp_path: Path):
    files: dict[str, bytes | str] = {}
    for folder, value in (("train", 1), ("val", 2)):
        files |= pairs(4, values=(0, value), folder=f"{folder}/")
    (warning,) = import_data(write(tmp_path / "in", files), tmp_path / "out", Settings()).warnings
    assert "class2" in warning
    assert "--group" not in warning
