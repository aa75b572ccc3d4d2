# SPDX-License-Identifier: MIT
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
file(REMOVE_RECURSE ${WORK}/conan)
foreach(recipe conanfile.py test_package/conanfile.py)
  string(MAKE_C_IDENTIFIER ${recipe} name)
  run(${PYTHON} -c "import py_compile; py_compile.compile('${SOURCE}/cmake/conan/${recipe}', '${WORK}/conan/${name}.pyc', doraise=True)")
endforeach()
run(${PYTHON} -B ${CMAKE_CURRENT_LIST_DIR}/conan_recipe_check.py ${SOURCE} ${WORK}/conan/export ${VERSION})
# What the recipe exports must be all that the library needs.
configure_and_build(${WORK}/conan/export conan -D FLASHMEMORY_INSTALL=ON -D FLASHMEMORY_TESTS=OFF -D FLASHMEMORY_EXAMPLES=OFF)
