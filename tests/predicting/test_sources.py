"""Whatever a user names as source becomes the same images, in the same order, each once."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fleet import write_digits
from hypothesis import given
from hypothesis import strategies as st

from vimdeploy.errors import ArtifactError, ImageError, UsageError
from vimdeploy.predicting.containers import ParquetColumns
from vimdeploy.predicting.items import Item, Seen, once_each
from vimdeploy.predicting.sources import check, count, expand


def keys(*named: object, columns: ParquetColumns | None = None) -> list[str]:
    return [item.key for item in expand([str(name) for name in named], columns)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_digits(tmp_path / "photos", 12, by_class=True)
    (tmp_path / "photos" / "notes.md").write_text("no image")
    return tmp_path / "photos"


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_folder_is_walked_in_sorted_order_and_other_files_are_left_out(photos):
    found = keys(photos)
    assert len(found) == 12
    assert found == sorted(found)
    assert all(name.endswith(".png") for name in found)


def test_a_glob_a_list_and_standard_input_name_the_same_images(photos, monkeypatch):
    everything = keys(photos)
    assert keys(photos / "*" / "*.png") == everything
    listing = photos.parent / "list.txt"
    listing.write_text("".join(f"photos/{Path(key).relative_to(photos)}\n" for key in everything))
    assert keys(listing) == everything
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(everything) + "\n\n"))
    assert keys("-") == everything


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (path,) = write_digits(tmp_path, 1)
    odd = path.rename(tmp_path / "a[1]*.png")
    assert keys(odd) == [str(odd)]


def test_links_are_followed_and_a_loop_ends(photos):
    (photos / "again").symlink_to(photos)
    linked = photos.parent / "elsewhere"
    write_digits(linked, 2)
    (photos / "linked").symlink_to(linked)
    assert len(keys(photos)) == 14


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_shard_yields_its_images_with_labels_as_webdataset_writes_them(photos, suffix):
    content = Path(keys(photos)[0]).read_bytes()
    members = {"a.jpg": content, "a.cls": b"3", "a.json": b"{}", "sub/b.cls": b"4\n", "sub/b.png": content + b" "}
    shard = tar_of(photos.parent / f"shard.{suffix}", members, "w:gz" if suffix.endswith("gz") else "w")
    found = list(expand([str(shard)]))
    assert [(item.key, item.label) for item in found] == [(f"{shard}/a.jpg", "3"), (f"{shard}/sub/b.png", "4")]
    assert [item.read() for item in found] == [content, content + b" "]


def test_the_headers_of_a_large_tar_do_not_pile_up_in_memory(tmp_path, monkeypatch):
    shard = tar_of(tmp_path / "shard.tar", {f"{i:04d}.png": b"x" for i in range(500)})
    seen = []
    original = tarfile.open

    def remembered(*arguments, **options):
        seen.append(original(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(tarfile, "open", remembered)
    for _ in expand([str(shard)]):
        assert len(vars(seen[0])["members"]) <= 1


def test_parquet_is_read_from_plain_bytes_and_from_hugging_faces_structure(photos):
    content = Path(keys(photos)[0]).read_bytes()
    plain = pa.table({"name": ["x", "y"], "jpg": [content, None], "label": [3, 4]})
    pq.write_table(plain, photos.parent / "plain.parquet")
    found = list(expand([str(photos.parent / "plain.parquet")], ParquetColumns(label="label")))
    assert [item.key for item in found] == [f"{photos.parent}/plain.parquet#{row}" for row in (0, 1)]
    assert [item.label for item in found] == ["3", "4"]
    assert found[0].read() == content
    with pytest.raises(ImageError, match="no image bytes"):
        found[1].read()
    nested = pa.table({"img": [{"bytes": content, "path": "x.png"}], "id": ["seven"]})
    pq.write_table(nested, photos.parent / "nested.parquet")
    (item,) = expand([str(photos.parent / "nested.parquet")], ParquetColumns(key="id"))
    assert (item.key, item.read()) == ("seven", content)


def test_parquet_with_two_possible_columns_asks_which(tmp_path):
    pq.write_table(pa.table({"front": [b"a"], "back": [b"b"]}), tmp_path / "two.parquet")
    with pytest.raises(UsageError, match="not plain") as refused:
        keys(tmp_path / "two.parquet")
    assert "front" in refused.value.hint
    (item,) = expand([str(tmp_path / "two.parquet")], ParquetColumns(image="back"))
    assert item.read() == b"b"
    with pytest.raises(UsageError, match="no column 'top'"):
        keys(tmp_path / "two.parquet", columns=ParquetColumns(image="top"))


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz", "table.parquet"])
@pytest.mark.parametrize("content", [b"", b"no such thing" * 100])
def test_a_damaged_shard_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ArtifactError, ImageError), match=re.escape(name)):
        keys(tmp_path / name)


def test_a_tar_cut_in_the_middle_says_so_for_the_image_it_cuts(photos):
    content = os.urandom(20_000)
    shard = tar_of(photos.parent / "shard.tar", {"a.png": content, "b.png": content})
    shard.write_bytes(shard.read_bytes()[:30_000])
    with pytest.raises((ArtifactError, ImageError), match=r"shard\.tar"):
        [item.read() for item in expand([str(shard)])]


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.png", "none.png"])
def test_a_source_that_is_missing_is_named(tmp_path, name):
    with pytest.raises(ImageError, match=r"nowhere|none"):
        list(expand([str(tmp_path / name)]))


def test_missing_sources_are_found_before_the_first_image_is_read(photos):
    with pytest.raises(ImageError, match="nowhere"):
        check([str(photos), str(photos.parent / "nowhere")])


def test_counting_gives_what_expanding_gives_where_it_costs_nothing(photos):
    named = [str(photos), str(photos / "*" / "0*.png"), keys(photos)[0]]
    assert count(named) == len(keys(*named))
    tar_of(photos / "shard.tar", {"a.png": b"x"})
    assert count([str(photos)]) is None


def test_an_unreadable_address_is_told_in_words(monkeypatch):
    with pytest.raises(UsageError, match="no file system"):
        keys("nosuchscheme://bucket/photos")


@given(st.lists(st.text(max_size=4)))
def test_every_key_goes_through_once(names):
    repeated: list[str] = []
    items = [Item(name, bytes) for name in names]
    once = [item.key for item in once_each(items, repeated.append)]
    assert once == list(dict.fromkeys(names))
    assert len(once) + len(repeated) == len(names)


def test_keys_are_remembered_beyond_the_recent_ones(monkeypatch):
    monkeypatch.setattr(Seen, "_RECENT", 16)
    seen = Seen()
    assert all(seen.add(str(i)) for i in range(1000))
    assert not any(seen.add(str(i)) for i in range(1000))
