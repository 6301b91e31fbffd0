# Small vocabulary of targets. Every target gets C++20, the warning set and the repository root as include path.
# PCH none|base|grpc picks a precompiled header (base: std + absl; grpc: + gRPC and protobuf).
function(_serve_common target)
  cmake_parse_arguments(A "" "PCH" "SRCS;HDRS;DEPS" ${ARGN})
  target_link_libraries(${target} PRIVATE agentserve_warnings)
  if(A_PCH STREQUAL "grpc")
    target_precompile_headers(${target} REUSE_FROM agentserve_pch_grpc)
    target_link_libraries(${target} PRIVATE PkgConfig::GRPCPP protobuf::libprotobuf)
  elseif(NOT A_PCH STREQUAL "none")
    target_precompile_headers(${target} REUSE_FROM agentserve_pch_base)
  endif()
endfunction()

# serve_library(name SRCS .. DEPS .. [PCH grpc|none])   -> static library
function(serve_library name)
  cmake_parse_arguments(A "" "PCH" "SRCS;HDRS;DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SRCS} ${A_HDRS})
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${A_DEPS})
  _serve_common(${name} ${ARGN})
endfunction()

# serve_binary(name SRCS .. DEPS ..)   -> build/bin/<name>; looks for libraries in ../lib first, so that it can be bundled with them
function(serve_binary name)
  cmake_parse_arguments(A "" "PCH" "SRCS;HDRS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE ${A_DEPS})
  set_target_properties(${name} PROPERTIES BUILD_RPATH "$ORIGIN/../lib")
  target_link_options(${name} PRIVATE -Wl,--disable-new-dtags)
  _serve_common(${name} ${ARGN})
endfunction()

# serve_test(name SRCS .. DEPS .. [LABELS ..] [TIMEOUT s])   -> one ctest, GoogleTest main included
function(serve_test name)
  cmake_parse_arguments(A "" "PCH;TIMEOUT" "SRCS;DEPS;LABELS;ARGS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE ${A_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  _serve_common(${name} ${ARGN})
  add_test(NAME ${name} COMMAND ${name} ${A_ARGS} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  if(NOT A_LABELS)
    set(A_LABELS unit)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}"
    ENVIRONMENT "AGENTSERVE_BIN=${CMAKE_BINARY_DIR}/bin;AGENTSERVE_SOURCE=${CMAKE_SOURCE_DIR}")
endfunction()

# serve_bench(name SRCS .. DEPS ..)   -> build/bench/<name>, never run by ctest
function(serve_bench name)
  cmake_parse_arguments(A "" "PCH" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE ${A_DEPS} benchmark::benchmark benchmark::benchmark_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
  _serve_common(${name} ${ARGN})
endfunction()

# serve_fuzzer(name SRCS .. DEPS .. CORPUS dir)   -> only with AGENTSERVE_FUZZ; each becomes a 20 s ctest of label fuzz
function(serve_fuzzer name)
  if(NOT AGENTSERVE_FUZZ)
    return()
  endif()
  cmake_parse_arguments(A "" "CORPUS;PCH" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE ${A_DEPS} agentserve_warnings)
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  add_test(NAME ${name} COMMAND ${name} -max_total_time=20 -rss_limit_mb=2048 -timeout=10
           ${CMAKE_BINARY_DIR}/corpus/${name} ${A_CORPUS} WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/corpus/${name})
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 120)
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)  # all of them
  endif()
  add_dependencies(fuzzers ${name})
endfunction()

# serve_proto(name PROTOS a/b.proto ..)   -> library with messages and gRPC stubs; include as "agentserve/x/v1/x.pb.h"
function(serve_proto name)
  cmake_parse_arguments(A "" "" "PROTOS;DEPS" ${ARGN})
  set(out ${CMAKE_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  set(srcs)
  foreach(proto ${A_PROTOS})
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    add_custom_command(
      OUTPUT ${out}/${stem}.pb.cc ${out}/${stem}.pb.h ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h
      COMMAND protobuf::protoc -I ${CMAKE_CURRENT_SOURCE_DIR} --cpp_out=${out} --grpc_out=${out}
              --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN} ${CMAKE_CURRENT_SOURCE_DIR}/${proto}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${proto} VERBATIM)
    list(APPEND srcs ${out}/${stem}.pb.cc ${out}/${stem}.grpc.pb.cc)
  endforeach()
  add_library(${name} STATIC ${srcs})
  target_include_directories(${name} SYSTEM PUBLIC ${out})
  target_link_libraries(${name} PUBLIC PkgConfig::GRPCPP protobuf::libprotobuf ${A_DEPS})
endfunction()

# The two shared precompiled headers.
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/generated)
file(WRITE ${CMAKE_BINARY_DIR}/generated/pch_anchor.cc.in "// anchor of a precompiled header\n")
configure_file(${CMAKE_BINARY_DIR}/generated/pch_anchor.cc.in ${CMAKE_BINARY_DIR}/generated/pch_base_anchor.cc COPYONLY)
configure_file(${CMAKE_BINARY_DIR}/generated/pch_anchor.cc.in ${CMAKE_BINARY_DIR}/generated/pch_grpc_anchor.cc COPYONLY)
add_library(agentserve_pch_base OBJECT ${CMAKE_BINARY_DIR}/generated/pch_base_anchor.cc)
add_library(agentserve_pch_grpc OBJECT ${CMAKE_BINARY_DIR}/generated/pch_grpc_anchor.cc)
set(_std_headers <algorithm> <atomic> <chrono> <cstdint> <cstring> <deque> <functional> <map> <memory> <mutex>
    <optional> <span> <string> <string_view> <thread> <unordered_map> <utility> <variant> <vector>
    <absl/status/status.h> <absl/status/statusor.h> <absl/strings/str_cat.h>)
target_precompile_headers(agentserve_pch_base PRIVATE ${_std_headers})
target_precompile_headers(agentserve_pch_grpc PRIVATE ${_std_headers} <google/protobuf/message.h> <grpcpp/grpcpp.h>)
foreach(p base grpc)
  target_link_libraries(agentserve_pch_${p} PRIVATE agentserve_warnings PkgConfig::GRPCPP protobuf::libprotobuf)
endforeach()
