# SPDX-License-Identifier: MIT
"""What flashmemory's recipe requires, made of the system's packages: a Conan without its center.

conan create tests/package/conan_system --name fmt --version 9.1.0, once per requirement; names and targets are those of
the center's recipes. FMT_INCLUDE in the environment is where fmt's headers are taken from instead.
"""
import glob
import os

from conan import ConanFile
from conan.tools.files import copy

# name: (headers below /usr/include, libraries, CMake file, CMake target)
known = {
    "fmt": (["fmt/*"], [], "fmt", "fmt::fmt-header-only"),
    "nlohmann_json": (["nlohmann/*"], [], "nlohmann_json", "nlohmann_json::nlohmann_json"),
    "xxhash": (["xxhash.h", "xxh3.h"], [], "xxHash", "xxHash::xxhash"),
    "cli11": (["CLI/*"], [], "CLI11", "CLI11::CLI11"),
    "eigen": (["eigen3/*"], [], "Eigen3", "Eigen3::Eigen"),
    "openblas": (["*-linux-gnu/cblas*.h", "*-linux-gnu/openblas*.h"], ["openblas"], "OpenBLAS", "OpenBLAS::OpenBLAS"),
    "highway": (["hwy/*"], ["hwy"], "highway", "highway::hwy"),
}


class SystemPackage(ConanFile):
    settings = "os", "arch", "compiler", "build_type"
    options = {"header_only": [True, False], "shared": [True, False], "fPIC": [True, False]}
    default_options = {"header_only": False, "shared": False, "fPIC": True}

    def package(self):
        headers, libraries, _, _ = known[self.name]
        for pattern in headers:
            source = os.environ.get("FMT_INCLUDE") if self.name == "fmt" else None
            copy(self, pattern, source or "/usr/include", os.path.join(self.package_folder, "include"))
        for library in libraries:
            found = sorted(glob.glob(f"/usr/lib/*-linux-gnu/**/lib{library}.so", recursive=True))
            assert found, f"lib{library}.so is not on this system"
            folder = os.path.join(self.package_folder, "lib")
            os.makedirs(folder)
            os.symlink(os.path.realpath(found[0]), os.path.join(folder, f"lib{library}.so"))

    def package_info(self):
        headers, libraries, file, target = known[self.name]
        self.cpp_info.set_property("cmake_file_name", file)
        if self.name == "highway":  # the center's has components
            self.cpp_info.components["hwy"].libs = libraries
            return
        self.cpp_info.set_property("cmake_target_name", target)
        self.cpp_info.libs = libraries
        if self.name == "fmt":
            self.cpp_info.defines = ["FMT_HEADER_ONLY=1"]
        if not libraries:
            self.cpp_info.libdirs = []
        self.cpp_info.includedirs = sorted({os.path.join("include", h.split("/")[0]) for h in headers
                                            if h.startswith("eigen3/")} or {"include"})
