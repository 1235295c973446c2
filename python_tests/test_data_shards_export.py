import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_jobs import JOB, small_teacher
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from exml_fast.data import Shards
from exml_fast.data.shards import read_shard
from exml_fast.data.shards_export import export_folder, export_webdataset
from exml_fast.distributed import LocalExecutor, synthesize


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Shards:
    return synthesize(small_teacher(), tmp_path_factory.mktemp("job"), executor=LocalExecutor(0), **JOB | {"count": 18})


def test_webdataset_reads_the_tar_files(shards: Shards, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    files = export_webdataset(shards, tmp_path / "tars", per_tar=2)
    assert len(files) == 3
    again = export_webdataset(shards, tmp_path / "again", per_tar=2)
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]
    found = list(wds.WebDataset([str(f) for f in files], shardshuffle=False).decode("l8"))
    assert len(found) == 18
    first = read_shard(shards.folder, 0)
    assert np.array_equal(found[1]["png"], first.images[1, 0].numpy()) and found[1]["cls"] == int(first.labels[1])
    assert torch.allclose(torch.tensor(found[1]["json"]["logits"]), first.logits[1])


def test_image_folder_reads_the_folder(shards: Shards, tmp_path: Path) -> None:
    folder = export_folder(shards, tmp_path / "images")
    found = ImageFolder(str(folder))
    assert found.classes == ["3", "5", "7", "9"] and len(found) == 18
    assert json.loads((folder / "classes.json").read_text()) == {c: c for c in found.classes}
    image, label = found[0]
    first = read_shard(shards.folder, 0)
    assert label == 0 and torch.equal(pil_to_tensor(image)[:1], first.images[0])
    with pytest.raises(FileExistsError, match="exists already"):
        export_folder(shards, folder)
