# SPDX-License-Identifier: Apache-2.0
#
# CUDA out of PyPI: nvcc from the package cuda-toolkit[nvcc,cudart,cccl], the CuTe/CUTLASS headers from nvidia-cutlass,
# both looked up in the environment of the Python that runs the build. A CUDA installation of the machine is used only
# if the user names its nvcc with -DCMAKE_CUDA_COMPILER.
#
# Sets CMAKE_CUDA_COMPILER, CMAKE_CUDA_FLAGS and VORTA_CUTLASS_INCLUDE_DIR; include it before enable_language(CUDA).

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)

# The folders of a Python package, without importing it.
function(vorta_package_folders package output)
  execute_process(
    COMMAND
      "${Python_EXECUTABLE}" -c
      "import importlib.util as u; s = u.find_spec('${package}'); print(*(s.submodule_search_locations if s else ()), sep=';')"
    OUTPUT_VARIABLE folders
    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(${output} ${folders} PARENT_SCOPE)
endfunction()

# The first of `folders` that holds `file`, or nothing.
function(vorta_folder_with file output)
  set(${output} "" PARENT_SCOPE)
  foreach(folder IN LISTS ARGN)
    if(EXISTS "${folder}/${file}")
      set(${output} "${folder}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

if(NOT CMAKE_CUDA_COMPILER)
  vorta_package_folders(nvidia nvidia_folders)
  list(TRANSFORM nvidia_folders APPEND "/cu13")
  vorta_folder_with(bin/nvcc toolkit ${nvidia_folders})
  if(NOT toolkit)
    message(
      FATAL_ERROR
        "nvcc: not among the packages of ${Python_EXECUTABLE}, where this build looks for it. Run\n"
        "  ${Python_EXECUTABLE} -m pip install 'cuda-toolkit[nvcc,cudart,cccl]==13.0.*' nvidia-cutlass==4.2.0.0\n"
        "or name another one with -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  endif()
  set(CMAKE_CUDA_COMPILER "${toolkit}/bin/nvcc")
  # The packaged nvcc looks for the runtime in lib64, the package has lib.
  set(CMAKE_CUDA_FLAGS "$ENV{CUDAFLAGS} ${CMAKE_CUDA_FLAGS} \"-L${toolkit}/lib\"")
endif()

set(VORTA_CUTLASS_INCLUDE_DIR "" CACHE PATH "CUTLASS headers; empty: those of the package nvidia-cutlass")
if(NOT VORTA_CUTLASS_INCLUDE_DIR)
  vorta_package_folders(cutlass_library cutlass_folders)
  vorta_folder_with(source/include/cute/tensor.hpp cutlass ${cutlass_folders})
  if(NOT cutlass)
    message(
      FATAL_ERROR
        "CUTLASS headers: not among the packages of ${Python_EXECUTABLE}. Run\n"
        "  ${Python_EXECUTABLE} -m pip install nvidia-cutlass==4.2.0.0\n"
        "or name a folder with -DVORTA_CUTLASS_INCLUDE_DIR=/path/to/cutlass/include")
  endif()
  set(VORTA_CUTLASS_INCLUDE_DIR "${cutlass}/source/include") # for this run; the cache entry stays empty
endif()
