// SPDX-License-Identifier: Apache-2.0
//
// Facts about a binary interface and their JSON form, for the programs that list one (list_abi.cpp here and in
// ../../tensorrt8/conformance). The macros take types of the namespace `trt`, which those programs define.
#ifndef VORTA_TENSORRT_CONFORMANCE_FACTS_H_
#define VORTA_TENSORRT_CONFORMANCE_FACTS_H_

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <initializer_list>

namespace conformance {

struct Fact {
  const char* name;
  long long value;
};

inline void printFacts(const char* group, std::initializer_list<Fact> facts) {
  std::printf("    \"%s\": {", group);
  const char* separator = "";
  for (const Fact& fact : facts) {
    std::printf("%s\"%s\": %lld", separator, fact.name, fact.value);
    separator = ", ";
  }
  std::printf("}");
}

// Index of a virtual function in its class's table: a pointer to a virtual member is 1 + the byte offset of its slot.
template <typename Member>
long long slotOf(Member member) {
  struct {
    std::ptrdiff_t function;
    std::ptrdiff_t adjustment;
  } raw;
  static_assert(sizeof(raw) == sizeof(member));
  std::memcpy(&raw, &member, sizeof(raw));
  const bool isVirtual = (raw.function & 1) == 1 && raw.adjustment == 0;
  return isVirtual ? (raw.function - 1) / static_cast<std::ptrdiff_t>(sizeof(void*)) : -1;
}

// A pointer to a data member is the member's offset.
template <typename Member>
long long offsetOf(Member member) {
  std::ptrdiff_t offset = 0;
  static_assert(sizeof(offset) == sizeof(member));
  std::memcpy(&offset, &member, sizeof(offset));
  return offset;
}

}  // namespace conformance

#define VALUE(type, enumerator) \
  Fact { #enumerator, static_cast<long long>(trt::type::enumerator) }
#define FIELD(type, field) \
  Fact { #field, static_cast<long long>(offsetof(trt::type, field)) }
#define SIZES(type) \
  Fact{"sizeof", sizeof(trt::type)}, Fact { "alignof", alignof(trt::type) }
#define SLOT(type, function) \
  Fact { #function, slotOf(&trt::type::function) }

#endif  // VORTA_TENSORRT_CONFORMANCE_FACTS_H_
