# SPDX-License-Identifier: MIT
if(NOT EXISTS ${FROM})
  message(STATUS "skipped: no model ${FROM}; examples/llama_cpp/run.sh --fetch gets it")
  return()
endif()
if(EXISTS ${TO} AND ${TO} IS_NEWER_THAN ${FROM})
  return()
endif()
execute_process(COMMAND ${PROGRAM} widen --model ${FROM} --out ${TO} COMMAND_ERROR_IS_FATAL ANY)
