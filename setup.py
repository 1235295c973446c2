"""Builds the extension exml_fast._C against the installed torch.

The extension has CPU kernels, and CUDA kernels if a CUDA toolkit and a CUDA build of torch are found. Its sources are
all files in csrc, csrc/ops, csrc/ops/autograd and csrc/ops/cpu, and with CUDA also those in csrc/ops/cuda.

Where the compilation fails, the package is installed without the extension: its ops are then PyTorch functions.

Environment variables: EXML_EXTENSION=0 builds no extension, EXML_EXTENSION=1 makes a failed compilation an error.
EXML_CUDA=0|1 forces CUDA off or on. TORCH_CUDA_ARCH_LIST names the GPU architectures. MAX_JOBS bounds the parallel
compilations. EXML_STRICT=1 makes register spills errors. EXML_SANITIZE names sanitizers.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from setuptools import setup

WANTED = os.environ.get("EXML_EXTENSION", "")
if WANTED not in ("", "0", "1"):
    sys.exit(f"EXML_EXTENSION must be 0 or 1, got {WANTED!r}")

ROOT = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(ROOT / "exml_fast/_version.py"))["VERSION"]
if WANTED == "0":
    setup(version=VERSION)
    sys.exit()

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "exml_fast compiles against the installed torch, but torch is not installed. Run\n"
        "    pip install torch==2.11.0 torchvision==0.26.0 numpy setuptools wheel ninja pybind11\n"
        "    pip install --no-build-isolation .\n"
        "(--no-build-isolation, because an isolated build cannot see the installed torch).\n"
        "EXML_EXTENSION=0 installs the package without compiled ops, which needs no torch here."
    )

RELEASE_ARCHS = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def cuda_toolkit() -> str | None:
    """Folder of a CUDA toolkit with nvcc and libcudart. An nvcc on PATH may be a wrapper script without a toolkit."""
    candidates = [os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME, "/usr/local/cuda"]
    candidates += sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)
    for folder in filter(None, candidates):
        home = Path(folder)
        if (home / "bin/nvcc").exists() and (home / "lib64/libcudart.so").exists():
            return folder
    return None


def git_commit() -> str:
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.check_output(
            [*git, "rev-parse", "--short=12", "HEAD"], text=True, stderr=subprocess.DEVNULL
        )
        dirty = subprocess.check_output([*git, "status", "--porcelain", "-uno"], text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+changes" if dirty.strip() else "")


def wants_cuda(toolkit: str | None) -> bool:
    forced = os.environ.get("EXML_CUDA")
    if forced not in (None, "", "0", "1"):
        sys.exit(f"EXML_CUDA must be 0 or 1, got {forced!r}")
    possible = toolkit is not None and torch.version.cuda is not None
    if forced == "1" and not possible:
        sys.exit(
            "EXML_CUDA=1, but no CUDA build is possible here: "
            + (
                "no toolkit with bin/nvcc and lib64/libcudart.so was found; set CUDA_HOME"
                if toolkit is None
                else f"torch {torch.__version__} is a build without CUDA"
            )
        )
    return possible and forced != "0"


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def extension():
    toolkit = cuda_toolkit()
    cuda = wants_cuda(toolkit)
    files = [name for folder in (".", "ops", "ops/autograd", "ops/cpu") for name in sources(f"{folder}/*.cpp")]
    macros = [("EXML_VERSION", VERSION), ("EXML_TORCH_VERSION", torch.__version__)]
    cxx = ["-std=c++20", "-O3", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas", "-g0"]
    cxx.append("-fno-math-errno")  # a std::sqrt that sets errno cannot be vectorised
    if sanitize := os.environ.get("EXML_SANITIZE"):  # e.g. "address,undefined"; see `make asan`
        cxx += [f"-fsanitize={sanitize}", "-fno-sanitize=vptr", "-fno-omit-frame-pointer", "-g1", "-O1"]
    link = ["-fopenmp"] + ([f"-fsanitize={sanitize}"] if sanitize else [])
    arguments = {"extra_link_args": link}
    make = cpp_extension.CppExtension
    if cuda:
        cpp_extension.CUDA_HOME = toolkit
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", RELEASE_ARCHS)
        make = cpp_extension.CUDAExtension
        files += sources("ops/cuda/*.cpp") + sources("ops/cuda/*.cu")
        macros += [("EXML_WITH_CUDA", "1"), ("EXML_CUDA_ARCHS", os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";"))]
    defines = [f"-D{name}={value}" for name, value in macros]
    flags = {"cxx": cxx + defines}
    if cuda:
        # A register spill is a performance bug that the compiler reports without a GPU.
        flags["nvcc"] = [
            "-std=c++20",
            "-O3",
            "-lineinfo",
            "-Xptxas=-warn-spills,-warn-lmem-usage" + (",-Werror" if os.environ.get("EXML_STRICT") == "1" else ""),
        ]
    return make("exml_fast._C", files, include_dirs=[str(ROOT / "csrc")], extra_compile_args=flags, **arguments)


class BuildExtension(cpp_extension.BuildExtension):
    """Records the torch and the commit of the extension, so that an import under a different torch raises an error."""

    def run(self) -> None:
        folder = ROOT / "exml_fast" if self.inplace else Path(self.build_lib) / "exml_fast"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_built_for.py").unlink(missing_ok=True)  # an extension of an earlier build is not loaded
        try:
            super().run()
        except (Exception, SystemExit) as error:  # distutils, ninja, nvcc and torch have an error each
            if WANTED == "1":
                raise
            self.extensions = []
            print(
                f"\nexml_fast: the extension was not compiled: {error}\n"
                "exml_fast is installed without it. Everything works, with PyTorch's ops in place of the fast ones.\n"
                "`exml-fast doctor` says what is missing. EXML_CUDA=0 leaves the CUDA code out, and EXML_EXTENSION=1\n"
                "makes this message an error.",
                file=sys.stderr,
            )
            return
        (folder / "_built_for.py").write_text(
            f'"""Written by setup.py."""\n\nTORCH = "{torch.__version__}"\nGIT_COMMIT = "{git_commit()}"\n'
        )


setup(version=VERSION, ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
