# How everything is compiled: C++20, strict warnings, optional sanitizers, mold and ccache when present.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
# One code model for libraries and programs, so that they share precompiled headers (Debian links PIE by default).
add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-fPIC>)
add_compile_definitions(NOMINMAX)  # absl exports it; equal everywhere for the same reason
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
# Invariant checks are AS_CHECK (always on); NDEBUG only silences third-party asserts.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")

option(AGENTSERVE_WERROR "Warnings are errors" OFF)
option(AGENTSERVE_FUZZ "Build libFuzzer targets (clang only)" OFF)
set(AGENTSERVE_SANITIZE "" CACHE STRING "Comma-separated -fsanitize list")

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # Cache hits across checkouts: no absolute paths in keys; precompiled headers are looked through.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${CCACHE_PROGRAM})
endif()
find_program(MOLD_PROGRAM mold)
if(MOLD_PROGRAM)
  add_link_options(-fuse-ld=mold)
endif()
if(AGENTSERVE_SANITIZE)
  add_compile_options(-fsanitize=${AGENTSERVE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${AGENTSERVE_SANITIZE})
endif()
if(AGENTSERVE_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)  # coverage of the libraries guides the fuzzers
endif()

add_library(agentserve_warnings INTERFACE)
target_compile_options(agentserve_warnings INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor -Woverloaded-virtual
  -Wimplicit-fallthrough $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety -Werror=thread-safety>
  # GCC 12 at -O2 reports these on correct moves of std::variant and std::string (GCC bugs 105562, 105651, 105329).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-restrict;-Wno-array-bounds;-Wno-stringop-overflow;-Wno-stringop-overread>
  $<$<BOOL:${AGENTSERVE_WERROR}>:-Werror>)
target_include_directories(agentserve_warnings INTERFACE ${CMAKE_SOURCE_DIR})

# The commit that --version shows; regenerated on every build, recompiles one small file only when it changed.
add_custom_target(agentserve_version_header
  COMMAND ${CMAKE_COMMAND} -DSRC=${CMAKE_SOURCE_DIR} -DOUT=${CMAKE_BINARY_DIR}/generated/version_commit.h
          -DVERSION=${PROJECT_VERSION} -P ${CMAKE_SOURCE_DIR}/cmake/WriteVersion.cmake
  BYPRODUCTS ${CMAKE_BINARY_DIR}/generated/version_commit.h)
