// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

// Functions agree if every argument has the same size and is a pointer on both sides or on none.
template <class Ours, class Theirs>
constexpr bool alike = sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>;

template <class, class>
struct Agree : std::false_type {};
template <class A, class... As, class B, class... Bs>
struct Agree<A (*)(As...), B (*)(Bs...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(As) != sizeof...(Bs)) {
      return false;
    } else {
      return alike<A, B> && (alike<As, Bs> && ...);
    }
  }();
};
