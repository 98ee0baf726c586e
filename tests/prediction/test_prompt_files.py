"""Prompt files: what is read, and one clear message for everything else."""

import json
from pathlib import Path

import pytest

from samparser.prediction.prompt_files import read_prompts

FILES = {
    "a.png": Path("photos/a.png"),
    "sub/b.jpg": Path("photos/sub/b.jpg"),
    "other/b.jpg": Path("photos/other/b.jpg"),
}


def read(tmp_path, content, columns=4):
    file = tmp_path / "prompts.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_prompts(file, FILES, columns)


def test_an_image_goes_by_its_name_its_file_name_or_its_path(tmp_path):
    for key in ("a.png", "photos/a.png"):
        assert read(tmp_path, {key: [[1, 2, 3, 4.5]]}) == {"a.png": [[1, 2, 3, 4.5]]}
    assert read(tmp_path, {"sub/b.jpg": [[1, 2]], "photos/other/b.jpg": []}, 2) == {
        "sub/b.jpg": [[1, 2]],
        "other/b.jpg": [],
    }


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    assert read(tmp_path, "\ufeff" + json.dumps({"a.png": [[1, 2]]}), 2) == {"a.png": [[1, 2]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a.png": [[1, 2, 3, NaN]]}', r"'a\.png': row 0, \[1, 2, 3, NaN\], has NaN, which is no pixel"),
        ('{"a.png": [[1, 2, 3, 4], [1, 2, Infinity, 4]]}', r"row 1, .* has Infinity, which is no pixel"),
        ('{"a.png": [[1, 2, 3, -Infinity]]}', r"has -Infinity"),
        ('{"a.png": [[1, 2, 3, 1e400]]}', r"has Infinity"),
        ({"a.png": [[1, 2, 3, 2**70]]}, r"row 0, .*has 1180591620717411303424, which is no pixel"),
        ({"a.png": [[1, 2, 3, 10**400]]}, r"has 1000+\.\.\., which is no pixel"),
        ('{"a.png": [[1, 2, 3, %s]]}' % ("9" * 5000), r"prompts\.json is not JSON that can be read \(Exceeds"),
        ({"a.png": [[1, 2, 3, True]]}, r"got true in row 0"),
        ({"a.png": [[1, 2, 3, None]]}, r"expected a list of \[x0, y0, x1, y1\], got null in row 0"),
        ({"a.png": [[1, 2, 3, "4"]]}, r'got "4" in row 0'),
        ({"a.png": [[1, 2, 3, [4]]]}, r"got \[4\] in row 0"),
        ({"a.png": None}, r"expected a list of \[x0, y0, x1, y1\], got null"),
        ({"a.png": {"x": 1}}, r"got \{\"x\": 1\}"),
        ('{"a.png": [[1, 2, 3, 4]], "a.png": [[5, 6, 7, 8]]}', r"'a\.png' stands twice; put all its rows into one"),
        ({"a.png": [[1, 2, 3, 4]], "photos/a.png": [[1, 2, 3, 4]]}, r"names the image a\.png twice"),
        ({"b.jpg": [[1, 2, 3, 4]]}, r"'b\.jpg' matches 2 images: sub/b\.jpg, other/b\.jpg"),
        ({"a.pgn": [[1, 2, 3, 4]]}, r"'a\.pgn' matches none of the images\. Did you mean 'a\.png'\?"),
        ("[" * 100_000, r"prompts\.json is nested too deeply"),
        ("\x00", r"prompts\.json is not JSON"),
        ("", r"prompts\.json is not JSON"),
        ("3", r"prompts\.json holds a int; it must hold \{"),
    ],
)
def test_anything_else_gets_one_message_that_names_the_file_and_the_place(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, content)
    assert "prompts.json" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_other_encodings_and_missing_files_are_named(tmp_path):
    (tmp_path / "prompts.json").write_bytes(b'{"\xe9.png": []}')
    with pytest.raises(ValueError, match=r"prompts\.json is not JSON that can be read \('utf-8' codec"):
        read_prompts(tmp_path / "prompts.json", FILES, 4)
    with pytest.raises(FileNotFoundError, match=r"no prompt file .*gone\.json.*must hold \{"):
        read_prompts(tmp_path / "gone.json", FILES, 2)
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        read_prompts(tmp_path, FILES, 2)
