# Compile rules shared by every module, and the two functions that declare modules and tests.

find_package(Threads REQUIRED)
if(NOT SLUICE_KERNELS_ONLY)
  find_package(Boost 1.81 REQUIRED)
  find_package(nlohmann_json REQUIRED)
  find_package(spdlog REQUIRED)
endif()

# What every translation unit of ours is compiled with.
add_library(sluice_options INTERFACE)
target_include_directories(sluice_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(sluice_options INTERFACE
  "$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Werror;-fno-fast-math;-ffp-contract=off>")
if(SLUICE_SANITIZE)
  target_compile_options(sluice_options INTERFACE -fsanitize=${SLUICE_SANITIZE} -fno-omit-frame-pointer
                                                  -fno-sanitize-recover=all -g1)
  target_link_options(sluice_options INTERFACE -fsanitize=${SLUICE_SANITIZE})
  # Under sanitizers GCC 12 takes parts of its own standard library (std::regex in Catch2) for uninitialised.
  target_compile_options(sluice_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
endif()
if(SLUICE_FUZZ)
  target_compile_options(sluice_options INTERFACE -fsanitize=fuzzer-no-link,address,undefined
                                                  -fno-sanitize-recover=all -g1)
  target_link_options(sluice_options INTERFACE -fsanitize=address,undefined)
endif()

# sluice_add_module(NAME SOURCES a.cc ... DEPS other ... [LIBS external::lib ...])
# Declares the static library sluice_NAME. DEPS are our own modules, and are the only includes allowed.
function(sluice_add_module name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  list(TRANSFORM ARG_DEPS PREPEND sluice_)
  if(ARG_SOURCES)
    add_library(sluice_${name} STATIC ${ARG_SOURCES})
    target_link_libraries(sluice_${name} PUBLIC sluice_options ${ARG_DEPS} ${ARG_LIBS})
  else()
    add_library(sluice_${name} INTERFACE)
    target_link_libraries(sluice_${name} INTERFACE sluice_options ${ARG_DEPS} ${ARG_LIBS})
  endif()
endfunction()

# sluice_add_test(NAME SOURCES a_test.cc ... DEPS module ... [LIBS external::lib ...])
# Declares the executable test_NAME, which the target unit_tests builds with all others, and registers it with ctest
# under the same name. Tests find their data through the compile definition SLUICE_TEST_DATA (an absolute path to
# tests/data).
function(sluice_add_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  list(TRANSFORM ARG_DEPS PREPEND sluice_)
  add_executable(test_${name} ${ARG_SOURCES})
  target_link_libraries(test_${name} PRIVATE sluice_options sluice_test_main ${ARG_DEPS} ${ARG_LIBS})
  target_compile_definitions(test_${name} PRIVATE SLUICE_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data"
                                                  SLUICE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  if(NOT TARGET unit_tests)
    add_custom_target(unit_tests)
  endif()
  add_dependencies(unit_tests test_${name})
  add_test(NAME ${name} COMMAND test_${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 600)
endfunction()

# sluice_add_fuzzer(NAME SOURCES fuzz_x.cc DEPS module ...)
function(sluice_add_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  list(TRANSFORM ARG_DEPS PREPEND sluice_)
  add_executable(fuzz_${name} ${ARG_SOURCES})
  target_link_libraries(fuzz_${name} PRIVATE sluice_options ${ARG_DEPS} ${ARG_LIBS})
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer,address,undefined)
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)
  endif()
  add_dependencies(fuzzers fuzz_${name})
endfunction()
