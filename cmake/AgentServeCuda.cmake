# CUDA is optional: AGENTSERVE_CUDA=AUTO builds the GPU backend where nvcc 12.4 or newer is found, ON insists, OFF leaves it out.
# Kernels are compiled for sm_90a only (Hopper). Nothing links against the driver or cuBLAS: driver entry points come through the
# runtime, cublasLt is loaded at run time, so the programs start on machines without a GPU.
set(AGENTSERVE_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO, ON or OFF")
set_property(CACHE AGENTSERVE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(AGENTSERVE_HAS_CUDA OFF)
if(NOT AGENTSERVE_CUDA STREQUAL "OFF" AND NOT AGENTSERVE_SANITIZE)
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a-real)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(AGENTSERVE_HAS_CUDA ON)
  elseif(AGENTSERVE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "AGENTSERVE_CUDA=ON, but no nvcc was found; put it on PATH or set CMAKE_CUDA_COMPILER")
  endif()
endif()
message(STATUS "CUDA backend: ${AGENTSERVE_HAS_CUDA}")
if(AGENTSERVE_HAS_CUDA)
  find_package(CUDAToolkit 12.4 REQUIRED)
  # CMake 3.25 does not know this nvcc's dialects (CMAKE_CXX_STANDARD is asked of CUDA too): spell them out.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA17_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA17_EXTENSION_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -lineinfo -DNDEBUG")
  set(CMAKE_CUDA_FLAGS_DEBUG "-O2 -lineinfo")
  if(CCACHE_PROGRAM)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
  endif()
endif()

# cuda_library(name SRCS .. DEPS ..)   -> static library of .cu and .cc files that see the CUDA headers; only with AGENTSERVE_HAS_CUDA
function(cuda_library name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SRCS})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Static)
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_compile_options(${name} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -Xcompiler=-fPIC>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${AGENTSERVE_WERROR}>>:-Werror=all-warnings>)
  target_link_libraries(${name} PUBLIC ${A_DEPS} CUDA::cudart_static)
endfunction()

# cuda_test(name SRCS .. DEPS ..)   -> one ctest with label gpu; its main says SKIPPED (exit 77) where no device is found
function(cuda_test name)
  cmake_parse_arguments(A "" "TIMEOUT" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests LINKER_LANGUAGE CXX
    CUDA_RUNTIME_LIBRARY Static)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -Xcompiler=-fPIC>)
  target_link_libraries(${name} PRIVATE ${A_DEPS} agentserve_cuda_test_main GTest::gtest)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS gpu SKIP_RETURN_CODE 77
    ENVIRONMENT "AGENTSERVE_BIN=${CMAKE_BINARY_DIR}/bin;AGENTSERVE_SOURCE=${CMAKE_SOURCE_DIR}")
endfunction()

# cuda_bench(name SRCS .. DEPS .. [ARGS ..] [KIND kernels|handoff])   -> build/bench/<name>, an own main that prints a table and
# JSON lines; never run by ctest. `agentserve bench KIND` (default kernels) runs it with ARGS.
function(cuda_bench name)
  cmake_parse_arguments(A "" "KIND" "SRCS;DEPS;ARGS" ${ARGN})
  if(NOT A_KIND)
    set(A_KIND kernels)
  endif()
  string(REPLACE ";" " " words "${name};${A_ARGS}")
  set_property(GLOBAL APPEND PROPERTY AGENTSERVE_BENCHES_${A_KIND} "${words}")
  add_executable(${name} ${A_SRCS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench LINKER_LANGUAGE CXX
    CUDA_RUNTIME_LIBRARY Static BUILD_RPATH "$ORIGIN/../lib")
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -Xcompiler=-fPIC>)
  target_link_libraries(${name} PRIVATE ${A_DEPS})
endfunction()
