# SPDX-License-Identifier: MIT
# Builds the checkout that holds it, two folders up: conan create cmake/conan
import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

required_conan_version = ">=2.0.9"


class FlashmemoryConan(ConanFile):
    name = "flashmemory"
    description = "Chunked KV store, memory indexer and lookahead sparse attention for inference engines"
    license = "MIT"
    topics = ("llm", "inference", "attention", "kv-cache")
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False], "fPIC": [True, False], "with_openmp": [True, False]}
    default_options = {
        "shared": False,
        "fPIC": True,
        "with_openmp": True,
        "fmt/*:header_only": True,  # compiled into our .cpp files, so that consumers never link it
    }
    implements = ["auto_shared_fpic"]

    @property
    def _checkout(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self):
        text = load(self, os.path.join(self._checkout, "include", "flashmemory", "version.hpp"))
        self.version = ".".join(re.findall(r"#define FLASHMEMORY_VERSION_\w+ (\d+)", text))

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "src/*"):
            copy(self, pattern, self._checkout, self.export_sources_folder)

    def layout(self):
        self.folders.root = os.path.join("..", "..")
        cmake_layout(self)

    def requirements(self):
        # Header-only ones are build-time only; a static flashmemory passes highway on to its consumers.
        self.requires("highway/[>=1.0.3 <2]")
        self.requires("fmt/[>=9 <12]", visible=False)
        self.requires("nlohmann_json/[>=3.10 <4]", visible=False)
        self.requires("xxhash/[>=0.8 <1]", visible=False)

    def validate(self):
        check_min_cppstd(self, 17)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["FLASHMEMORY_INSTALL"] = True
        toolchain.cache_variables["FLASHMEMORY_TESTS"] = False
        toolchain.cache_variables["FLASHMEMORY_EXAMPLES"] = False
        toolchain.cache_variables["FLASHMEMORY_TRAIN"] = False
        toolchain.cache_variables["FLASHMEMORY_OPENMP"] = bool(self.options.with_openmp)
        toolchain.generate()
        deps = CMakeDeps(self)
        deps.set_property("highway", "cmake_file_name", "hwy")
        deps.set_property("highway::hwy", "cmake_target_name", "hwy::hwy")
        deps.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        # Conan writes these for its consumers itself.
        for folder in (("lib", "cmake"), ("lib", "pkgconfig"), ("share",)):
            rmdir(self, os.path.join(self.package_folder, *folder))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "flashmemory")
        self.cpp_info.set_property("cmake_target_name", "flashmemory::flashmemory")
        self.cpp_info.set_property("pkg_config_name", "flashmemory")
        self.cpp_info.libs = ["flashmemory"]
        self.cpp_info.requires = ["highway::hwy"]
        if not self.options.shared and self.options.with_openmp:
            self.cpp_info.sharedlinkflags = ["-fopenmp"]
            self.cpp_info.exelinkflags = ["-fopenmp"]
