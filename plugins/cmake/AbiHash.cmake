# SPDX-License-Identifier: Apache-2.0
#
# vorta_abi_hash(OUTPUT FILE...): SHA-256 over the code of FILEs, without comments and with single blanks, so that the
# hash changes with what a program relies on and not with its wording.

function(vorta_abi_hash output)
  set(code "")
  foreach(file IN LISTS ARGN)
    file(READ "${file}" text)
    string(REGEX REPLACE "/\\*[^*]*\\*+([^/*][^*]*\\*+)*/" " " text "${text}")
    string(REGEX REPLACE "//[^\n]*" " " text "${text}")
    string(REGEX REPLACE "[ \t\r\n]+" " " text "${text}")
    string(APPEND code "${text}")
  endforeach()
  string(SHA256 hash "${code}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${ARGN})
  set(${output} "${hash}" PARENT_SCOPE)
endfunction()
