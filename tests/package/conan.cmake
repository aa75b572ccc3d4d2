# SPDX-License-Identifier: MIT
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
file(REMOVE_RECURSE ${WORK}/conan)
foreach(recipe conanfile.py test_package/conanfile.py)
  string(MAKE_C_IDENTIFIER ${recipe} name)
  run(${PYTHON} -c "import py_compile; py_compile.compile('${SOURCE}/cmake/conan/${recipe}', '${WORK}/conan/${name}.pyc', doraise=True)")
endforeach()
run(${PYTHON} -B ${CMAKE_CURRENT_LIST_DIR}/conan_recipe_check.py ${SOURCE} ${WORK}/conan/export ${VERSION})
# What the recipe exports must be all that CMake asks for.
run(${CMAKE_COMMAND} -S ${WORK}/conan/export -B ${WORK}/conan/build -G ${GENERATOR} -D CMAKE_CXX_COMPILER=${CXX}
  -D FLASHMEMORY_INSTALL=ON -D FLASHMEMORY_TESTS=OFF -D FLASHMEMORY_EXAMPLES=OFF -D FLASHMEMORY_TRAIN=OFF)
