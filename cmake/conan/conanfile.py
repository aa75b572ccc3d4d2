# SPDX-License-Identifier: MIT
# Builds the checkout that holds it, two folders up: conan create cmake/conan
import os
import re

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir, save

required_conan_version = ">=2.0.9"

# Conan has no CUDA package: who links flashmemory::cuda finds the system's toolkit, as the library did.
find_cuda = """find_package(CUDAToolkit 12.4 REQUIRED)
foreach(_target flashmemory::cuda flashmemory::cuda_train)
  if(TARGET ${_target})
    set_property(TARGET ${_target} APPEND PROPERTY INTERFACE_LINK_LIBRARIES CUDA::cudart CUDA::cublasLt)
  endif()
endforeach()
"""


class FlashmemoryConan(ConanFile):
    name = "flashmemory"
    description = "Chunked KV store, memory indexer and lookahead sparse attention for inference engines"
    license = "MIT"
    topics = ("llm", "inference", "attention", "kv-cache")
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {
        "shared": [True, False],
        "fPIC": [True, False],
        "with_openmp": [True, False],
        "train": [True, False],
        "tools": [True, False],
        "cuda": [True, False],
        "c": [True, False],  # the C interface, which is a shared library whatever `shared` says
    }
    default_options = {
        "shared": False,
        "fPIC": True,
        "with_openmp": True,
        "train": False,
        "tools": False,
        "cuda": False,
        "c": False,
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
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "cuda/*", "include/*", "src/*"):
            copy(self, pattern, self._checkout, self.export_sources_folder, excludes="cmake/conan/*")

    def layout(self):
        self.folders.root = os.path.join("..", "..")
        cmake_layout(self)

    def requirements(self):
        # Header-only ones are build-time only; a static flashmemory passes highway and a BLAS on to its consumers.
        self.requires("highway/[>=1.0.3 <2]")
        self.requires("fmt/[>=9 <13]", visible=False)
        self.requires("nlohmann_json/[>=3.10 <4]", visible=False)
        self.requires("xxhash/[>=0.8 <1]", visible=False)
        if self.options.train:
            self.requires("openblas/[>=0.3.20 <1]")
            self.requires("eigen/[>=3.3 <6]", visible=False)
        if self.options.tools:
            self.requires("cli11/[>=2.1 <3]", visible=False)

    def validate(self):
        check_min_cppstd(self, 17)
        if self.options.tools and not self.options.train:
            raise ConanInvalidConfiguration("tools is flashmemory_train_indexer, which needs train=True")

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["FLASHMEMORY_INSTALL"] = True
        toolchain.cache_variables["FLASHMEMORY_TESTS"] = False
        toolchain.cache_variables["FLASHMEMORY_EXAMPLES"] = False
        toolchain.cache_variables["FLASHMEMORY_TRAIN"] = bool(self.options.train)
        toolchain.cache_variables["FLASHMEMORY_TRAIN_PROGRAM"] = bool(self.options.tools)
        toolchain.cache_variables["FLASHMEMORY_CUDA"] = bool(self.options.cuda)
        toolchain.cache_variables["FLASHMEMORY_C"] = bool(self.options.c)
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
        if self.options.cuda:
            save(self, os.path.join(self.package_folder, self._find_cuda), find_cuda)

    @property
    def _find_cuda(self):
        return os.path.join("lib", "cmake", "flashmemory-find-cuda.cmake")

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "flashmemory")
        core = self._component("core", "flashmemory", "flashmemory", ["highway::hwy"])
        core.set_property("pkg_config_name", "flashmemory")
        if not self.options.shared and self.options.with_openmp:
            # By name: -fopenmp would bring the consumer's compiler's own.
            core.system_libs = ["omp" if "clang" in str(self.settings.compiler) else "gomp"]
        if self.options.train:
            self._component("train", "train", "flashmemory_train", ["core", "openblas::openblas", "highway::hwy"])
        if self.options.cuda:
            self.cpp_info.set_property("cmake_build_modules", [self._find_cuda])
            self._component("cuda", "cuda", "flashmemory_cuda", ["core"])
        if self.options.c:
            self._component("c", "c", "flashmemory_c", [])
        if self.options.cuda and self.options.train:
            self._component("cuda_train", "cuda_train", "flashmemory_cuda_train", ["cuda", "train"])

    def _component(self, name, target, library, requires):
        component = self.cpp_info.components[name]
        component.set_property("cmake_target_name", f"flashmemory::{target}")
        component.libs = [library]
        component.requires = requires
        return component
