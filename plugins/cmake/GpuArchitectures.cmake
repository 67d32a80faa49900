# SPDX-License-Identifier: Apache-2.0
#
# What the build compiles for: VORTA_CUDA_ARCHITECTURES as a variable of CMake or of the environment, else the GPUs of
# this machine. Include it after PyPICuda; gpu_architectures.py beside it decides.
#
# Sets vorta_architectures, and for the folders of kernels that not every GPU runs vorta_architectures_sm90 and
# vorta_architectures_sm89, which are empty if nothing of these is compiled.

set(VORTA_CUDA_ARCHITECTURES ""
    CACHE STRING "GPU architectures as CMake spells them, e.g. 80;90a-real, or release; empty: those of this machine")
set(asked "${VORTA_CUDA_ARCHITECTURES}")
if(asked STREQUAL "")
  set(asked "$ENV{VORTA_CUDA_ARCHITECTURES}")
endif()

execute_process(
  COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-code
  OUTPUT_VARIABLE codes
  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(script "${CMAKE_CURRENT_LIST_DIR}/gpu_architectures.py")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${script}" "${CMAKE_CURRENT_LIST_DIR}/../gpu.py")
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${script}" "${asked}" "${codes}"
  OUTPUT_VARIABLE answer
  ERROR_VARIABLE error
  RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${error}")
endif()

# The list under `key` of the answer, as a list of CMake.
function(vorta_answer key output)
  string(JSON count LENGTH "${answer}" ${key})
  set(values "")
  foreach(index RANGE ${count})
    if(index LESS count)
      string(JSON value GET "${answer}" ${key} ${index})
      list(APPEND values "${value}")
    endif()
  endforeach()
  set(${output} "${values}" PARENT_SCOPE)
endfunction()

vorta_answer(architectures vorta_architectures)
vorta_answer(sm90 vorta_architectures_sm90)
vorta_answer(sm89 vorta_architectures_sm89)
string(JSON reason GET "${answer}" reason)
message(STATUS "GPU architectures: ${vorta_architectures} (${reason})")
string(JSON count LENGTH "${answer}" warnings)
foreach(index RANGE ${count})
  if(index LESS count)
    string(JSON warning GET "${answer}" warnings ${index})
    message(WARNING "${warning}")
  endif()
endforeach()
