# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import os

import pytest

from hf_segcap.files import relative_path


def test_relative_paths_lead_to_the_file(tmp_path):
    for folder in ("pictures", "out", "elsewhere/deep"):
        (tmp_path / folder).mkdir(parents=True)
    picture = tmp_path / "pictures" / "a.png"
    picture.write_bytes(b"a")
    assert relative_path(picture, tmp_path / "out") == "../pictures/a.png"
    try:
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
        (tmp_path / "pictures" / "b.png").symlink_to(picture)
    except OSError:
        pytest.skip("this system has no links")
    # the folder is a link: ".." leads out of what it points to; a file that is one keeps its name
    for name in ("a.png", "b.png"):
        found = relative_path(tmp_path / "pictures" / name, tmp_path / "link")
        assert found == f"../../pictures/{name}" and os.path.exists(os.path.join(tmp_path / "link", found))
