# ptq_target(NAME): the one place that sets include paths, warnings and sanitizers for every target of the project.
function(ptq_target name)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_options(${name} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers
    -Wno-restrict)  # GCC 12 sees overlaps in "literal" + std::string that are not there
  if(PTQ_WERROR)
    target_compile_options(${name} PRIVATE -Werror)
  endif()
  # Results must not depend on what the compiler likes to contract: a fused multiply-add is written as one.
  target_compile_options(${name} PRIVATE -ffp-contract=off)
  if(PTQ_SANITIZE)
    # The instrumented code of std::regex makes GCC 12 see members that are not initialized.
    target_compile_options(${name} PRIVATE -fsanitize=${PTQ_SANITIZE} -fno-omit-frame-pointer -g -Wno-maybe-uninitialized)
    target_link_options(${name} PRIVATE -fsanitize=${PTQ_SANITIZE})
  endif()
endfunction()

# ptq_library(NAME SOURCES ... LINKS ...): a static library ptq_NAME with the alias ptq::NAME. LINKS is the ladder, written down.
function(ptq_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(ptq_${name} STATIC ${ARG_SOURCES})
  add_library(ptq::${name} ALIAS ptq_${name})
  target_link_libraries(ptq_${name} PUBLIC ${ARG_LINKS})
  ptq_target(ptq_${name})
endfunction()
