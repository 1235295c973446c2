"""Building and loading the compiled libraries: build information, errors, reused memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from op_checks import run_python

import exml_fast
import exml_fast.ops
from exml_fast._native import WHY_NO_REUSED_MEMORY, reused_memory

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


@pytest.mark.compiled
def test_build_info() -> None:
    info = exml_fast.build_info()
    assert info["version"] == exml_fast.__version__
    assert info["torch"] == torch.__version__
    assert info["built_for"] and tuple(map(int, info["built_for"].split(".")[:2])) >= (2, 11)
    assert info["cpu_capability"] in ("baseline", "avx2", "avx512")
    assert info["compiler"] and info["git_commit"]
    assert info["cuda_archs"] is None or info["cuda_archs"]


@pytest.mark.compiled
def test_the_ops_work_with_another_torch_than_the_one_compiled_against() -> None:
    built = "types.SimpleNamespace(TORCH='1.0.0', CUDA_ARCHS=None, GIT_COMMIT='0')"
    code = (
        f"import sys, types; sys.modules['exml_fast._built_for'] = {built}\n"
        "import exml_fast, exml_fast.ops, torch\n"
        "assert exml_fast.ops.average_pool2d(torch.ones(1, 1, 2, 2), (2, 2)).item() == 1\n"
        "assert exml_fast._native.COMPILED and exml_fast._native._memory is None\n"
        "with exml_fast._native.reused_memory(): torch.ones(1 << 20)\n"
        "info = exml_fast.build_info()\n"
        "assert info['built_for'] == '1.0.0' and info['torch'] == torch.__version__, info\n"
        "print(info['reused_memory'])"
    )
    done = python(code, EXML_EXTENSION="")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("it was compiled for torch 1.0.0, but this is torch")


@pytest.mark.compiled
def test_the_library_of_the_ops_uses_the_stable_abi_alone() -> None:
    library = Path(exml_fast.__file__).with_name("_ops.so")
    if shutil.which("nm") is None:
        pytest.skip("needs nm of binutils, which lists the functions that a library calls")
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert not [
        name for name in names if name.startswith(("_ZN2at", "_ZNK2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch", "Py"))
    ]
    assert any(name.startswith("torch_") for name in names)


def test_without_an_extension_one_line_says_so_and_all_ops_work() -> None:
    why = "the extension is not compiled"
    code = (
        "import sys; sys.modules['exml_fast._built_for'] = None\n"
        "import exml_fast, exml_fast.ops, torch\n"
        "assert exml_fast.ops.average_pool2d(torch.ones(1, 1, 2, 2), (2, 2)).item() == 1\n"
        "assert not exml_fast._native.COMPILED"
    )
    done = python(code, EXML_EXTENSION="")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert len(said) == 1 and why in said[0] and "pip install --no-build-isolation" in said[0]


SETUP = "import sys; sys.argv = ['setup.py', '--version']; __file__ = 'setup.py'; exec(open('setup.py').read())"


def test_setup_without_torch_says_what_to_install() -> None:
    done = python("import sys; sys.modules['torch'] = None; " + SETUP, EXML_EXTENSION="")
    assert done.returncode != 0
    assert "pip install torch==" in done.stderr and "--no-build-isolation" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value,message", [("2", "EXML_CUDA must be 0 or 1"), ("1", "no CUDA build is possible here")])
def test_setup_names_a_bad_or_impossible_value_of_exml_cuda(value: str, message: str) -> None:
    code = SETUP
    if value == "1":  # a torch without CUDA
        code = "import torch; torch.version.cuda = None; " + SETUP
    done = python(code, EXML_CUDA=value, EXML_EXTENSION="")
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_setup_without_the_extension_needs_no_torch() -> None:
    done = python("import sys; sys.modules['torch'] = None; " + SETUP, EXML_EXTENSION="0")
    assert done.returncode == 0 and done.stdout.strip() == exml_fast.__version__
    done = python(SETUP, EXML_EXTENSION="2")
    assert done.returncode != 0 and "EXML_EXTENSION must be 0 or 1" in done.stderr


@pytest.mark.parametrize("strict", ["", "1"])
def test_a_compiler_that_fails_gives_a_package_without_the_extension(strict: str, tmp_path: Path) -> None:
    (tmp_path / "c++").write_text("#!/bin/sh\necho no compiler here >&2\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build")]
    environment = {
        "CXX": str(tmp_path / "c++"),
        "CC": str(tmp_path / "c++"),
        "EXML_CUDA": "0",
        "EXML_EXTENSION": strict,
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    assert (done.returncode != 0) == bool(strict), done.stderr
    assert ("exml_fast is installed without it" in done.stderr) != bool(strict)
    if not strict:
        (package,) = (tmp_path / "build").glob("lib*/exml_fast")
        assert (package / "ops/_registration.py").exists() and not list(package.glob("*.so"))


@pytest.mark.parametrize("stage,message", [("other", "STAGE must be build"), ("tests", "STAGE=tests needs a CUDA GPU")])
def test_the_script_for_gpus_says_what_it_needs(stage: str, message: str, tmp_path: Path) -> None:
    environment = {"STAGE": stage, "OUT": str(tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    script = ["bash", str(ROOT / "benches/gpu.sh")]
    done = subprocess.run(script, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 2 and message in done.stderr


def test_the_ops_are_registered() -> None:
    for name in ("bn_match", "image_prior", "soft_cross_entropy", "jensen_shannon", "dirichlet_targets"):
        assert hasattr(torch.ops.exml, name)


@pytest.mark.skipif(WHY_NO_REUSED_MEMORY is not None, reason=str(WHY_NO_REUSED_MEMORY))
def test_reused_memory_reuses_blocks() -> None:
    """In a process of its own: elsewhere tensors that outlive a block leave gaps, which smaller tensors fill first."""
    run_python("""
from exml_fast._native import reused_memory

before = torch.ones(1 << 20)
with reused_memory(), reused_memory():
    first = torch.ones(1 << 20)
    place = first.data_ptr()
    del first
    again, other = torch.empty(1 << 20), torch.empty(1 << 20)
    assert again.data_ptr() == place != other.data_ptr()
    del again
    parts = [torch.full((1 << 18,), float(i)) for i in range(4)]
    assert [part.data_ptr() - place for part in parts] == [0, 1 << 20, 2 << 20, 3 << 20], "four share its memory"
    assert [part.mean() for part in parts] == [0, 1, 2, 3]
    del parts[2], parts[0], parts[:]  # neighbours are joined in every order
    assert torch.empty(1 << 20).data_ptr() == place
    del before  # allocated before the block, by another allocator
    outliving = torch.full((1 << 20,), 3.0)
assert outliving.sum() == 3 << 20
del outliving
""")


def test_memory_of_libraries_may_outlive_the_block() -> None:
    """oneDNN frees its blocks by PyTorch's allocator of that time, not by the one that allocated them."""
    early = torch.ones(64, 64, 3, 3).to_mkldnn()
    with reused_memory():
        packed = torch.ones(64, 64, 3, 3).to_mkldnn()
        del early
    assert packed.to_dense().sum() == 64 * 64 * 9
    del packed
    with reused_memory():
        assert torch.ones(1 << 20).sum() == 1 << 20


def test_reused_memory_in_threads() -> None:
    def work(number: int) -> bool:
        with reused_memory():
            return all(bool((torch.full((50_000 + 1000 * i,), number) == number).all()) for i in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_reused_memory_is_bounded_by_the_memory_in_use() -> None:
    """In a process of its own: elsewhere each gap between older tensors adds the memory of the tensors that fit it."""
    run_python("""
import os
from exml_fast._native import reused_memory

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

with reused_memory():
    before = resident_mb()
    for megabytes in range(20, 80, 3):
        torch.ones(megabytes << 18)
    assert resident_mb() - before < 100, "of the 1,000 MB, at most 77 exist at a time"
assert resident_mb() - before < 20, "the end of the block gives the memory back"
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_can_allocate() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork, and the child would wait for them
    with reused_memory():
        kept = torch.ones(1 << 20)
        child = os.fork()
        if child == 0:
            ok = bool((torch.ones(1 << 20) + kept == 2).all())
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
    torch.set_num_threads(threads)
