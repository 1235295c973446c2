"""Builds the compiled libraries of exml_fast against the installed torch.

- exml_fast/_ops.so: the ops with CPU kernels, from csrc/ops and csrc/ops/cpu. It uses PyTorch's stable ABI alone and
  works with every torch from TARGET on.
- exml_fast/_ops_cuda.so: their CUDA kernels, from csrc/ops/cuda, if a CUDA toolkit and a CUDA build of torch are found.
  It uses the stable ABI too.
- exml_fast._memory: a module with the allocator of reused memory, from csrc/memory. The stable ABI has no allocators,
  so the module works with the torch and the Python that it was compiled for.

Where the compilation fails, the package is installed without the libraries: its ops are then PyTorch functions.

Environment variables: EXML_EXTENSION=0 builds no library, EXML_EXTENSION=1 makes a failed compilation an error.
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

TARGET = (2, 11)
"""The oldest torch that the ops work with."""
if tuple(map(int, torch.__version__.split(".")[:2])) < TARGET:
    sys.exit(f"exml_fast needs torch {TARGET[0]}.{TARGET[1]} or later, but torch {torch.__version__} is installed.")

MODULE = "_memory"
"""The library that is a Python module. exml_fast/_native.py loads the others by their paths."""

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


CXX = ["-std=c++20", "-O3", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas", "-g0"]
CXX.append("-fno-math-errno")  # a std::sqrt that sets errno cannot be vectorised
LINK = ["-Wl,--as-needed"]
if sanitize := os.environ.get("EXML_SANITIZE"):  # e.g. "address,undefined"; see `make asan`
    CXX += [f"-fsanitize={sanitize}", "-fno-sanitize=vptr", "-fno-omit-frame-pointer", "-g1", "-O1"]
    LINK.append(f"-fsanitize={sanitize}")
STABLE = [f"-DTORCH_TARGET_VERSION={TARGET[0]:#04x}{TARGET[1]:02x}000000000000"]


def library(make, name: str, files: list[str], flags: list[str], nvcc: tuple[str, ...] = ()):
    compiler_flags = {"cxx": CXX + flags} | ({"nvcc": [*nvcc, *flags]} if nvcc else {})
    return make(
        f"exml_fast.{name}",
        files,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=compiler_flags,
        extra_link_args=LINK,
        py_limited_api=name != MODULE,  # the other libraries call nothing of Python's, and need no libtorch_python
    )


def libraries() -> list:
    """The libraries to build. Sets TORCH_CUDA_ARCH_LIST, if CUDA kernels are among them and it is not set."""
    cpp = cpp_extension.CppExtension
    made = [
        library(cpp, "_ops", sources("ops/*.cpp") + sources("ops/cpu/*.cpp"), STABLE),
        library(cpp, MODULE, sources("memory/*.cpp"), []),
    ]
    toolkit = cuda_toolkit()
    if not wants_cuda(toolkit):
        return made
    cpp_extension.CUDA_HOME = toolkit
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", RELEASE_ARCHS)
    # A register spill is a performance bug that the compiler reports without a GPU.
    spills = "-Xptxas=-warn-spills,-warn-lmem-usage" + (",-Werror" if os.environ.get("EXML_STRICT") == "1" else "")
    binders = sources("ops/cuda/*.cpp")
    checks = [name for name in sources("ops/*.cpp") if any(Path(name).name == Path(binder).name for binder in binders)]
    files = [*checks, *binders, *sources("ops/cuda/*.cu")]
    flags = [*STABLE, "-DUSE_CUDA", "-DEXML_CUDA_LIBRARY"]
    nvcc = ("-std=c++20", "-O3", "-lineinfo", spills)
    return [*made, library(cpp_extension.CUDAExtension, "_ops_cuda", files, flags, nvcc)]


class BuildExtension(cpp_extension.BuildExtension):
    """Records what the libraries were built from and for. Those of the ops have names without Python's version."""

    def get_ext_filename(self, ext_name: str) -> str:
        name = ext_name.rpartition(".")[2]
        return super().get_ext_filename(ext_name) if name == MODULE else f"{ext_name.replace('.', '/')}.so"

    def run(self) -> None:
        folder = ROOT / "exml_fast" if self.inplace else Path(self.build_lib) / "exml_fast"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_built_for.py").unlink(missing_ok=True)  # libraries of an earlier build are not loaded
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
        with_cuda = any(extension.name.endswith("_cuda") for extension in self.extensions)
        archs = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";") if with_cuda else None
        (folder / "_built_for.py").write_text(
            f'"""Written by setup.py."""\n\nTORCH = "{torch.__version__}"\nGIT_COMMIT = "{git_commit()}"\n'
            f"CUDA_ARCHS: str | None = {archs!r}\n"
        )


setup(version=VERSION, ext_modules=libraries(), cmdclass={"build_ext": BuildExtension})
