"""The C++ shared by all programs, read from the `.h` files of this folder, and the keywords of C++."""

from __future__ import annotations

import re
from pathlib import Path


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


#: Types, and loads and stores for tensors of any layout.
PRELUDE = _read("prelude.h")

#: For shared operands, for elements packed two to a byte, for small codebooks.
SHARED, PACKED, ENTRIES = _read("shared.h"), _read("packed.h"), _read("entries.h")

#: The function that Python calls: it steps tensors, or averages increments.
DRIVER, AVERAGE_DRIVER = _read("driver.h"), _read("average_driver.h")

#: Keywords and alternative operators of C++.
KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """
        alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t class compl const
        const_cast constexpr continue decltype default delete do double dynamic_cast else enum explicit export extern
        false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or
        or_eq private protected public register reinterpret_cast return short signed sizeof static static_assert
        static_cast struct switch template this thread_local throw true try typedef typeid typename union unsigned using
        virtual void volatile wchar_t while xor xor_eq
        """,
    )
)
