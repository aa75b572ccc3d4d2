# SPDX-License-Identifier: MIT
"""Conan is not in Debian: drives the recipe with stand-ins for the parts of Conan's API that it uses.

usage: conan_recipe_check.py CHECKOUT EXPORT_FOLDER VERSION
"""
import fnmatch
import importlib.util
import os
import shutil
import sys
import types

checkout, export_folder, version = sys.argv[1:]


def copy(conanfile, pattern, src, dst):
    found = 0
    for folder, _, files in os.walk(src):
        relative = os.path.relpath(folder, src)
        if relative.split(os.sep)[0] in ("build", ".git"):
            continue
        for name in files:
            path = os.path.normpath(os.path.join(relative, name))
            if fnmatch.fnmatch(path, pattern):
                os.makedirs(os.path.join(dst, relative), exist_ok=True)
                shutil.copy(os.path.join(folder, name), os.path.join(dst, path))
                found += 1
    assert found, f"the recipe copies {pattern}, which matches nothing"


class Recorder:
    """Takes every call and every attribute; remembers properties and cache variables."""

    def __init__(self, *args):
        self.properties, self.cache_variables = {}, {}

    def set_property(self, *args):
        self.properties[args[:-1]] = args[-1]

    def generate(self):
        generated.append(self)


generated = []


def module(name, **content):
    made = types.ModuleType(name)
    made.__dict__.update(content)
    sys.modules[name] = made


def read(conanfile, path):
    with open(path) as file:
        return file.read()


module("conan", ConanFile=object)
module("conan.tools")
module("conan.tools.build", check_min_cppstd=lambda conanfile, standard: None)
module("conan.tools.cmake", CMake=Recorder, CMakeDeps=type("CMakeDeps", (Recorder,), {}),
       CMakeToolchain=type("CMakeToolchain", (Recorder,), {}), cmake_layout=lambda conanfile: None)
module("conan.tools.files", copy=copy, load=read, rmdir=lambda conanfile, path: None)

spec = importlib.util.spec_from_file_location("recipe", os.path.join(checkout, "cmake", "conan", "conanfile.py"))
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)

for shared in (False, True):
    for openmp in (False, True):
        conanfile = recipe.FlashmemoryConan()
        conanfile.recipe_folder = os.path.join(checkout, "cmake", "conan")
        conanfile.export_sources_folder = export_folder
        conanfile.options = types.SimpleNamespace(shared=shared, with_openmp=openmp)
        conanfile.folders = types.SimpleNamespace()
        conanfile.cpp_info = Recorder()
        required = {}
        conanfile.requires = lambda reference, **traits: required.update({reference.split("/")[0]: traits})

        conanfile.set_version()
        assert conanfile.version == version, conanfile.version
        conanfile.export_sources()
        conanfile.layout()
        root = os.path.normpath(os.path.join(conanfile.recipe_folder, conanfile.folders.root))
        assert os.path.samefile(root, checkout), root
        conanfile.requirements()
        assert set(required) == {"highway", "fmt", "nlohmann_json", "xxhash"}, required
        assert [name for name, traits in required.items() if traits.get("visible", True)] == ["highway"]
        generated.clear()
        conanfile.generate()
        toolchain, deps = generated
        with open(os.path.join(checkout, "CMakeLists.txt")) as file:
            cmake = file.read()
        for option in toolchain.cache_variables:
            assert f"option({option} " in cmake, f"{option} is no option of the project"
        assert toolchain.cache_variables["FLASHMEMORY_OPENMP"] is openmp
        assert deps.properties[("highway::hwy", "cmake_target_name")] == "hwy::hwy"
        conanfile.package_info()
        assert conanfile.cpp_info.libs == ["flashmemory"]
        assert conanfile.cpp_info.properties[("cmake_target_name",)] == "flashmemory::flashmemory"
        assert hasattr(conanfile.cpp_info, "exelinkflags") == (openmp and not shared)
print("recipe ok")
